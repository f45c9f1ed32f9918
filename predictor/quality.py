"""How good a predictor is on pairs that it has not seen."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
from scipy.stats import kendalltau, spearmanr
from sklearn.model_selection import KFold

from predictor.boosting import BoostedModel
from predictor.dataset import FloatArray
from space import PredictorError

FOLDS = 10  # each fold's model then has nearly as many pairs as the final one


@dataclass(frozen=True, slots=True)
class Quality:
    """Held-out quality by K-fold cross-validation; rank correlations are 1 for a perfect order, 0 for a random one."""

    kendall_tau: float
    spearman: float
    rmse_log: float  # root mean square error of the natural logarithm, 0.1 is about 10 %
    kendall_tau_best_quarter: float  # among the quarter with the least measured damage, where a search ends
    prior_kendall_tau: float  # of the additive prior alone, on the same pairs
    pairs: int
    folds: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a quality from `to_dict`.

        Raises:
            PredictorError: a field is missing or unknown.
        """
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise PredictorError(
                f"A quality must have exactly the fields of this version, but these differ: "
                f"{', '.join(sorted(names ^ set(values)))}; fit the predictor again."
            )
        return cls(**values)


def cross_validate(x: FloatArray, log_values: FloatArray, seed: int, folds: int = FOLDS) -> tuple[Quality, FloatArray]:
    """Predict each pair by a model that has not seen it.

    Args:
        x: (pairs, features), the logarithm of the prior first.
        log_values: (pairs,) natural logarithms of the measured values.
        seed: of the folds and of each fold's trees.
        folds: number of folds, at most the number of pairs.

    Returns:
        The quality, and the held-out residuals (pairs,), measured less predicted, in natural logarithms.
    """
    predicted = np.empty_like(log_values)
    for train, test in KFold(folds, shuffle=True, random_state=seed).split(x):
        predicted[test] = BoostedModel.fit(x[train], log_values[train], seed).predict(x[test])
    best = log_values <= np.quantile(log_values, 0.25)
    quality = Quality(
        kendall_tau=_number(kendalltau(predicted, log_values).statistic),
        spearman=_number(spearmanr(predicted, log_values).statistic),
        rmse_log=float(np.sqrt(np.mean((predicted - log_values) ** 2))),
        kendall_tau_best_quarter=_number(kendalltau(predicted[best], log_values[best]).statistic),
        prior_kendall_tau=_number(kendalltau(x[:, 0], log_values).statistic),
        pairs=len(log_values),
        folds=folds,
        seed=seed,
    )
    return quality, log_values - predicted


def half_width(residuals: FloatArray, coverage: float) -> float:
    """Return the half width of the conformal interval, in the unit of the residuals.

    Args:
        residuals: (pairs,) held-out.
        coverage: share of new values that the interval is to contain.

    Source: split conformal prediction (arXiv 2107.07511): the ceil((n + 1) coverage)-th smallest absolute
    residual; with cross-validation in place of the split, the guarantee is approximate (arXiv 1905.02928).
    """
    ordered = np.sort(np.abs(residuals))
    return float(ordered[min(math.ceil((len(ordered) + 1) * coverage), len(ordered)) - 1])


def _number(value: Any) -> float:
    """Return a correlation, 0 where it is undefined because all values are equal."""
    return float(value) if math.isfinite(value) else 0.0
