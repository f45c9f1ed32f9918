"""Where measured pairs become a predictor, and a predictor becomes something to search on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from evaluator import Pair, Slopes, Stream
from predictor import (
    AccuracyPredictor,
    AdditivePrior,
    Expansion,
    ResidualStream,
    Target,
    expect_elsewhere,
)
from search.proposals import Score
from space import Architecture, Indices, PredictorError, SearchSpace, genes_of


def fit_pairs(
    space: SearchSpace,
    pairs: Sequence[Pair],
    protocol: str,
    seed: int,
    slopes: Sequence[Slopes] = (),
    stream: ResidualStream | None = None,
    target: Literal["kl", "perplexity"] = "kl",
    alone: Sequence[Pair] = (),
    name: str | None = None,
) -> AccuracyPredictor:
    """Fit a predictor on measured pairs of one protocol: the one place where the data crosses over.

    Args:
        space: whose layout the pairs are of.
        pairs: measured under `protocol`.
        protocol: its fingerprint.
        seed: of folds and trees.
        slopes: of the KL, taken at some of the architectures under the same protocol.
        stream: how the dense model's residual stream moves on the same text.
        target: what to predict; for perplexity the dense model must be among the pairs, and among those of `alone`.
        alone: sub-blocks measured alone under another protocol, as on the beginning of the text; without them those
            among the pairs make the prior.
        name: of what was measured; None for KL.

    Raises:
        PredictorError: the pairs cannot carry a predictor.
    """
    what, values = _targeted(space, pairs, target, name)
    prior = None
    if alone:
        other, found = _targeted(space, alone, target)
        damages = other.damage(np.array(found)).tolist()
        prior = AdditivePrior.from_pairs(space.layout, [pair.architecture for pair in alone], damages)
    return AccuracyPredictor.fit(
        space.layout,
        [pair.architecture for pair in pairs],
        values,
        target=what,
        protocol=protocol,
        expansions=[expansion_of(space, each) for each in slopes] if target == "kl" else [],
        stream=stream,
        prior=prior,
        seed=seed,
    )


def _targeted(
    space: SearchSpace, pairs: Sequence[Pair], target: Literal["kl", "perplexity"], name: str | None = None
) -> tuple[Target, list[float]]:
    """Return what is predicted and its measured values (pairs,)."""
    if target == "kl":
        return Target(name=name), [pair.measurement.kl for pair in pairs]
    dense = Architecture.dense(space.layout)
    own = next((pair.measurement.perplexity for pair in pairs if pair.architecture == dense), None)
    if own is None:
        raise PredictorError(
            "A predictor of perplexity must know the dense model's, but it is not among the pairs; measure it."
        )
    return Target("perplexity", own), [pair.measurement.perplexity for pair in pairs]


def stream_of(stream: Stream) -> ResidualStream:
    """Return how the residual stream moves as the predictor takes it."""
    return ResidualStream(np.array(stream.displacement), np.array(stream.overlap))


def expansion_of(space: SearchSpace, slopes: Slopes) -> Expansion:
    """Return what slopes say of an architecture's surroundings."""
    return Expansion(space.layout, slopes.architecture, slopes.kl, slopes.widths, slopes.sparsities)


def additive_prior(space: SearchSpace, pairs: Sequence[Pair]) -> AdditivePrior:
    """Return the additive prior that a run's pairs of single changes make."""
    return AdditivePrior.from_pairs(
        space.layout, [pair.architecture for pair in pairs], [pair.measurement.kl for pair in pairs]
    )


@dataclass(frozen=True)
class Elsewhere:
    """What KL to expect on other text than the one it was measured on.

    Args:
        measured: the additive prior as measured.
        expected: the same on other text, see `predictor.shrinkage`.
    """

    measured: AdditivePrior
    expected: AdditivePrior

    @classmethod
    def from_pairs(cls, space: SearchSpace, pairs: Sequence[Pair], sequences: int, shift: float) -> Self:
        """Learn from a run's pairs of single changes.

        Args:
            space: whose layout the pairs are of.
            pairs: measured under one protocol.
            sequences: of its text.
            shift: how much the other text differs, see `predictor.shrinkage`.
        """
        prior = additive_prior(space, pairs)
        values = [np.reshape(pair.measurement.kl_blocks, (sequences, -1)).mean(axis=1) for pair in pairs]
        expected = expect_elsewhere(prior, [pair.architecture for pair in pairs], np.array(values), shift)
        return cls(prior, expected)

    @classmethod
    def alike(cls, space: SearchSpace) -> Self:
        """Expect on other text what was measured: nothing is known of sub-blocks alone."""
        nothing = ((),) * (2 * space.layout.layers)
        prior = AdditivePrior(space.layout, nothing, nothing)
        return cls(prior, prior)

    def factor(self, genes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return by what the KL of architectures, as genes (architectures, layers, 4), is to be multiplied."""
        if self.measured == self.expected:
            return np.ones(len(genes))
        measured, expected = (prior.terms(genes).sum(axis=1) for prior in (self.measured, self.expected))
        factor: NDArray[np.float64] = np.divide(expected, measured, out=np.ones_like(measured), where=measured > 0)
        return factor

    def expect(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Return pairs with the KL to expect elsewhere in place of the measured one."""
        genes = genes_of(pair.architecture for pair in pairs)
        return [
            replace(pair, measurement=replace(pair.measurement, kl=float(pair.measurement.kl * factor)))
            for pair, factor in zip(pairs, self.factor(genes), strict=True)
        ]


def predictor_score(space: SearchSpace, predictor: AccuracyPredictor, elsewhere: Elsewhere) -> Score:
    """Return a predictor as a score of encoded architectures: the KL to expect on other text."""

    def score(indices: Indices) -> NDArray[np.float64]:
        genes = space.genes(indices)
        return predictor.damages(genes) * elsewhere.factor(genes)

    return score
