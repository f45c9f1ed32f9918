"""Timing pruned models as people run them: eager transformers, in the class of an export, nothing of ours compiled.

A `Bench` holds a dense model and lets any architecture of it take a pass: the prefill of a batch, or one more token of
each sequence with the others in the KV cache. What the weights are does not matter, what they are shaped like does, and
that they are as many: a layer that is timed alone, again and again, finds in the processor's caches what a model has to
fetch from memory. So everything is timed inside of whole models.
"""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import DynamicCache, PreTrainedModel

from evaluator.checkpoint import DenseModel, quiet_transformers
from evaluator.pruning import Surgeon
from evaluator.pruning.statistics import LayerStatistics
from evaluator.standalone import standalone
from space import Architecture, Conditions, Criterion, LayerArchitecture, Phase, SettingError

_BY_SIZE = Criterion(widths="magnitude", weights="magnitude", update="none")  # needs no text to be calibrated on
_DECODED = 4  # tokens in a row, as one takes little
_ROOM = 16  # tokens that are decoded behind those in the cache, at most
# A median of n draws from a normal distribution errs by 1.2533 sigma / sqrt(n), and sigma is 1.4826 times the median
# absolute deviation.
_MEDIAN_ERROR = 1.2533 * 1.4826

Mark = Any  # seconds of a clock, or an event of a GPU


@dataclass(frozen=True, slots=True)
class Timing:
    """How long passes of a model took."""

    seconds: float  # median
    standard_error: float


class Bench:
    """Times pruned versions of one dense model under the same conditions.

    Owns the model while it lives; the dense one is installed when it is closed.

    Args:
        dense: the model.
        phase: `prefill` or `decode`.
        batch: sequences.
        sequence_length: tokens of each, in the KV cache for `decode`.
        surgeon: the model's, where it has one already; None makes one that cuts by size.
        clock: seconds of a processor; a GPU has its own.

    Raises:
        SettingError: the model has no positions for so many tokens, or lies on several devices.
    """

    def __init__(
        self,
        dense: DenseModel,
        phase: Phase = "prefill",
        batch: int = 1,
        sequence_length: int = 512,
        *,
        surgeon: Surgeon | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        longest = dense.longest_sequence - (_ROOM if phase == "decode" else 0)
        if sequence_length > longest:
            raise SettingError(
                f"latency.sequence_length must fit into the model's {dense.longest_sequence} positions, and leave "
                f"{_ROOM} to decode, but is {sequence_length}; set at most {longest}."
            )
        if len(devices := {weight.device for weight in dense.model.parameters()}) > 1:
            raise SettingError(
                f"A model must lie on one device to be timed, but lies on {', '.join(sorted(map(str, devices)))}; "
                "set device to one of them, or leave the budget on latency out."
            )
        self.dense = dense
        self._clock = clock
        self._phase, self._batch, self._length = phase, batch, sequence_length
        if surgeon is None:
            self.dense = replace(dense, layout=dense.layout.pruned_by(_BY_SIZE))
            nothing = [LayerStatistics({}, 0.0)] * dense.layout.layers
            surgeon = Surgeon(dense.layers, self.dense.layout, nothing, _BY_SIZE)
        self._surgeon = surgeon

    def close(self) -> None:
        """Install the dense model again."""
        self._surgeon.restore()

    @property
    def conditions(self) -> Conditions:
        """What is timed, and on what."""
        device = self.dense.model.device
        return Conditions(
            phase=self._phase,
            batch=self._batch,
            sequence_length=self._length,
            device=device.type,
            processor=torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
            threads=torch.get_num_threads(),
            dtype=self.dense.dtype,
            torch=torch.__version__,
            transformers=transformers.__version__,
        )

    def time(
        self,
        architectures: Sequence[Architecture],
        rounds: int,
        rng: np.random.Generator,
        progress: Callable[[int], None] = lambda _: None,
    ) -> list[Timing]:
        """Time whole models, interleaved: each round visits all of them in another order.

        Args:
            architectures: what to time.
            rounds: visits of each.
            rng: where the orders come from.
            progress: told 1 after each visit.

        Raises:
            ArchitectureError: an architecture does not fit the model.
        """
        taken: list[list[float]] = [[] for _ in architectures]
        for _ in range(rounds):
            for number in rng.permutation(len(architectures)).tolist():
                with self.installed(architectures[number]) as (_, run):
                    taken[number] += [self.seconds(run) for _ in range(self.passes)]
                progress(1)
        return [timing_of(each) for each in taken]

    @property
    def passes(self) -> int:
        """Passes of a visit that are timed alike."""
        return 1 if self._phase == "prefill" else _DECODED

    @contextmanager
    def installed(self, architecture: Architecture) -> Iterator[tuple[PreTrainedModel, Callable[[], None]]]:
        """Install an architecture, without what sparsity it has, and yield its model and what runs a pass of it.

        One pass has been run already: the first of a shape takes longer.
        """
        # Its code has notices on layers that differ.
        with quiet_transformers():
            yield from self._installed(architecture)

    def _installed(self, architecture: Architecture) -> Iterator[tuple[PreTrainedModel, Callable[[], None]]]:
        widths = tuple(LayerArchitecture(layer.kv_groups, layer.mlp_width) for layer in architecture.layers)
        self._surgeon.install(Architecture(widths))
        model = standalone(self.dense, Architecture(widths))
        length = self._length if self._phase == "prefill" else 1
        tokens = torch.zeros((self._batch, length), dtype=torch.long, device=self.dense.model.device)
        # A cache of transformers must have a layer that keeps something.
        cached = any(layer.kv_groups for layer in widths)
        with torch.inference_mode():
            filled = self._filled_cache(model, widths) if cached and self._phase == "decode" else None
            run = partial(_run, model, tokens, cached, filled)
            run()
            yield model, run

    def _filled_cache(self, model: PreTrainedModel, layers: Sequence[LayerArchitecture]) -> DynamicCache:
        """Return a KV cache with all tokens of the batch in it."""
        cache = DynamicCache(config=model.config)
        for index, layer in enumerate(layers):
            if layer.kv_groups:
                shape = (self._batch, layer.kv_groups, self._length, self.dense.layout.head_dim)
                keys, values = (torch.randn(shape, dtype=model.dtype, device=model.device) for _ in range(2))
                cache.update(keys, values, index)
        return cache

    def seconds(self, run: Callable[[], None]) -> float:
        """Return how long a pass takes, until its result is there."""
        self._wait()
        started = self._clock()
        run()
        self._wait()
        return self._clock() - started

    def mark(self) -> Mark:
        """Return a mark in time; on a GPU, when it gets there."""
        if self.dense.model.device.type != "cuda":
            return self._clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, marks: Sequence[Mark]) -> NDArray[np.float64]:
        """Return the seconds from each mark to the next."""
        self._wait()
        if self.dense.model.device.type != "cuda":
            return np.diff(marks)
        return np.array([first.elapsed_time(second) / 1e3 for first, second in pairwise(marks)])

    def _wait(self) -> None:
        if self.dense.model.device.type == "cuda":
            torch.cuda.synchronize(self.dense.model.device)


def _run(model: PreTrainedModel, tokens: torch.Tensor, use_cache: bool, cache: DynamicCache | None) -> None:
    model(input_ids=tokens, past_key_values=cache, use_cache=use_cache, logits_to_keep=1)


def timing_of(seconds: Sequence[float]) -> Timing:
    """Return the median of timed passes with its error."""
    median = float(np.median(seconds))
    deviation = float(np.median(np.abs(np.array(seconds) - median)))
    return Timing(median, _MEDIAN_ERROR * deviation / np.sqrt(len(seconds)))


def processor_name() -> str:
    """Return what the processor is called."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
