"""Measuring pruned models as models of their own, where a search chooses by what they are worth recovered or answer.

On other texts a measurement installs an architecture and reads on; here it has modules of its own, which can be trained
for a few steps and have a cache of keys and values.
"""

import contextlib
import functools
import time
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from evaluator.accuracy import Reference, TokenScores, score_tokens
from evaluator.checkpoint import DenseModel
from evaluator.harness.items import Aim, ItemReference
from evaluator.kernels import EAGER
from evaluator.measurement import Measurement, Protocol
from evaluator.pruning import Surgeon
from evaluator.recovery.short import ShortRecipe, ShortRecovery
from evaluator.standalone import student_of
from space import Architecture, Criterion

SEARCHED = ("search", "validate")  # splits that a search chooses by


class Students:
    """Measures architectures as models of their own.

    Args:
        dense: the model.
        recovery: what is done before a measurement; None measures models as they are pruned.
        draw: draws items of tasks by split that are answered instead of reading a text; None reads.
    """

    def __init__(self, dense: DenseModel, recovery: ShortRecipe | None, draw: Callable[[], Aim] | None) -> None:
        self.recovery = recovery
        self._dense, self._draw = dense, draw
        self._recovering: ShortRecovery | None = None
        self._answered: dict[str, ItemReference] = {}

    @functools.cached_property
    def aim(self) -> Aim | None:
        """What models are to answer where a search chooses."""
        return None if self._draw is None else self._draw()

    def answer(self, split: str) -> bool:
        """Return whether models answer items instead of reading a split."""
        return self._draw is not None and split in SEARCHED

    def recover(self, split: str) -> bool:
        """Return whether models are recovered before they are measured on a split: where a search chooses by it.

        The beginnings of splits rank sub-blocks alone, which lose too little to get anything back; what is reported is
        what is exported.
        """
        return self.recovery is not None and split in SEARCHED

    def protocol(self, split: str, criterion: Criterion, calibration: str) -> Protocol:
        """Return the protocol of measurements on a split whose items are answered.

        Args:
            split: one that is.
            criterion: by which models are pruned.
            calibration: fingerprint of the calibration set.
        """
        assert self.aim is not None
        items = self.aim.items[split]
        return Protocol(
            weights_hash=self._dense.weights_hash,
            text=items.fingerprint,
            text_source=items.title,
            split=split,
            tokens=items.tokens,
            sequence_length=items.longest,
            criterion=str(criterion),
            calibration=calibration,
            dtype=self._dense.dtype,
            divergence=self.aim.loss,
            recovery=str(self.recovery) if self.recovery else "none",
        )

    def again(self) -> None:
        """Forget what was prepared for recovery, where the calibration set changes."""
        self._recovering = None

    def measure(
        self,
        surgeon: Surgeon,
        architecture: Architecture,
        protocol: Protocol,
        reference: Callable[[], Reference],
        estimated: bool,
        calibration: Tensor,
    ) -> Measurement:
        """Measure an architecture.

        Args:
            surgeon: of the dense model; the architecture stays installed.
            architecture: what to measure.
            protocol: of the split.
            reference: the dense model's predictions on the split, where it is read.
            estimated: whether the quicker loss is taken there.
            calibration: (sequences, sequence_length) token ids that a recovery learns from.
        """
        started = time.perf_counter()
        score, units = self._scorer(surgeon, protocol.split, reference, estimated)
        if self.recovery is not None and self._recovering is None:
            surgeon.restore()
            self._recovering = ShortRecovery(self._dense, calibration, self.recovery)
        surgeon.install(architecture)
        student = student_of(self._dense, architecture)
        with self._recovering.recovered(student) if self._recovering else contextlib.nullcontext():
            scores = score(student)
        found = Measurement.from_scores(scores, units, protocol, time.perf_counter() - started)
        return replace(found, tokens=protocol.tokens)

    def _scorer(
        self, surgeon: Surgeon, split: str, reference: Callable[[], Reference], estimated: bool
    ) -> tuple[Callable[[DenseModel], TokenScores], int]:
        """Return what scores a model on a split, and of how many sequences or items."""
        if not self.answer(split):
            known = reference()
            return lambda student: score_tokens(student, known, EAGER, estimated), len(known.tokens)
        assert self.aim is not None
        if split not in self._answered:
            surgeon.restore()
            self._answered[split] = self.aim.reference(self._dense, split)
        return self._answered[split].scores, len(self.aim.items[split].choices)
