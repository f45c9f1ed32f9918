"""Boosted trees on what the additive prior misses.

The model of a value y with features x, of which x_0 is the logarithm of the additive prior:

    log y = a + b x_0 + w (x - mean) / scale + trees(x)

a and b are a robust line (Theil-Sen), w a ridge regression on what the line leaves, and both together are the trees'
base margin, so that the trees learn only what is left. On some hundred pairs the ridge carries smooth interactions and
the trees thresholds: on synthetic models either alone ranks worse on one of the two kinds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import xgboost
from scipy.stats import theilslopes
from sklearn.linear_model import RidgeCV

from predictor.dataset import FloatArray
from predictor.features import AGGREGATES
from space import PredictorError

# Chosen on synthetic models with 60 and 120 pairs: deeper trees and more rounds gain less than 0.002 Kendall tau.
ROUNDS = 100
PARAMETERS: dict[str, Any] = {
    "objective": "reg:squarederror",
    "base_score": 0.0,
    "booster": "gbtree",
    "tree_method": "hist",
    "max_depth": 2,
    "eta": 0.05,
    "subsample": 0.8,
    "colsample_bytree": 0.6,
    "min_child_weight": 3,
    "reg_lambda": 1.0,
    "nthread": 1,  # fixed, so that sums are taken in one order; more threads do not pay on few pairs
}
_PENALTIES = tuple(np.logspace(-1, 3, 9))
# The ridge sees single sub-blocks at a tenth of the aggregates' scale: there are many, each with little evidence.
_SUB_BLOCK_SCALE = 0.1


@dataclass(frozen=True)
class Margin:
    """The linear part of the model: intercept and one weight per feature, in natural logarithms."""

    intercept: float
    weights: tuple[float, ...]  # (features,)

    @classmethod
    def fit(cls, x: FloatArray, log_values: FloatArray) -> Self:
        """Fit the line and the ridge regression.

        Args:
            x: (pairs, features), the logarithm of the prior first.
            log_values: (pairs,).
        """
        log_prior = x[:, 0]
        # More damage in every part is never less damage in all, so the line does not fall.
        slope = max(float(theilslopes(log_values, log_prior).slope), 0.0) if np.ptp(log_prior) > 1e-9 else 1.0
        intercept = float(np.median(log_values - slope * log_prior))
        spread = x.std(axis=0)
        scale = np.where(spread > 1e-9, spread, np.inf)  # a constant feature gets no weight
        scale[len(AGGREGATES) :] /= _SUB_BLOCK_SCALE
        mean = x.mean(axis=0)
        ridge = RidgeCV(alphas=_PENALTIES).fit((x - mean) / scale, log_values - intercept - slope * log_prior)
        weights = np.asarray(ridge.coef_, dtype=np.float64) / scale
        intercept += float(ridge.intercept_) - float(weights @ mean)
        weights[0] += slope
        return cls(intercept, tuple(float(weight) for weight in weights))

    def __call__(self, x: FloatArray) -> FloatArray:
        """Return the margin (n,) of features (n, features)."""
        # Not `@`: a matrix product may sum in another order on another machine or for another n.
        return np.asarray(self.intercept + np.einsum("ij,j->i", x, np.array(self.weights)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"intercept": self.intercept, "weights": list(self.weights)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a margin from `to_dict`.

        Raises:
            PredictorError: a value is missing or not a number.
        """
        try:
            return cls(float(values["intercept"]), tuple(float(weight) for weight in values["weights"]))
        except (KeyError, TypeError, ValueError) as error:
            raise PredictorError(
                f"A margin must hold an intercept and weights, but does not ({error!r}); fit the predictor again."
            ) from None


@dataclass(frozen=True)
class BoostedModel:
    """Margin and trees: from features to the logarithm of the value."""

    margin: Margin
    trees: xgboost.Booster

    @classmethod
    def fit(cls, x: FloatArray, log_values: FloatArray, seed: int) -> Self:
        """Fit margin and trees.

        Args:
            x: (pairs, features), the logarithm of the prior first.
            log_values: (pairs,).
            seed: of the trees' row and column samples.
        """
        margin = Margin.fit(x, log_values)
        matrix = xgboost.DMatrix(x, log_values, base_margin=margin(x), nthread=PARAMETERS["nthread"])
        return cls(margin, xgboost.train({**PARAMETERS, "seed": seed}, matrix, num_boost_round=ROUNDS))

    def predict(self, x: FloatArray) -> FloatArray:
        """Return the predicted logarithms (n,) for features (n, features)."""
        if not len(x):
            return np.empty(0)
        # The trees' part alone is taken in float32; the margin stays in float64.
        matrix = xgboost.DMatrix(x, base_margin=np.zeros(len(x)), nthread=PARAMETERS["nthread"])
        return self.margin(x) + np.asarray(self.trees.predict(matrix), dtype=np.float64)

    def contributions(self, x: FloatArray) -> FloatArray:
        """Return what each feature adds to the logarithm: (n, features + 1), the last column is the constant.

        Source: Tree SHAP (arXiv 1802.03888) for the trees; the margin is linear.
        """
        matrix = xgboost.DMatrix(x, base_margin=np.zeros(len(x)), nthread=PARAMETERS["nthread"])
        parts = np.asarray(self.trees.predict(matrix, pred_contribs=True), dtype=np.float64)
        parts[:, :-1] += x * np.array(self.margin.weights)
        parts[:, -1] += self.margin.intercept
        return parts

    def trees_json(self) -> bytes:
        """Return the trees in XGBoost's own JSON format."""
        return bytes(self.trees.save_raw("json"))

    @classmethod
    def from_json(cls, margin: Margin, trees: bytes) -> Self:
        """Rebuild a model from its margin and `trees_json`.

        Raises:
            PredictorError: the trees are damaged or of another number of features.
        """
        booster = xgboost.Booster({"nthread": PARAMETERS["nthread"]})
        try:
            booster.load_model(bytearray(trees))
            count = booster.num_features()
        except xgboost.core.XGBoostError as error:
            raise PredictorError(
                f"The trees of a predictor must be XGBoost's JSON, but are not ({str(error).splitlines()[0]}); "
                "fit the predictor again."
            ) from None
        if count != len(margin.weights):
            raise PredictorError(
                f"The trees of a predictor must take its {len(margin.weights)} features, but take {count}; "
                "fit the predictor again."
            )
        return cls(margin, booster)
