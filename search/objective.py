"""Where measured pairs become a predictor, and a predictor becomes something to search on."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluator import Pair
from predictor import AccuracyPredictor, AdditivePrior
from search.proposals import Score
from space import Indices, SearchSpace


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


def predictor_score(space: SearchSpace, predictor: AccuracyPredictor) -> Score:
    """Return a predictor as a score of encoded architectures."""

    def score(indices: Indices) -> NDArray[np.float64]:
        return predictor.predict_genes(space.genes(indices)).value

    return score
