"""Merging recovered models of one shape: spherical interpolation of two, weighted means of several.

| symbol | meaning |
| --- | --- |
| a, b | a tensor of the first and of the second model, flattened |
| t | the share of the second, 0..1 |
| w | the angle between a and b: cos w = (a . b) / (norm(a) norm(b)) |

    slerp(a, b; t) = sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b

Weights of models that were fine-tuned from a common start are nearly parallel, where this is the straight line. What
they differ in is what each learned, and that is not parallel: with a `start`, it is interpolated in place of the
weights.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from space import ModelError, SettingError

State = Mapping[str, Tensor]

_PARALLEL = 0.9995  # cosine, of either sign, from where the straight line is taken; as in mergekit


def slerp(first: State, second: State, share: float, start: State | None = None) -> dict[str, Tensor]:
    """Interpolate two models tensor by tensor along a circle, in a wider dtype; lengths are interpolated as well.

    Nearly parallel tensors, and those of which one is 0, are interpolated along a line.

    Args:
        first: tensors by name; the result has their dtypes and devices.
        second: the same names, shapes and dtypes.
        share: of the second, 0..1; 0 gives the first bit for bit, 1 the second.
        start: what both were fine-tuned from. The result is then the start and the interpolated differences from it.

    Raises:
        SettingError: the share is not in 0..1.
        ModelError: names, shapes or dtypes differ (the start counts as model 3), or integers in them do.

    Source: Shoemake 1985, "Animating rotation with quaternion curves"; of whole tensors as in mergekit.
    """
    if not 0 <= share <= 1:
        raise SettingError(f"The share of the second model must be 0..1, but is {share}; change it.")
    _check_alike([first, second] if start is None else [first, second, start])
    if share in (0, 1):
        return {name: tensor.detach().clone() for name, tensor in (second if share else first).items()}
    merged = {}
    for name, tensor in first.items():
        if not tensor.is_floating_point():
            merged[name] = tensor.detach().clone()
            continue
        one, other = _widened(tensor), _widened(second[name], tensor.device)
        if start is None:
            merged[name] = _slerp(one, other, share).to(tensor.dtype)
        else:
            origin = _widened(start[name], tensor.device)
            merged[name] = (origin + _slerp(one - origin, other - origin, share)).to(tensor.dtype)
    return merged


def average(states: Sequence[State], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Return the weighted mean of models, a "soup", summed in a wider dtype.

    Args:
        states: of each model the tensors by name, all with the same names, shapes and dtypes; the result has the
            devices of the first.
        weights: of the models, at least 0; what counts is their ratio. None weighs all alike.

    Raises:
        SettingError: the weights are not one for each model, or not numbers that can be weights.
        ModelError: there are fewer than two models, or names, shapes or dtypes differ, or the values of a tensor of
            integers.

    Source: arXiv 2203.05482.
    """
    if len(states) < 2:
        raise ModelError(f"A mean must be of at least 2 models, but is of {len(states)}; give more.")
    weights = [1.0] * len(states) if weights is None else list(weights)
    if len(weights) != len(states):
        raise SettingError(
            f"Weights must be one for each model, but are {len(weights)} for {len(states)}; give as many."
        )
    if not (min(weights) >= 0 and 0 < sum(weights) < math.inf):
        raise SettingError(f"Weights of models must be at least 0, and one above, but are {weights}; change them.")
    _check_alike(states)
    shares = [weight / sum(weights) for weight in weights]
    merged = {}
    for name, tensor in states[0].items():
        if not tensor.is_floating_point():
            merged[name] = tensor.detach().clone()
            continue
        total = _widened(tensor) * shares[0]
        for state, share in zip(states[1:], shares[1:], strict=True):
            total.add_(_widened(state[name], tensor.device), alpha=share)
        merged[name] = total.to(tensor.dtype)
    return merged


def _slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Interpolate two tensors of one shape, as one vector each."""
    lengths = float(first.norm() * second.norm())
    cosine = float(torch.dot(first.flatten(), second.flatten())) / lengths if lengths else 1.0
    if abs(cosine) > _PARALLEL:
        return torch.lerp(first, second, share)
    angle = math.acos(cosine)
    return (math.sin((1 - share) * angle) * first + math.sin(share * angle) * second) / math.sin(angle)


def _widened(tensor: Tensor, device: torch.device | None = None) -> Tensor:
    """Return a tensor in a dtype of more digits: float64 from float32, else float32."""
    wide = torch.float64 if tensor.dtype in (torch.float32, torch.float64) else torch.float32
    return tensor.detach().to(device or tensor.device, wide)


def _check_alike(states: Sequence[State]) -> None:
    """Refuse models of different names, shapes or dtypes, or of different integers."""
    first = states[0]
    for number, other in enumerate(states[1:], start=2):
        if missing := [name for name in (*first, *other) if name not in first or name not in other]:
            holder = 1 if missing[0] in first else number
            raise ModelError(
                f"Models must have the same tensors to be merged, but only model {holder} of 1 and {number} has "
                f"{missing[0]}; merge models of one architecture."
            )
        for name, tensor in first.items():
            for what, mine, its in (
                ("shape", tuple(tensor.shape), tuple(other[name].shape)),
                ("dtype", tensor.dtype, other[name].dtype),
            ):
                if mine != its:
                    raise ModelError(
                        f"Models must have tensors of the same {what} to be merged, but {name} has {mine} in model 1 "
                        f"and {its} in model {number}; merge models of one architecture and dtype."
                    )
            if not tensor.is_floating_point() and not torch.equal(tensor, other[name].to(tensor.device)):
                raise ModelError(
                    f"Tensors of integers must be equal to be merged, but {name} differs between models 1 and "
                    f"{number}; merge models of one architecture."
                )
