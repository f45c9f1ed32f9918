"""How the dense model's residual stream moves from layer to layer, from one pass, for `predictor.stream` to use."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evaluator.checkpoint import DenseModel
from evaluator.pruning import iterate_batches

_TOKENS = 512  # at once: the states of all layers are held together
# The first token of a sequence draws attention that has nowhere to go: its stream is far longer than all others'.
_FIRST = 1


@dataclass(frozen=True, slots=True)
class Stream:
    """How the residual stream moves: displacement (layers + 1, layers + 1) and overlap (layers, layers)."""

    displacement: list[list[float]]
    overlap: list[list[float]]


def gather_stream(dense: DenseModel, tokens: Tensor) -> Stream:
    """Return how the residual stream of the dense model moves on a text; `predictor.stream` has the equations.

    Args:
        dense: the model, with nothing pruned.
        tokens: (sequences, sequence_length).
    """
    layers = len(dense.layers)
    displacement, overlap = torch.zeros(layers + 1, layers + 1), torch.zeros(layers, layers)
    count = 0
    for batch in iterate_batches(tokens, _TOKENS):
        states = _states(dense, batch)  # (layers + 1, tokens, hidden)
        norms = states.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        unit = states / norms[..., None]
        added = (states[1:] - states[:-1]) / norms[:-1, :, None]
        displacement += (1 - torch.einsum("atd,btd->abt", unit, unit)).sum(dim=-1)
        overlap += torch.einsum("itd,jtd->ijt", added, added).sum(dim=-1)
        count += states.shape[1]
    return Stream((displacement / count).tolist(), (overlap / count).tolist())


def _states(dense: DenseModel, batch: Tensor) -> Tensor:
    """Return the residual stream before each layer and after the last (layers + 1, tokens, hidden), float32."""
    found: list[Tensor] = []

    def keep(hidden: Tensor) -> None:
        found.append(hidden[:, _FIRST:].flatten(0, 1).float().cpu())

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        keep(inputs[0])

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        keep(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_pre_hook(before) for layer in dense.layers]
    handles.append(dense.layers[-1].register_forward_hook(after))
    try:
        with torch.inference_mode():
            dense.decoder(batch.to(dense.model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(found)
