"""The evaluator: architectures in, measured pairs out, each measured once and kept at once."""

import contextlib
import functools
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from evaluator.accuracy import BATCH_TOKENS, Reference, estimating_pays, make_reference, score_tokens
from evaluator.boundaries import boundaries, replayed
from evaluator.calibration import calibrate
from evaluator.checkpoint import DenseModel, hash_weights
from evaluator.engine import Engine, spread
from evaluator.harness.items import Aim
from evaluator.kernels import EAGER, KernelsName, choose_kernels
from evaluator.measurement import DIVERGENCE, ESTIMATED_DIVERGENCE, Measurement, Protocol
from evaluator.memory import give_back, levels_allowance
from evaluator.pruning import Levels, Surgeon
from evaluator.pruning.statistics import LayerStatistics
from evaluator.recovery.short import ShortRecipe
from evaluator.slopes import FORWARD_PASSES, Slopes
from evaluator.slopes import slopes as slopes_of
from evaluator.splits import Texts
from evaluator.standalone import student_of
from evaluator.store import PairStore
from evaluator.stream import Stream, gather_stream
from evaluator.students import Students
from space import Architecture, Choice, Criterion

_POLL_SECONDS = 0.2  # between looks at what other processes measure


class Evaluator:
    """Measures pruned versions of one dense model under fixed texts and one criterion.

    Owns the model while it lives; not safe for several threads.

    Args:
        dense: the model.
        texts: the four splits.
        store: where pairs are kept.
        criterion: what to prune by; None takes the default one.
        folder: where calibration statistics and prepared levels are kept; None keeps them in memory.
        progress: told 1 after each layer that is calibrated.
        kernels: by which steps to measure; see `choose_kernels`.
        recovery: what is done before a measurement on the texts that a search chooses by; None measures models as they
            are pruned.
        aim: draws items of tasks by split, `search` and `validate`, that are answered instead of reading these texts;
            None measures on text alone.
        engine: measures in this one's place, on other machines; None measures here. What is measured by another
            criterion or calibration set for a while is measured here. It needs the folder.

    Raises:
        RunFolderError: the statistics in the folder are damaged.
        SettingError: kernels cannot be had here.
    """

    def __init__(
        self,
        dense: DenseModel,
        texts: Texts,
        store: PairStore,
        *,
        criterion: Criterion | None = None,
        folder: Path | None = None,
        progress: Callable[[int], None] = lambda _: None,
        kernels: KernelsName = "auto",
        recovery: ShortRecipe | None = None,
        aim: Callable[[], Aim] | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.dense = dense
        self.kernels = choose_kernels(kernels, dense)
        self.texts = texts
        self.measured = 0  # architectures, by this evaluator itself
        self.store = store
        self.criterion = criterion or Criterion()
        self.students = Students(dense, recovery, aim)
        self._engine = engine
        self._folder = folder
        self._held: tuple[Sequence[LayerStatistics], str] | None = None  # of `calibrated_on`
        self.surgeon = self._surgeon(progress)
        self._references: dict[str, Reference] = {}
        self._prefixes: dict[str, dict[int, Tensor]] = {}  # by the layer that they go into

    def _surgeon(self, progress: Callable[[int], None] = lambda _: None) -> Surgeon:
        dense = self.dense
        statistics, key = self._held or calibrate(dense, self.texts, self.criterion, self._folder, progress)
        give_back()
        folder = self._folder / f"levels-{key}" if self._folder and not self._held else None
        levels = Levels(folder, levels_allowance(dense.model.device, dense.weights_bytes))
        return Surgeon(dense.layers, dense.layout.pruned_by(self.criterion), statistics, self.criterion, levels)

    @contextlib.contextmanager
    def pruning_by(self, criterion: Criterion) -> Iterator[None]:
        """Prune and measure by another criterion for a while, on the same texts."""
        own = self.criterion, self.surgeon, self._engine
        self.surgeon.restore()
        self.criterion, self._engine = criterion, None
        self.surgeon = self._surgeon()
        try:
            yield
        finally:
            self.surgeon.restore()
            self.criterion, self.surgeon, self._engine = own

    @contextlib.contextmanager
    def calibrated_on(
        self, tokens: Tensor, criterion: Criterion, progress: Callable[[int], None] = lambda _: None
    ) -> Iterator[None]:
        """Calibrate on other text for a while, kept in memory; `pruning_by` meanwhile goes by the same statistics.

        Args:
            tokens: (sequences, sequence_length) token ids.
            criterion: to prune by, which needs all that criteria of `pruning_by` will need of the statistics.
            progress: told 1 after each layer.
        """
        own = self.texts, self.criterion, self.surgeon, self._held, self._engine
        self.surgeon.restore()
        self._engine = None
        try:
            self.texts = replace(own[0], tokens={**own[0].tokens, "calibrate": tokens})
            self.criterion, self._held = criterion, None
            self.students.again()
            self._held = calibrate(self.dense, self.texts, criterion, None, progress)
            self.surgeon = self._surgeon()
            yield
        finally:
            self.surgeon.restore()
            self.texts, self.criterion, self.surgeon, self._held, self._engine = own
            self.students.again()

    def protocol(self, split: str) -> Protocol:
        """Return the protocol of measurements on a split."""
        if self.students.answer(split):
            return self.students.protocol(split, self.criterion, self.texts.fingerprint("calibrate"))
        tokens, recovers = self.texts.of(split), self.students.recover(split)
        return Protocol(
            weights_hash=self.dense.weights_hash,
            text=self.texts.fingerprint(split),
            text_source=self.texts.source(split),
            split=split,
            tokens=tokens.shape[0] * (tokens.shape[1] - 1),
            sequence_length=tokens.shape[1],
            criterion=str(self.criterion),
            calibration=self.texts.fingerprint("calibrate"),
            dtype=self.dense.dtype,
            divergence=ESTIMATED_DIVERGENCE if self._estimated(split) else DIVERGENCE,
            kernels=EAGER.name if recovers else self.kernels.name,
            recovery=str(self.students.recovery) if recovers else "none",
        )

    def _estimated(self, split: str) -> bool:
        """Return whether the quicker loss is good enough: for the text that only ranks, its error is below that of
        the text itself, and the figures that people are told are of other splits."""
        return split.partition(":")[0] == "search" and estimating_pays(self.dense)

    def measure(
        self,
        architectures: Sequence[Architecture],
        split: str,
        origin: str,
        progress: Callable[[int], None] = lambda _: None,
    ) -> list[Measurement]:
        """Measure architectures, or take from the store what was measured before.

        Args:
            architectures: what to measure.
            split: the text to measure on: `search`, `validate` or `report`, or the beginning of one, as in `search:2`.
            origin: why, kept with the pair.
            progress: told 1 after each architecture.

        Raises:
            ArchitectureError: an architecture does not fit the model; nothing is measured.
            MeasurementError: a measurement is not finite; those before it are kept.
        """
        for architecture in architectures:
            architecture.check(self.dense.layout)
        protocol = self.protocol(split)
        found: dict[Architecture, Measurement] = {}
        waiting = list(dict.fromkeys(architectures))
        while waiting:
            elsewhere = []  # another process measures it at this moment
            with closing(self._measure_each(waiting, split, protocol, origin)) as results:
                for architecture, measurement in results:
                    if measurement is None:
                        elsewhere.append(architecture)
                    else:
                        found[architecture] = measurement
                        progress(1)
            if elsewhere:
                time.sleep(_POLL_SECONDS)
            waiting = elsewhere
        if again := len(architectures) - len(found):
            progress(again)  # what was asked for twice
        return [found[architecture] for architecture in architectures]

    def _measure_each(
        self, architectures: Sequence[Architecture], split: str, protocol: Protocol, origin: str
    ) -> Generator[tuple[Architecture, Measurement | None], None, None]:
        if self._engine is not None:
            yield from spread(self._engine, self, architectures, split, protocol, origin)
        else:
            for architecture in architectures:
                yield architecture, self._measure_once(architecture, split, protocol, origin)

    def _measure_once(
        self, architecture: Architecture, split: str, protocol: Protocol, origin: str
    ) -> Measurement | None:
        """Return the measurement in the store, or measure and keep it; none while another process measures it."""
        known = self.store.find(architecture, protocol)
        if known is not None:
            return known
        if not self.store.claim(architecture, protocol):
            return None
        try:
            # Between the look and the claim another process may have finished.
            if (known := self.store.find(architecture, protocol)) is None:
                known = self._measure(architecture, split, protocol)
                self.store.add(architecture, known, protocol, origin)
                self.measured += 1
            return known
        finally:
            self.store.release(architecture, protocol)

    def slopes(
        self,
        architecture: Architecture,
        choices: Sequence[Sequence[Choice]],
        progress: Callable[[int], None] = lambda _: None,
    ) -> Slopes:
        """Return the first-order changes around an architecture on the search text, or what the store has of them.

        Args:
            architecture: around which; it is measured as well, if it was not.
            choices: by sub-block, those to tell the change of, `SearchSpace.choices`.
            progress: told 1 after each sequence of the text.

        Raises:
            ArchitectureError: the architecture does not fit the model.
            MeasurementError: a measurement is not finite.
        """
        [measured] = self.measure([architecture], "search", "slopes")
        protocol = self.protocol("search")
        while (known := self.store.find_slopes(architecture, protocol, choices)) is None:
            if not self.store.claim(architecture, protocol, "slopes"):
                time.sleep(_POLL_SECONDS)
                continue
            try:
                reference = self._reference("search")
                started = time.perf_counter()
                found = slopes_of(self.dense, self.surgeon, reference, architecture, choices, progress)
                seconds, cost = time.perf_counter() - started, FORWARD_PASSES * protocol.tokens
                self.store.add_slopes(replace(found, kl=measured.kl), protocol, choices, cost, seconds)
            finally:
                self.store.release(architecture, protocol, "slopes")
        return known

    def stream(self) -> Stream:
        """Return how the dense model's residual stream moves on the search text, or what the store has of it."""
        protocol = self.protocol("search")
        known = self.store.stream(protocol.fingerprint)
        if known is None:
            self.surgeon.restore()
            known = gather_stream(self.dense, self.texts.of("search"))
            self.store.add_stream(known, protocol)
        return known

    def _measure(self, architecture: Architecture, split: str, protocol: Protocol) -> Measurement:
        if self.students.recover(split) or self.students.answer(split):
            reading = functools.partial(self._reference, split)
            told = protocol, reading, self._estimated(split), self.texts.of("calibrate")
            return self.students.measure(self.surgeon, architecture, *told)
        reference = self._reference(split)
        started = time.perf_counter()
        self.surgeon.install(architecture)
        changed = architecture.changed_layers(Architecture.dense(self.dense.layout))
        prefix = self._prefixes.get(split, {})
        first = max((index for index in prefix if changed and index <= changed[0]), default=0)
        replay = replayed(self.dense.layers, first, prefix[first]) if first else contextlib.nullcontext()
        with replay:
            scores = score_tokens(self.dense, reference, self.kernels, self._estimated(split))
        return Measurement.from_scores(scores, len(reference.tokens), protocol, time.perf_counter() - started)

    def model_of(self, architecture: Architecture) -> DenseModel:
        """Return an architecture as a model of its own, by the hash of its weights; good until another is installed."""
        self.surgeon.install(architecture)
        student = student_of(self.dense, architecture)
        return replace(student, weights_hash=hash_weights(student.model))

    def _reference(self, split: str) -> Reference:
        if split not in self._references:
            tokens = self.texts.of(split)
            self.surgeon.restore()
            self._references[split] = make_reference(self.dense, tokens, self.kernels)
            # One batch only: a prefix of several would have to be replayed batch by batch.
            if tokens.numel() <= BATCH_TOKENS:
                self._prefixes[split] = boundaries(self.dense, tokens, self.kernels)
            give_back()
        return self._references[split]

    def work(self, architecture: Architecture, split: str) -> float:
        """Return what measuring an architecture costs, in tokens through the whole decoder.

        On a text that is measured in one batch, the layers before the first that an architecture changes are not run.
        A recovery before the measurement counts as well.
        """
        recovery = self.students.recovery if self.students.recover(split) else None
        if recovery or self.students.answer(split):
            return self.protocol(split).tokens + (recovery.work if recovery else 0.0)
        tokens = self.texts.of(split)
        changed = architecture.changed_layers(Architecture.dense(self.dense.layout))
        skipped = changed[0] if changed and tokens.numel() <= BATCH_TOKENS else 0
        return tokens.shape[0] * (tokens.shape[1] - 1) * (1 - skipped / self.dense.layout.layers)

    def work_of_slopes(self) -> float:
        """Return what slopes cost beside the measurement, in tokens as `work`; a backward pass counts two forward."""
        return float(FORWARD_PASSES * self.protocol("search").tokens)

    @property
    def statistics_folder(self) -> Path:
        """Where the calibration statistics lie, of an evaluator that keeps them."""
        assert self._folder is not None, "what is measured elsewhere needs statistics in files"
        return self._folder / "statistics"

    def describe(self) -> dict[str, object]:
        """Return what every measurement of this evaluator depends on, by split."""
        return {split: asdict(self.protocol(split)) for split in ("search", "validate", "report")}
