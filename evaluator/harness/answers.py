"""What a model answered, item by item, and what follows from it: accuracies with errors, and paired differences."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from scipy.stats import binomtest, norm

from space import MeasurementError


@dataclass(frozen=True, slots=True)
class Protocol:
    """What the answers of a model to a task depend on."""

    weights_hash: str
    dtype: str
    tokenizer: str  # fingerprint
    task: str
    requests: str  # fingerprint of every prompt and continuation: items, few-shot examples, wording
    shots: int
    items: int
    of: int  # items that the task has
    seed: int | None  # of the sample; None where all were asked
    harness: str  # version of lm-eval
    version: int = 1  # of this code; raised when the same requests would be answered otherwise


@dataclass(frozen=True, slots=True)
class Answers:
    """A model's answers to the items of a task.

    Args:
        protocol: how they came about.
        items: what identifies each, the same for every model.
        scores: by metric, one for each item, 0 to 1.
        loglikelihoods: of multiple choice, of each item's choices, nats.
        gold: of multiple choice, which is right.
        cut: continuations whose context was cut off at the beginning to fit.
        tokens: that went through the model.
        wall_seconds: that they took.
    """

    protocol: Protocol
    items: tuple[str, ...]
    scores: dict[str, tuple[float, ...]]
    loglikelihoods: tuple[tuple[float, ...], ...] = ()
    gold: tuple[int, ...] = ()
    cut: int = 0
    tokens: int = 0
    wall_seconds: float = 0.0

    def of(self, metric: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the scores of a metric (items,).

        Raises:
            MeasurementError: the task has no such metric.
        """
        if metric not in self.scores:
            raise MeasurementError(
                f"A metric of {self.protocol.task} must be one of {', '.join(self.scores)}, but is {metric!r}; ask for "
                "another task."
            )
        return np.array(self.scores[metric])

    def save(self, file: Path) -> None:
        """Write beside, then rename."""
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f".{file.name}.partial")
        beside.write_text(json.dumps(asdict(self)), encoding="utf-8")
        beside.replace(file)

    @classmethod
    def load(cls, file: Path, protocol: Protocol) -> Self | None:
        """Return what is kept in a file of a protocol; None where there is nothing, or nothing whole."""
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            if values.pop("protocol") != asdict(protocol):
                return None
            return cls(
                protocol,
                tuple(values["items"]),
                {name: tuple(own) for name, own in values["scores"].items()},
                tuple(map(tuple, values["loglikelihoods"])),
                tuple(values["gold"]),
                int(values["cut"]),
                int(values["tokens"]),
                float(values["wall_seconds"]),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over items or tasks, and its standard error."""

    value: float
    standard_error: float
    items: int


@dataclass(frozen=True, slots=True)
class Score:
    """A model's accuracy in a task, or in a group of them by items.

    Args:
        task: as it was asked for.
        metric: what counts.
        parts: the answers, of several tasks where a group was asked for.
        of: items that there are in all.
    """

    task: str
    metric: str
    parts: tuple[Answers, ...]
    of: int

    @property
    def values(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """One for each item."""
        return np.concatenate([part.of(self.metric) for part in self.parts])

    @property
    def items(self) -> tuple[str, ...]:
        """What identifies each."""
        return tuple(item for part in self.parts for item in part.items)

    @property
    def accuracy(self) -> Estimate:
        """The mean over items."""
        return mean_of(self.values)

    @property
    def chance(self) -> float | None:
        """What guessing would reach, where the task is multiple choice."""
        shares = [1 / len(choices) for part in self.parts for choices in part.loglikelihoods]
        return float(np.mean(shares)) if shares else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, items left out."""
        found = self.accuracy
        return {
            "task": self.task,
            "metric": self.metric,
            "accuracy": found.value,
            "standard_error": found.standard_error,
            "items": found.items,
            "of": self.of,
            "chance": self.chance,
            "others": {
                name: mean_of(np.concatenate([part.of(name) for part in self.parts])).value
                for name in self.parts[0].scores
                if name != self.metric and all(name in part.scores for part in self.parts)
            },
            "shots": self.parts[0].protocol.shots,
            "seed": self.parts[0].protocol.seed,
            "cut": sum(part.cut for part in self.parts),
            "tokens": sum(part.tokens for part in self.parts),
            "wall_seconds": round(sum(part.wall_seconds for part in self.parts), 1),
        }


@dataclass(frozen=True, slots=True)
class Difference:
    """What one model scores less what another does on the same items.

    Args:
        value: the difference.
        standard_error: of it, paired by items.
        p: how likely one as far from 0 would be if the two were equal: of one task by the exact test of McNemar, of a
            mean over tasks by the normal distribution.
    """

    value: float
    standard_error: float
    p: float


def mean_of(values: np.ndarray[Any, np.dtype[np.float64]]) -> Estimate:
    """Return the mean of item scores (items,) and its standard error."""
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return Estimate(float(values.mean()), error, len(values))


def mean_over(scores: Sequence[Score]) -> Estimate:
    """Return the mean over tasks, each weighing the same, and its standard error over items."""
    return _mean([score.accuracy for score in scores])


def mean_flips(ones: Sequence[Score], others: Sequence[Score]) -> Estimate:
    """Return which share of items only one of two models answers rightly, as a mean over tasks.

    What one model loses and gains cancels in an accuracy and adds up here ("Accuracy is Not All You Need", arXiv
    2407.09141). Where scores are between 0 and 1 it is their mean absolute difference.

    Raises:
        MeasurementError: the two are not of the same items.
    """
    return _mean([mean_of(np.abs(_paired(one, other))) for one, other in zip(ones, others, strict=True)])


def _mean(found: Sequence[Estimate]) -> Estimate:
    error = math.sqrt(sum(each.standard_error**2 for each in found)) / len(found)
    return Estimate(float(np.mean([each.value for each in found])), error, sum(each.items for each in found))


def less(one: Score, other: Score) -> Difference:
    """Return one model's score less another's, paired by items.

    Raises:
        MeasurementError: the two are not of the same items.
    """
    difference = _paired(one, other)
    found = mean_of(difference)
    ups, downs = int((difference > 0).sum()), int((difference < 0).sum())
    p = float(binomtest(ups, ups + downs).pvalue) if ups + downs else 1.0
    return Difference(found.value, found.standard_error, p)


def mean_less(ones: Sequence[Score], others: Sequence[Score]) -> Difference:
    """Return the mean over tasks of one model's scores less another's, paired by items.

    Raises:
        MeasurementError: the two are not of the same items.
    """
    found = _mean([mean_of(_paired(one, other)) for one, other in zip(ones, others, strict=True)])
    value, error = found.value, found.standard_error
    return Difference(value, error, float(2 * norm.sf(abs(value) / error)) if error else 1.0)


def _paired(one: Score, other: Score) -> np.ndarray[Any, np.dtype[np.float64]]:
    if one.items != other.items:
        raise MeasurementError(
            f"Two models must answer the same items to be compared, but of {one.task} they answered other ones; "
            "evaluate both with one limit and seed."
        )
    return np.asarray(one.values - other.values)
