"""Where measured pairs become a predictor, and a predictor becomes something to search on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from evaluator import Pair
from predictor import AccuracyPredictor, AdditivePrior, expect_elsewhere
from search.proposals import Score
from space import Indices, SearchSpace, genes_of


def fit_pairs(space: SearchSpace, pairs: Sequence[Pair], protocol: str, seed: int) -> AccuracyPredictor:
    """Fit a predictor of KL on measured pairs of one protocol: the one place where the data crosses over.

    Args:
        space: whose layout the pairs are of.
        pairs: measured under `protocol`.
        protocol: its fingerprint.
        seed: of folds and trees.

    Raises:
        PredictorError: the pairs cannot carry a predictor.
    """
    return AccuracyPredictor.fit(
        space.layout,
        [pair.architecture for pair in pairs],
        [pair.measurement.kl for pair in pairs],
        protocol=protocol,
        seed=seed,
    )


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

    def factor(self, genes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return by what the KL of architectures, as genes (architectures, layers, 4), is to be multiplied."""
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
        return predictor.predict_genes(genes).value * elsewhere.factor(genes)

    return score
