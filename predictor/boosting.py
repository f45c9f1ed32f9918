"""Boosted trees on what the ridge regression leaves, by XGBoost or by scikit-learn.

The ridge regression is the trees' base margin, so that they learn only what is left: on some hundred pairs it carries
smooth interactions and the trees thresholds; on synthetic models either alone ranks worse on one of the two kinds.

Source: arXiv 2309.09507 for boosted trees as an accuracy predictor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import xgboost
from sklearn.ensemble import HistGradientBoostingRegressor

from predictor.dataset import FloatArray
from predictor.linear import Ridge
from space import PredictorError

# Chosen on synthetic models with 60 and 120 pairs: deeper trees and more rounds gain less than 0.002 Kendall tau.
ROUNDS, DEPTH, RATE, LEAST_IN_LEAF = 100, 2, 0.05, 3
MANY_PAIRS = 1000  # from which on interactions of more sub-blocks can be told from chance
_ROUNDS_OF_MANY, _DEPTH_OF_MANY, _RATE_OF_MANY = 300, 4, 0.1
PARAMETERS: dict[str, Any] = {
    "objective": "reg:squarederror",
    "base_score": 0.0,
    "booster": "gbtree",
    "tree_method": "hist",
    "subsample": 0.8,
    "colsample_bytree": 0.6,
    "min_child_weight": LEAST_IN_LEAF,
    "reg_lambda": 1.0,
    "nthread": 1,  # fixed, so that sums are taken in one order; more threads do not pay on few pairs
}
# More prior never means less damage: cross-validated Kendall tau rises by 0.002 on three measured spaces. Rising in
# every sub-block as well, it falls by 0.003: what a sub-block damages depends on the others.
_RISING = 0  # the feature that predictions never fall with
_ROWS = 256  # walked down at once, so that memory stays bounded
_NODE_FIELDS = ("value", "feature_idx", "num_threshold", "left", "right", "is_leaf")


def _size(pairs: int) -> tuple[int, int, float]:
    """Return rounds, depth and learning rate for so many pairs."""
    return (ROUNDS, DEPTH, RATE) if pairs < MANY_PAIRS else (_ROUNDS_OF_MANY, _DEPTH_OF_MANY, _RATE_OF_MANY)


@dataclass(frozen=True)
class XGBoost:
    """Ridge regression and XGBoost's trees."""

    ridge: Ridge
    trees: xgboost.Booster

    @classmethod
    def fit(cls, x: FloatArray, log_values: FloatArray, aggregates: int, seed: int) -> Self:
        """Fit both; see `predictor.regressors.Regressor`."""
        rounds, depth, rate = _size(len(x))
        ridge = Ridge.fit(x, log_values, aggregates, seed)
        matrix = xgboost.DMatrix(x, log_values, base_margin=ridge.predict(x), nthread=PARAMETERS["nthread"])
        rising = tuple(int(feature == _RISING) for feature in range(x.shape[1]))
        own = {**PARAMETERS, "seed": seed, "max_depth": depth, "eta": rate, "monotone_constraints": rising}
        return cls(ridge, xgboost.train(own, matrix, num_boost_round=rounds))

    def predict(self, x: FloatArray) -> FloatArray:
        """Return the predicted logarithms (n,) for features (n, features)."""
        if not len(x):
            return np.empty(0)
        # The trees' part alone is taken in float32; the ridge's stays in float64.
        trees = self.trees.inplace_predict(x, base_margin=np.zeros(len(x)))
        return self.ridge.predict(x) + np.asarray(trees, dtype=np.float64)

    def contributions(self, x: FloatArray) -> FloatArray:
        """Return what each feature adds to the logarithm: (n, features + 1), the last column is the constant.

        Source: Tree SHAP (arXiv 1802.03888) for the trees; the ridge regression is linear.
        """
        parts = np.asarray(self.trees.predict(_matrix(x), pred_contribs=True), dtype=np.float64)
        parts[:, :-1] += x * self.ridge.weights
        parts[:, -1] += self.ridge.intercept
        return parts

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the ridge's arrays, and the trees in XGBoost's own JSON as bytes."""
        return self.ridge.to_arrays() | {"trees": np.frombuffer(self.trees.save_raw("json"), dtype=np.uint8)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Self:
        """Rebuild both from `to_arrays`.

        Raises:
            PredictorError: the trees are damaged or of another number of features.
        """
        ridge = Ridge.from_arrays(arrays)
        booster = xgboost.Booster({"nthread": PARAMETERS["nthread"]})
        try:
            booster.load_model(bytearray(np.asarray(arrays["trees"], dtype=np.uint8).tobytes()))
            count = booster.num_features()
        except xgboost.core.XGBoostError as error:
            raise PredictorError(
                f"The trees of a predictor must be XGBoost's JSON, but are not ({str(error).splitlines()[0]}); "
                "fit the predictor again."
            ) from None
        if count != len(ridge.weights):
            raise PredictorError(
                f"The trees of a predictor must take its {len(ridge.weights)} features, but take {count}; "
                "fit the predictor again."
            )
        return cls(ridge, booster)


def _matrix(x: FloatArray) -> xgboost.DMatrix:
    return xgboost.DMatrix(x, base_margin=np.zeros(len(x)), nthread=PARAMETERS["nthread"])


@dataclass(frozen=True)
class HistGradientBoosting:
    """Ridge regression and scikit-learn's trees, kept as plain arrays: its own format is pickle, which runs code.

    Args:
        ridge: the margin.
        baseline: what all trees start from.
        nodes: by field, (nodes,) of all trees one after the other.
        roots: (trees,) the first node of each.
    """

    ridge: Ridge
    baseline: float
    nodes: Mapping[str, np.ndarray]
    roots: np.ndarray

    @classmethod
    def fit(cls, x: FloatArray, log_values: FloatArray, aggregates: int, seed: int) -> Self:
        """Fit both; see `predictor.regressors.Regressor`."""
        rounds, depth, rate = _size(len(x))
        ridge = Ridge.fit(x, log_values, aggregates, seed)
        model = HistGradientBoostingRegressor(
            max_iter=rounds,
            max_depth=depth,
            learning_rate=rate,
            min_samples_leaf=LEAST_IN_LEAF,
            l2_regularization=1.0,
            max_features=0.6,
            monotonic_cst=(np.arange(x.shape[1]) == _RISING).astype(int),
            early_stopping=False,
            random_state=seed,
        ).fit(x, log_values - ridge.predict(x))
        trees = [stage[0].nodes for stage in model._predictors]
        roots = np.concatenate([[0], np.cumsum([len(tree) for tree in trees])[:-1]]).astype(np.int64)
        nodes = {name: np.concatenate([tree[name] for tree in trees]) for name in _NODE_FIELDS}
        for side in ("left", "right"):  # within a tree; here among all
            nodes[side] = nodes[side].astype(np.int64) + np.repeat(roots, [len(tree) for tree in trees])
        nodes["feature_idx"] = nodes["feature_idx"].astype(np.int64)
        return cls(ridge, float(model._baseline_prediction.item()), nodes, roots)

    def predict(self, x: FloatArray) -> FloatArray:
        """Return the predicted logarithms (n,) for features (n, features)."""
        parts = [np.zeros(0), *(self._trees(x[first : first + _ROWS]) for first in range(0, len(x), _ROWS))]
        return np.asarray(self.ridge.predict(x) + self.baseline + np.concatenate(parts))

    def _trees(self, x: FloatArray) -> FloatArray:
        """Return the sum (n,) of all trees, which are walked down side by side."""
        features, thresholds, children, depth = self._steps
        flat, rows = np.ascontiguousarray(x).ravel(), np.arange(len(x))[:, None] * x.shape[1]
        at = np.tile(self.roots, (len(x), 1))
        for _ in range(depth):
            low = flat.take(features.take(at) + rows) <= thresholds.take(at)
            at += low * len(features)
            at = children.take(at)
        return np.asarray(self.nodes["value"].take(at).sum(axis=1))

    @cached_property
    def _steps(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Feature and threshold of each node, children (2 * nodes,), all right ones first, and how deep a tree is.

        A leaf is its own child.
        """
        leaf = self.nodes["is_leaf"].astype(bool)
        own = np.arange(len(leaf))
        children = np.concatenate([np.where(leaf, own, self.nodes[side]) for side in ("right", "left")])
        depth, reached = 0, self.roots
        while not leaf[reached].all():
            depth, reached = depth + 1, np.unique(children.reshape(2, -1)[:, reached])
        return np.where(leaf, 0, self.nodes["feature_idx"]), self.nodes["num_threshold"], children, depth

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the ridge's arrays and the nodes."""
        nodes = {f"nodes.{name}": values for name, values in self.nodes.items()}
        return self.ridge.to_arrays() | nodes | {"roots": self.roots, "baseline": np.array([self.baseline])}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Self:
        """Rebuild both from `to_arrays`."""
        nodes = {name: np.asarray(arrays[f"nodes.{name}"]) for name in _NODE_FIELDS}
        return cls(Ridge.from_arrays(arrays), float(arrays["baseline"][0]), nodes, np.asarray(arrays["roots"]))
