"""The regressors that a predictor chooses from, behind one small protocol.

Notation: y is a measured damage, for KL in nats per token; x are the features of an architecture
(`predictor.features`), x_0 the logarithm of its prior, then the other aggregates, then one column per sub-block.
"""

from collections.abc import Mapping
from typing import Any, Protocol, Self

import numpy as np

from predictor.boosting import HistGradientBoosting, XGBoost
from predictor.dataset import FloatArray
from predictor.gaussian import GaussianProcess
from predictor.linear import Additive, Ridge


class Regressor(Protocol):
    """Learns the logarithm of a damage."""

    @classmethod
    def fit(cls, x: FloatArray, log_values: FloatArray, aggregates: int, seed: int) -> Self:
        """Fit the regressor.

        Args:
            x: (pairs, features).
            log_values: (pairs,) natural logarithms of the damages.
            aggregates: how many of the first columns are aggregates; each of the others is of one sub-block.
            seed: of all draws.
        """

    def predict(self, x: FloatArray) -> FloatArray:
        """Return the predicted logarithms (n,) for features (n, features)."""

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return all that `from_arrays` needs, as arrays by name: what is saved, so that no pickle is."""

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Self:
        """Rebuild a fitted regressor from `to_arrays`."""


# In the order in which they are preferred where cross-validation sees no difference.
REGRESSORS: dict[str, type[Regressor]] = {
    "xgboost": XGBoost,
    "gaussian_process": GaussianProcess,
    "hist_gradient_boosting": HistGradientBoosting,
    "ridge": Ridge,
    "additive": Additive,
}
DEFAULT = "xgboost"
