"""Calibrating: the statistics that a criterion needs, gathered once and kept on disk, one file a layer."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor

from evaluator.accuracy import BATCH_TOKENS
from evaluator.checkpoint import DenseModel
from evaluator.pruning.criteria import moments_for, needs_gradients
from evaluator.pruning.levels import sweep
from evaluator.pruning.statistics import (
    InputStatistics,
    LayerStatistics,
    gather_statistics,
    input_paths,
    iterate_batches,
    with_moments,
)
from evaluator.pruning.structures import StructureScores
from evaluator.pruning.taylor import GRADIENTS, gather_gradients
from evaluator.splits import Texts
from space import Criterion, Family, RunFolderError

Progress = Callable[[int], None]


def calibrate(
    dense: DenseModel, texts: Texts, criterion: Criterion, folder: Path | None, progress: Progress = lambda _: None
) -> tuple[Sequence[LayerStatistics], str]:
    """Return the statistics of every layer, from the folder where they are there, and the key they were kept under.

    Args:
        dense: the model, with nothing pruned.
        texts: whose calibration set to use.
        criterion: what the statistics are for.
        folder: where `statistics/` goes; None keeps them in memory.
        progress: told 1 after each layer.

    Raises:
        RunFolderError: a file in the folder is damaged.
    """
    name = f"{dense.weights_hash} {dense.dtype} {texts.fingerprint('calibrate')}"
    key = hashlib.sha256(f"{name} {criterion}".encode()).hexdigest()[:16]
    if folder is None:
        return list(_gather(dense, texts, criterion, progress)), key
    devices = [next(layer.parameters()).device for layer in dense.layers]
    files = StatisticsFolder(folder / "statistics", dense.layout.record, devices)
    if not files.complete(name, criterion):
        sweep(folder / "statistics")
        for index, statistics in enumerate(_gather(dense, texts, criterion, progress)):
            files.write(index, statistics, name)
    return files, key


def _gather(dense: DenseModel, texts: Texts, criterion: Criterion, progress: Progress) -> Iterable[LayerStatistics]:
    tokens = texts.tokens["calibrate"].to(dense.model.device)
    family, batches = dense.layout.record, list(iterate_batches(tokens, BATCH_TOKENS))
    statistics = gather_statistics(dense.decoder, list(dense.layers), family, batches, moments_for(criterion), progress)
    if not needs_gradients(criterion):
        return statistics
    scores = gather_gradients(dense.model, list(dense.layers), dense.layout, tokens.split(1))
    return [LayerStatistics(each.inputs, each.influence, own) for each, own in zip(statistics, scores, strict=True)]


class StatisticsFolder(Sequence[LayerStatistics]):
    """Statistics of all layers on disk, one file a layer, read when asked for.

    Args:
        folder: of the files.
        family: which projections share inputs.
        devices: where each layer's tensors go.
    """

    def __init__(self, folder: Path, family: Family, devices: Sequence[torch.device]) -> None:
        self._folder = folder
        self._family = family
        self._devices = devices
        self._last: tuple[int, LayerStatistics] | None = None  # a layer's projections are asked for one after the other

    def __len__(self) -> int:
        return len(self._devices)

    @overload
    def __getitem__(self, index: int) -> LayerStatistics: ...
    @overload
    def __getitem__(self, index: slice) -> list[LayerStatistics]: ...
    def __getitem__(self, index: int | slice) -> LayerStatistics | list[LayerStatistics]:
        if isinstance(index, slice):
            return [self[each] for each in range(len(self))[index]]
        index = range(len(self))[index]
        if self._last is None or self._last[0] != index:
            self._last = None  # before the next is read: memory for one layer, not for two
            self._last = index, self._read(index)
        return self._last[1]

    def _read(self, index: int) -> LayerStatistics:
        file = self._file(index)
        try:
            with safe_open(file, "pt") as saved:
                metadata = saved.metadata()
            # Not `get_tensor`, which loses a Ctrl-C that falls into it.
            tensors = {name: tensor.to(self._devices[index]) for name, tensor in load(file.read_bytes()).items()}
        except (OSError, SafetensorError) as error:
            raise _damaged(file, error) from error
        fields: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            path, _, field = name.partition(":")
            fields.setdefault(path, {})[field] = tensor
        gradients = {name: StructureScores(**fields.pop(name)) for name in GRADIENTS if name in fields}
        found = {path: InputStatistics(int(metadata["tokens"]), **own) for path, own in fields.items()}
        inputs = {path: found[shared] for path, shared in input_paths(self._family).items()}
        return LayerStatistics(inputs, float(metadata["influence"]), gradients)

    def complete(self, name: str, criterion: Criterion) -> bool:
        """Return whether every layer's file is there, was written for `name` and holds what a criterion needs.

        Raises:
            RunFolderError: a file is damaged.
        """
        for index in range(len(self)):
            file = self._file(index)
            if not file.exists():
                return False
            try:
                with safe_open(file, "pt") as saved:
                    fields = set(saved.keys())
                    if (saved.metadata() or {}).get("name") != name or not self._needed(criterion) <= fields:
                        return False
            except (OSError, SafetensorError) as error:
                raise _damaged(file, error) from error
        return True

    def _needed(self, criterion: Criterion) -> set[str]:
        paths = with_moments(self._family, moments_for(criterion))
        gradients = {f"{criterion.widths}:channels"} if needs_gradients(criterion) else set()
        return gradients | {f"{path}:second_moments" for path in paths}

    def write(self, index: int, statistics: LayerStatistics, name: str) -> None:
        """Write one layer's statistics."""
        tensors: dict[str, Tensor] = {}
        for path in dict.fromkeys(input_paths(self._family).values()):
            each = statistics.inputs[path]
            tensors |= {f"{path}:sums": each.sums, f"{path}:squares": each.squares}
            if each.second_moments is not None:
                tensors[f"{path}:second_moments"] = each.second_moments
        for order, scores in statistics.gradients.items():
            tensors |= {f"{order}:channels": scores.channels, f"{order}:groups": scores.groups}
        tokens = next(iter(statistics.inputs.values())).tokens
        self._save(index, tensors, {"name": name, "tokens": str(tokens), "influence": repr(statistics.influence)})

    def _save(self, index: int, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
        file = self._file(index)
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(f".{os.getpid()}.partial")  # another process may be calibrating the same
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, beside, metadata)
        beside.replace(file)

    def _file(self, index: int) -> Path:
        return self._folder / f"layer-{index:03}.safetensors"


def _damaged(file: Path, error: Exception) -> RunFolderError:
    return RunFolderError(
        f"{file.parent.name}/{file.name} must be intact, but {str(file)!r} is not ({error}); delete the folder "
        f"{file.parent.name}, it is computed anew."
    )
