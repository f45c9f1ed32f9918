"""What a fit does: checks what it is given, makes the prior, judges slopes, and chooses the regressor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from predictor.dataset import FloatArray, Pairs, blocks_alone, singles
from predictor.expansion import Expansion, Surroundings, surroundings
from predictor.features import aggregate_names
from predictor.gaussian import GaussianProcess
from predictor.given import by_fingerprint, check_expansions, few_damages, seen
from predictor.intervals import Intervals, interval_around
from predictor.prior import AdditivePrior
from predictor.quality import AS_GOOD, HeldOut, Quality, cross_validate
from predictor.regressors import REGRESSORS, Regressor
from predictor.stream import ResidualStream
from predictor.targets import Target
from space import Architecture, Layout, PredictorError

_CLOSE = 0.25  # of the pairs, by which slopes are judged,
_JUDGE = ("gaussian_process",)  # and what judges them


@dataclass(frozen=True)
class Fit:
    """What was made of the pairs; see `AccuracyPredictor`."""

    prior: AdditivePrior
    regressor: Regressor
    process: GaussianProcess
    quality: Quality
    intervals: Intervals
    expansions: tuple[Expansion, ...]  # those that were kept
    held_out: Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True)
class _Problem:
    """What regressors are fitted on: the pairs that change more than one sub-block, and what is known beside them."""

    pairs: Pairs
    prior: AdditivePrior
    target: Target
    few: FloatArray | None  # damages (pairs,) on few tokens
    expansions: tuple[Expansion, ...]
    stream: ResidualStream | None
    seed: int

    @cached_property
    def learned(self) -> FloatArray:
        return self.target.learned(self.target.damage(self.pairs.values))

    @cached_property
    def features(self) -> FloatArray:
        around = Surroundings(self.expansions, self.prior) if self.expansions else None
        return seen(self.prior, around, self.target, self.pairs.genes, self.few, self.stream)

    @property
    def aggregates(self) -> int:
        return len(aggregate_names(self.few is not None, bool(self.expansions), self.stream is not None))

    def validate(self, names: Sequence[str], judged: NDArray[np.bool_]) -> HeldOut:
        additive = self.prior.terms(self.pairs.genes).sum(axis=1)
        return cross_validate(self.features, self.learned, self.aggregates, self.seed, names, additive, judged)


def fit(
    layout: Layout,
    architectures: Sequence[Architecture],
    values: Sequence[float],
    target: Target,
    few_tokens: Sequence[float] | None,
    expansions: tuple[Expansion, ...],
    stream: ResidualStream | None,
    prior: AdditivePrior | None,
    seed: int,
    regressors: Sequence[str],
) -> Fit:
    """Fit all that a predictor is made of; arguments and errors are those of `AccuracyPredictor.fit`."""
    check_expansions(expansions, layout, target)
    if prior is not None and prior.layout != layout:
        raise PredictorError(
            "An additive prior must be of the model that a predictor is fitted for, but is of another; measure its "
            "sub-blocks alone."
        )
    if stream is not None:
        stream.check(layout)
    pairs = Pairs.check(layout, architectures, values)
    target.check(pairs.values.tolist(), pairs.fingerprints)
    few = by_fingerprint(architectures, few_tokens)
    alone = singles(layout, pairs.genes) | blocks_alone(layout, pairs.genes)
    others = pairs.where(~alone)
    others.check_trainable()
    if prior is None:
        prior = _prior_of(layout, pairs, target, bool(alone.any()))
    own = None if few is None else few_damages(target, [few[name] for name in others.fingerprints])
    problem = _Problem(others, prior, target, own, expansions, stream, seed)
    # Where slopes were taken, the measurement itself is among the features.
    known = {expansion.architecture.fingerprint for expansion in expansions}
    judged = np.array([name not in known for name in others.fingerprints])
    if expansions:
        problem = replace(problem, expansions=_judged(problem, judged))
    return _chosen(problem, problem.validate(regressors, judged), known)


def _prior_of(layout: Layout, pairs: Pairs, target: Target, measured_alone: bool) -> AdditivePrior:
    """Return the prior that the pairs make, an assumed one where no sub-block was measured alone."""
    make = AdditivePrior.from_genes if measured_alone else AdditivePrior.assumed
    return make(layout, pairs.genes, target.damage(pairs.values))


def _judged(problem: _Problem, judged: NDArray[np.bool_]) -> tuple[Expansion, ...]:
    """Return the expansions with which the pairs closest to them are predicted best: all, that at the best, or none.

    The first of those between which there is no difference. Where much is taken away, a first-order change may say
    little of a whole step, and one that was taken far from the best less than nothing.
    """
    genes = problem.pairs.genes
    distance = surroundings(problem.expansions, problem.prior, genes, problem.prior.terms(genes))[:, 1]
    close = judged & (distance <= np.quantile(distance[judged], _CLOSE))
    best = min(problem.expansions, key=lambda each: each.damage)
    tried: list[tuple[Expansion, ...]] = [problem.expansions, (best,), ()]
    errors = [replace(problem, expansions=own).validate(_JUDGE, judged).error(close) for own in tried]
    return next(own for own, error in zip(tried, errors, strict=True) if error <= AS_GOOD * min(errors))


def _chosen(problem: _Problem, found: HeldOut, known: set[str]) -> Fit:
    """Fit what cross-validation chose on all pairs."""
    x, y, aggregates, seed = problem.features, problem.learned, problem.aggregates, problem.seed
    regressor = REGRESSORS[found.quality.regressor].fit(x, y, aggregates, seed)
    process = regressor if isinstance(regressor, GaussianProcess) else GaussianProcess.fit(x, y, aggregates, seed)
    predicted = y - found.residuals
    told = interval_around(problem.target, predicted, found.intervals.factor(predicted) * found.spreads)
    rows = zip(told.value.tolist(), told.lower.tolist(), told.upper.tolist(), strict=True)
    held_out = {name: row for name, row in zip(problem.pairs.fingerprints, rows, strict=True) if name not in known}
    return Fit(problem.prior, regressor, process, found.quality, found.intervals, problem.expansions, held_out)
