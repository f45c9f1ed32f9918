"""What measuring in a reduced number format costs: how far a model in it is from itself in float32."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from evaluator.accuracy import make_reference, score_tokens
from evaluator.checkpoint import DenseModel
from evaluator.measurement import mean_with_error

# As much as lightly pruning one layer: above it, rounding would have a say in which architecture is the better one.
# SmolLM2-135M in bfloat16 is at a tenth of it.
LARGEST_KL = 0.05  # nats per token


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far a dense model is from itself in float32; means over tokens."""

    kl: float  # nats per token, float32 against the format
    kl_standard_error: float
    same_best: float  # share of tokens, 0..1, that both hold to be the most likely
    tokens: int

    @property
    def good(self) -> bool:
        """Whether architectures can be told apart in the format."""
        return self.kl <= LARGEST_KL


def agreement_with_float32(dense: DenseModel, tokens: Tensor) -> Agreement | None:
    """Run a dense model over a text in its own format and in float32; None where that is its own.

    Args:
        dense: the model, with nothing pruned.
        tokens: (sequences, sequence_length) token ids, few: float32 is slow where a reduced format is fast.
    """
    if dense.dtype == "float32":
        return None
    with in_float32(dense.model):
        reference = make_reference(dense, tokens)
    scores = score_tokens(dense, reference)
    kl, error = mean_with_error(scores.kl, len(tokens))
    return Agreement(kl, error, float(scores.agreement.mean()), len(scores.kl))


@contextlib.contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Let a model compute in float32 from the weights it has, widened module by module, so that few are there twice."""
    handles = []
    for module in model.modules():
        own = {name: weight for name, weight in module.named_parameters(recurse=False) if weight.is_floating_point()}
        if own:
            handles += [
                module.register_forward_pre_hook(_widen(own), with_kwargs=True),
                module.register_forward_hook(_narrow(own), always_call=True),
            ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _widen(own: Mapping[str, nn.Parameter]) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    def hook(
        module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        for name, weight in own.items():
            setattr(module, name, nn.Parameter(weight.float(), requires_grad=False))
        return tuple(map(_float, inputs)), {name: _float(value) for name, value in named.items()}

    return hook


def _narrow(own: Mapping[str, nn.Parameter]) -> Callable[..., None]:
    def hook(module: nn.Module, *_: Any) -> None:
        for name, weight in own.items():
            setattr(module, name, weight)

    return hook


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
