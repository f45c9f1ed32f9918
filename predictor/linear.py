"""Linear regressors: the prior alone, and a ridge regression on what a line through the prior leaves.

    log y = a + x_0                                     the prior alone
    log y = a + b x_0 + w (x - mean) / scale            a and b a robust line (Theil-Sen), w a ridge regression

Notation as in `predictor.regressors`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from scipy.stats import theilslopes
from sklearn.linear_model import RidgeCV

from predictor.dataset import FloatArray

_PENALTIES = tuple(np.logspace(-1, 3, 9))
# The ridge sees single sub-blocks at a tenth of the aggregates' scale: there are many, each with little evidence.
_SUB_BLOCK_SCALE = 0.1
_MOST_SLOPES = 1000  # pairs that the robust line is drawn through: its time grows with their square


@dataclass(frozen=True)
class Line:
    """An intercept and one weight per feature."""

    intercept: float
    weights: FloatArray  # (features,)

    def predict(self, x: FloatArray) -> FloatArray:
        """Return the predicted logarithms (n,) of features (n, features)."""
        # Not `@`: a matrix product may sum in another order on another machine or for another n.
        return np.asarray(self.intercept + np.einsum("ij,j->i", x, self.weights))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return what `from_arrays` needs."""
        return {"intercept": np.array([self.intercept]), "weights": self.weights}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Self:
        """Rebuild a line from `to_arrays`."""
        return cls(float(arrays["intercept"][0]), np.asarray(arrays["weights"], dtype=np.float64))


class Additive(Line):
    """The prior alone, times a constant."""

    @classmethod
    def fit(cls, x: FloatArray, log_values: FloatArray, aggregates: int, seed: int) -> Self:
        """Fit the constant; see `predictor.regressors.Regressor`."""
        weights = np.zeros(x.shape[1])
        weights[0] = 1.0
        return cls(float(np.median(log_values - x[:, 0])), weights)


class Ridge(Line):
    """The robust line and the ridge regression."""

    @classmethod
    def fit(cls, x: FloatArray, log_values: FloatArray, aggregates: int, seed: int) -> Self:
        """Fit line and ridge; see `predictor.regressors.Regressor`."""
        prior = x[:, 0]
        # More damage in every part is never less damage in all, so the line does not fall.
        few = np.random.default_rng(seed).permutation(len(x))[:_MOST_SLOPES] if len(x) > _MOST_SLOPES else slice(None)
        slope = max(float(theilslopes(log_values[few], prior[few]).slope), 0.0) if np.ptp(prior) > 1e-9 else 1.0
        intercept = float(np.median(log_values - slope * prior))
        spread = x.std(axis=0)
        scale = np.where(spread > 1e-9, spread, np.inf)  # a constant feature gets no weight
        scale[aggregates:] /= _SUB_BLOCK_SCALE
        mean = x.mean(axis=0)
        ridge = RidgeCV(alphas=_PENALTIES).fit((x - mean) / scale, log_values - intercept - slope * prior)
        weights = np.asarray(ridge.coef_, dtype=np.float64) / scale
        intercept += float(ridge.intercept_) - float(weights @ mean)
        weights[0] += slope
        return cls(intercept, weights)
