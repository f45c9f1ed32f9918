"""Where the next measurements teach most: promise and ignorance weighed, and no two of a batch that tell the same."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from predictor.accuracy import AccuracyPredictor
from predictor.dataset import FloatArray
from space import PredictorError


@dataclass(frozen=True)
class Pick:
    """One of a batch.

    Args:
        index: of the candidate.
        improvement: expected improvement over the best measured, in the unit of what is learned (for KL of its
            logarithm: 0.01 is 1 %).
        spread: standard deviation that is left of the candidate's prediction when those picked before are known.
    """

    index: int
    improvement: float
    spread: float


def choose_batch(
    predictor: AccuracyPredictor,
    genes: FloatArray,
    count: int,
    best: float | FloatArray,
    factor: FloatArray | None = None,
    within: NDArray[np.bool_] | None = None,
) -> list[Pick]:
    """Return which candidates to measure next, the most useful first.

    Each is the one of the highest expected improvement, where the variance of the others has shrunk as if those chosen
    before had been measured and had been as predicted.

    Under several budgets the improvement is the mean over them of that on the best within each, where what was chosen
    before counts as the best: so a batch is spread over the budgets. With budgets drawn evenly from a range, that is
    the expected improvement of the hypervolume, KL by its logarithm.

    Args:
        predictor: fitted on what is measured so far.
        genes: (candidates, layers, genes), within the budget; some thousand at most.
        count: how many to choose.
        best: lowest damage measured within the budget so far, times its factor; under several budgets (budgets,).
        factor: (candidates,) by what damages are multiplied before they are compared; None is 1.
        within: (candidates, budgets) which candidate is within which of several budgets; None where there is one.

    Raises:
        PredictorError: as `AccuracyPredictor.predict`; or factors of a target that has none.

    Source: Jones, Schonlau and Welch, Efficient global optimization (1998), equation 15, for the improvement;
    Ginsbourger et al., Kriging is well-suited to parallelize optimization (2010), for the batch; Emmerich, Giannakoglou
    and Naujoks, Single- and multiobjective evolutionary optimization assisted by Gaussian random field metamodels
    (2006), for the hypervolume.
    """
    value, covariance, noise = predictor.belief(genes)
    if factor is not None:
        if not predictor.target.logarithmic:
            raise PredictorError(
                f"Factors must be of a target that is learned by its logarithm, but this one is "
                f"{predictor.target.title}; leave them out."
            )
        value = value + np.log(factor)
    levels = predictor.target.learned(np.atleast_1d(np.asarray(best, dtype=np.float64)))
    inside = np.ones((len(value), len(levels)), dtype=bool) if within is None else within
    open_ = np.ones(len(value), dtype=bool)
    picks = []
    for _ in range(min(count, len(value))):
        spread = np.sqrt(np.maximum(np.diag(covariance), 1e-12))
        gain = (levels - value[:, None]) / spread[:, None]
        under_each = np.where(inside, spread[:, None] * (gain * norm.cdf(gain) + norm.pdf(gain)), 0.0)
        improvement = np.where(open_, under_each.mean(axis=1), -np.inf)
        index = int(improvement.argmax())
        picks.append(Pick(index, float(improvement[index]), float(spread[index])))
        open_[index] = False
        if within is not None:
            levels = np.where(within[index], np.minimum(levels, value[index]), levels)
        column = covariance[:, index]
        covariance = covariance - np.outer(column, column) / (covariance[index, index] + noise)
    return picks
