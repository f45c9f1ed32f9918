"""What the calibration set shows of each projection's inputs, gathered block by block in the model's own forward pass.

One block's inputs are held at a time, on disk where they are large: the model runs once per block, with the stored
inputs put in before the block and all other blocks passing on what they get. So memory stays within the model, one
block's inputs and one block's statistics, whatever the depth, and masks, positions and attention windows are the
model's own.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from evaluator.pruning.depth import block_influence
from evaluator.pruning.structures import StructureScores
from space import Family

# Which projections' inputs have their second moments gathered: none, those that read channels and heads, or all.
Moments = Literal["none", "structures", "all"]
_CHUNK_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class InputStatistics:
    """Sums over the calibration tokens of a projection's input X: (tokens, in_features), in float32."""

    tokens: int
    sums: Tensor  # (in_features,)
    squares: Tensor  # (in_features,)
    second_moments: Tensor | None = None  # (in_features, in_features) X'X

    @property
    def norms(self) -> Tensor:
        """L2 norm of each feature (in_features,)."""
        return self.squares.sqrt()

    @property
    def mean(self) -> Tensor:
        """Mean of each feature (in_features,)."""
        return self.sums / self.tokens

    @property
    def variance(self) -> Tensor:
        """Variance of each feature (in_features,)."""
        return (self.squares / self.tokens - self.mean.square()).clamp_min(0)

    @property
    def moments(self) -> Tensor:
        """The second moments, where they were gathered."""
        assert self.second_moments is not None, "the criterion asked for no second moments"
        return self.second_moments

    def select(self, features: Tensor) -> "InputStatistics":
        """Return the statistics of some of the features."""
        moments = self.second_moments
        return InputStatistics(
            self.tokens,
            self.sums[features],
            self.squares[features],
            None if moments is None else moments[features][:, features],
        )


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """What was seen of one layer.

    Args:
        inputs: statistics of the projections' inputs, by their paths inside the layer; those that read the same share
            one.
        influence: 1 - mean cosine of the residual stream before and behind the block.
        gradients: scores of structures from the loss's gradients, `taylor` and `fisher`, where a criterion asks for
            them.
    """

    inputs: Mapping[str, InputStatistics]
    influence: float
    gradients: Mapping[str, StructureScores] = field(default_factory=dict)


def projections(family: Family) -> tuple[str, ...]:
    """Return the paths inside a layer of all projections that pruning touches."""
    return tuple(dict.fromkeys(input_paths(family)))


def input_paths(family: Family) -> dict[str, str]:
    """Return, for each projection's path, that of the projection whose inputs it shares: the first that reads them."""
    shared = dict.fromkeys((family.query, family.key, family.value), family.query)
    shared[family.output] = family.output
    shared |= {path: family.up for path in (family.gate, family.up) if path is not None}
    shared[family.down] = family.down
    return shared


def with_moments(family: Family, moments: Moments) -> set[str]:
    """Return the paths, of those that others share inputs with, whose second moments are gathered."""
    if moments == "structures":
        return {family.output, family.down}
    return set(input_paths(family).values()) if moments == "all" else set()


def gather_statistics(
    decoder: nn.Module,
    layers: Sequence[nn.Module],
    family: Family,
    batches: Sequence[Tensor],
    moments: Moments = "none",
    progress: Callable[[int], None] = lambda _: None,
    allowance: int = 2**30,
) -> Iterator[LayerStatistics]:
    """Yield the statistics of one layer after the other.

    Args:
        decoder: turns token ids into hidden states.
        layers: the decoder's layers.
        family: where the projections are.
        batches: token ids, each (sequences, sequence_length).
        moments: of which projections' inputs to gather second moments.
        progress: told 1 after each layer.
        allowance: bytes of memory that a layer's inputs may take; beyond that they lie on disk, so that memory is that
            of a batch, however long the text.
    """
    hidden = _Stream(len(batches), allowance)  # what goes into the layer, per batch
    for index, layer in enumerate(layers):
        sums: dict[str, _Sums] = {}
        wanted = with_moments(family, moments)
        paths = dict.fromkeys(input_paths(family).values())
        handles = [
            layer.get_submodule(path).register_forward_pre_hook(_accumulate(sums, path, path in wanted))
            for path in paths
        ]
        cosines = 0.0
        try:
            for number, batch in enumerate(batches):
                before, after = _run_layer(decoder, layers, index, batch, hidden[number])
                before = before.to(after.device)
                cosines += (1 - block_influence(before.flatten(0, -2), after.flatten(0, -2))) * batch.numel()
                hidden[number] = after
        finally:
            for handle in handles:
                handle.remove()
        found = {path: sums[path].finish() for path in paths}
        inputs = {path: found[shared] for path, shared in input_paths(family).items()}
        yield LayerStatistics(inputs, 1 - cosines / sum(batch.numel() for batch in batches))
        progress(1)


class _Stream:
    """What goes into a layer, batch by batch: in memory, or mapped from a file that no one else sees."""

    def __init__(self, batches: int, allowance: int) -> None:
        self._kept: list[Tensor | None] = [None] * batches
        self._left = allowance

    def __getitem__(self, index: int) -> Tensor | None:
        return self._kept[index]

    def __setitem__(self, index: int, hidden: Tensor) -> None:
        if (place := self._kept[index]) is None:
            place = self._kept[index] = self._placed(hidden)
        place.copy_(hidden)

    def _placed(self, hidden: Tensor) -> Tensor:
        size = hidden.numel() * hidden.itemsize
        self._left -= size
        if self._left >= 0:
            return torch.empty_like(hidden)
        with tempfile.NamedTemporaryFile(prefix="secateur-", suffix=".hidden") as file:  # gone once it is mapped
            file.truncate(size)
            mapped = torch.from_file(file.name, shared=True, size=hidden.numel(), dtype=hidden.dtype)
        return mapped.view(hidden.shape)


class _Sums:
    """Sums that grow batch by batch."""

    def __init__(self, features: int, device: torch.device, moments: bool) -> None:
        self.tokens = 0
        self.sums = torch.zeros(features, device=device)
        self.squares = torch.zeros(features, device=device)
        self.moments = torch.zeros(features, features, device=device) if moments else None

    def add(self, inputs: Tensor) -> None:
        self.tokens += len(inputs)
        self.sums += inputs.sum(dim=0)
        self.squares += inputs.square().sum(dim=0)
        if self.moments is not None:
            self.moments.addmm_(inputs.T, inputs)

    def finish(self) -> InputStatistics:
        return InputStatistics(self.tokens, self.sums, self.squares, self.moments)


def _accumulate(sums: dict[str, _Sums], path: str, moments: bool) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        features = inputs[0].detach().flatten(0, -2)
        if path not in sums:
            sums[path] = _Sums(features.shape[1], features.device, moments)
        for part in features.split(_CHUNK_TOKENS):  # of a long sequence no float32 copy is made at once
            sums[path].add(part.float())

    return hook


def _run_layer(
    decoder: nn.Module, layers: Sequence[nn.Module], index: int, batch: Tensor, hidden: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run one layer on stored inputs; return the residual stream before and behind it."""
    seen: list[Tensor] = []

    def put_in(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        before = inputs[0] if hidden is None else hidden.to(inputs[0].device)
        seen.append(before)
        return (before, *inputs[1:])

    def take_out(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        seen.append(output)

    handles = [layers[index].register_forward_pre_hook(put_in), layers[index].register_forward_hook(take_out)]
    try:
        # Here, not around the generator: whoever asks for the next layer would run without gradients meanwhile.
        with torch.no_grad(), passed_over([*layers[:index], *layers[index + 1 :]]):
            decoder(batch, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    before, after = seen
    return before, after


@contextlib.contextmanager
def passed_over(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Let layers return what they get; only their `forward` is replaced, on the instances."""
    own = [vars(layer).get("forward") for layer in layers]  # accelerate's, where a model lies on several devices
    for layer in layers:
        layer.forward = lambda hidden, *_, **__: hidden
    try:
        yield
    finally:
        for layer, before in zip(layers, own, strict=True):
            if before is None:
                del layer.forward
            else:
                layer.forward = before


def iterate_batches(tokens: Tensor, batch_tokens: int) -> Iterator[Tensor]:
    """Cut token ids (sequences, sequence_length) into batches of at most `batch_tokens`, at least one sequence."""
    yield from tokens.split(max(1, batch_tokens // tokens.shape[1]))
