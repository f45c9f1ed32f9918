"""What the calibration set shows of each projection's inputs, gathered by hooks in the model's own forward pass."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from space import Family


@dataclass(frozen=True)
class InputNorms:
    """L2 norms over the calibration tokens of every input feature of every projection.

    Args:
        norms: per layer, from the projection's path inside the layer to its norms (in_features,), float32.
        tokens: calibration tokens seen.
    """

    norms: tuple[Mapping[str, Tensor], ...]
    tokens: int


def projections(family: Family) -> tuple[str, ...]:
    """Return the paths inside a layer of all projections that pruning touches."""
    paths = (family.query, family.key, family.value, family.output, family.gate, family.up, family.down)
    return tuple(dict.fromkeys(path for path in paths if path is not None))


def gather_input_norms(
    decoder: nn.Module,
    layers: Iterable[nn.Module],
    family: Family,
    batches: Iterable[Tensor],
    progress: Callable[[int], None] = lambda _: None,
) -> InputNorms:
    """Run the calibration set through the decoder and accumulate squared inputs.

    Args:
        decoder: turns token ids into hidden states.
        layers: the decoder's layers.
        family: where the projections are.
        batches: token ids, each (sequences, sequence_length).
        progress: told the tokens of each batch done.

    Source: the statistic of Wanda, arXiv 2306.11695, section 3.
    """
    sums: list[dict[str, Tensor]] = []
    handles = []
    for layer in layers:
        layer_sums: dict[str, Tensor] = {}
        sums.append(layer_sums)
        for path in projections(family):
            handles.append(layer.get_submodule(path).register_forward_pre_hook(_accumulate(layer_sums, path)))
    tokens = 0
    try:
        with torch.inference_mode():
            for batch in batches:
                decoder(batch, use_cache=False)
                tokens += batch.numel()
                progress(batch.numel())
    finally:
        for handle in handles:
            handle.remove()
    return InputNorms(tuple({path: total.sqrt() for path, total in layer.items()} for layer in sums), tokens)


def _accumulate(sums: dict[str, Tensor], path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        squares = inputs[0].detach().flatten(0, -2).float().square().sum(dim=0)  # (in_features,)
        sums[path] = sums[path] + squares if path in sums else squares

    return hook


def iterate_batches(tokens: Tensor, batch_tokens: int) -> Iterator[Tensor]:
    """Cut token ids (sequences, sequence_length) into batches of at most `batch_tokens`, at least one sequence."""
    yield from tokens.split(max(1, batch_tokens // tokens.shape[1]))
