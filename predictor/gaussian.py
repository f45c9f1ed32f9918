"""A Gaussian process on what the prior misses: the best regressor on some hundred pairs, and a measure of ignorance.

Of a value y with features x, of which x_0 is the logarithm of the prior,

    log y = x_0 + c + g(z),    g ~ GP(0, a Matern(|z - z'| / length) + b z z') + noise

with z the features to scale. Unlike trees it takes damage to be a smooth function of what is kept, which some hundred
pairs are enough to learn, and its variance grows with the distance to what was measured.

Source: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), equations 2.25, 2.26 and 5.9.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular
from scipy.optimize import Bounds, minimize
from scipy.spatial.distance import cdist

from predictor.dataset import FloatArray

MOST_PAIRS = 2000  # time grows with the cube of the pairs; beyond, trees have enough to learn from
_TUNED_ON = 200  # pairs from which length and variances are read
_ROWS = 256  # of the features at once, whose covariances with some hundred pairs stay in a core's cache
_START = {"variance": 0.02, "length": 3.0, "slope": 0.02, "noise": 1e-3}  # where tuning starts, and stays within
_BOUNDS = {"variance": (1e-6, 1e2), "length": (0.1, 1e3), "slope": (1e-6, 1e2), "noise": (1e-6, 1.0)}
_ARRAYS = ("mean", "scale", "points", "weights", "factor")
_NUMBERS = ("constant", "variance", "length", "slope", "noise")


@dataclass(frozen=True)
class GaussianProcess:
    """A fitted process: its points, their weights, and the kernel.

    Args:
        mean: (features,) taken off.
        scale: (features,) divided by.
        points: (pairs, features), to scale.
        weights: (pairs,).
        factor: (pairs, pairs), the lower Cholesky factor of the points' covariance.
        constant: c.
        variance: a.
        length: of the Matern kernel with nu = 3/2.
        slope: b.
        noise: variance of the noise.
    """

    mean: FloatArray
    scale: FloatArray
    points: FloatArray
    weights: FloatArray
    factor: FloatArray
    constant: float
    variance: float
    length: float
    slope: float
    noise: float

    @classmethod
    def fit(
        cls, x: FloatArray, log_values: FloatArray, aggregates: int, seed: int, like: "GaussianProcess | None" = None
    ) -> Self:
        """Fit the process, to `MOST_PAIRS` pairs at random where there are more; see `regressors.Regressor`.

        Args:
            x: (pairs, features).
            log_values: (pairs,).
            aggregates: how many of the first columns are aggregates.
            seed: of the draws.
            like: a process whose kernel to take; None tunes one.
        """
        rng = np.random.default_rng(seed)
        if len(x) > MOST_PAIRS:
            rows = rng.permutation(len(x))[:MOST_PAIRS]
            x, log_values = x[rows], log_values[rows]
        mean, scale = x.mean(axis=0), _scale(x, aggregates)
        points = (x - mean) / scale
        missed = log_values - x[:, 0]
        constant = float(missed.mean())
        rows = rng.permutation(len(x))[:_TUNED_ON]
        variance, length, slope, noise = (
            _tuned(points[rows], missed[rows] - constant)
            if like is None
            else (like.variance, like.length, like.slope, like.noise)
        )
        own = _covariance(points, points, variance, length, slope)
        factor = cholesky(own + noise * np.eye(len(points)), lower=True)
        weights = cho_solve((factor, True), missed - constant)
        return cls(mean, scale, points, weights, factor, constant, variance, length, slope, noise)

    def predict(self, x: FloatArray) -> FloatArray:
        """Return the predicted logarithms (n,) for features (n, features)."""
        [missed] = self._by_rows(x, lambda rows, shared: (shared @ self.weights,))
        return np.asarray(x[:, 0] + self.constant + missed)

    def spread(self, x: FloatArray) -> FloatArray:
        """Return the standard deviation (n,) of a new measurement's logarithm, noise included."""
        [found] = self._by_rows(x, lambda rows, shared: (self._spread(rows, shared),))
        return found

    def predict_with_spread(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return what `predict` and `spread` do, both (n,), at the price of the latter."""
        missed, found = self._by_rows(x, lambda rows, shared: (shared @ self.weights, self._spread(rows, shared)))
        return np.asarray(x[:, 0] + self.constant + missed), found

    def _by_rows(
        self, x: FloatArray, ask: Callable[[FloatArray, FloatArray], tuple[FloatArray, ...]]
    ) -> list[FloatArray]:
        """Return what is asked of features to scale and of their covariance with the points, some rows at once."""
        starts = range(0, max(len(x), 1), _ROWS)
        scaled = ((x[first : first + _ROWS] - self.mean) / self.scale for first in starts)
        parts = [ask(rows, self._with_points(rows)) for rows in scaled]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    def _spread(self, rows: FloatArray, shared: FloatArray) -> FloatArray:
        """Return the standard deviations (n,) at features to scale, given their covariance with the points."""
        half = solve_triangular(self.factor, shared.T, lower=True, check_finite=False)
        own = self.variance + self.slope * np.einsum("ij,ij->i", rows, rows)
        return np.asarray(np.sqrt(np.maximum(own - np.einsum("ij,ij->j", half, half), 0.0) + self.noise))

    def covariance(self, x: FloatArray) -> FloatArray:
        """Return the covariance (n, n) of the process at features (n, features) given its points, noise left out."""
        rows = (x - self.mean) / self.scale
        half = solve_triangular(self.factor, self._with_points(rows).T, lower=True)
        return _covariance(rows, rows, self.variance, self.length, self.slope) - half.T @ half

    def _with_points(self, rows: FloatArray) -> FloatArray:
        return _covariance(rows, self.points, self.variance, self.length, self.slope)

    def equals(self, other: "GaussianProcess") -> bool:
        """Return whether another process is the same, number by number."""
        mine, theirs = self.to_arrays(), other.to_arrays()
        return all(np.array_equal(values, theirs[name]) for name, values in mine.items())

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return all that `from_arrays` needs, as arrays by name."""
        numbers = np.array([getattr(self, name) for name in _NUMBERS])
        return {name: getattr(self, name) for name in _ARRAYS} | {"numbers": numbers}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Self:
        """Rebuild a process from `to_arrays`."""
        return cls(
            **{name: arrays[name] for name in _ARRAYS}, **dict(zip(_NUMBERS, arrays["numbers"].tolist(), strict=True))
        )


def _scale(x: FloatArray, aggregates: int) -> FloatArray:
    """Return by what to divide features (pairs, features).

    The aggregates by their own spread; the sub-blocks by one spread in common, since one that hardly varies tells
    hardly anything, so that all of them together count as much as four aggregates.
    """
    spread = x.std(axis=0)
    sub_blocks = spread[aggregates:]
    sub_blocks[:] = np.sqrt(np.sum(sub_blocks**2)) / 2
    return np.where(spread > 1e-9, spread, np.inf)


def _tuned(points: FloatArray, missed: FloatArray) -> tuple[float, float, float, float]:
    """Return variance, length, slope and noise of highest marginal likelihood."""
    distances, products = cdist(points, points), points @ points.T
    start = np.log(list(_START.values()))
    bounds = Bounds(*np.log(list(_BOUNDS.values())).T)
    found = minimize(_unlikelihood, start, (distances, products, missed), method="L-BFGS-B", jac=True, bounds=bounds)
    variance, length, slope, noise = np.exp(found.x).tolist()
    return variance, length, slope, noise


def _unlikelihood(
    logarithms: FloatArray, distances: FloatArray, products: FloatArray, missed: FloatArray
) -> tuple[float, FloatArray]:
    """Return the negative logarithm of the marginal likelihood, less a constant, and its gradient.

    Some hundred of these make a fit, in which scikit-learn's kernels spend more time on their names than on numbers.

    Args:
        logarithms: (4,) of variance, length, slope and noise, by which the gradient is.
        distances: (pairs, pairs) between the points.
        products: (pairs, pairs) of the points.
        missed: (pairs,), of mean 0.

    Source: Rasmussen and Williams, equations 5.8 and 5.9.
    """
    variance, length, slope, noise = np.exp(logarithms)
    away = np.sqrt(3) * distances / length
    falling = np.exp(-away)
    matern = variance * (1 + away) * falling
    try:
        factor = cholesky(matern + slope * products + noise * np.eye(len(missed)), lower=True, check_finite=False)
    except LinAlgError:
        return np.inf, np.zeros(4)
    inverse = cho_solve((factor, True), np.eye(len(missed)), check_finite=False)
    weights = inverse @ missed
    part = inverse - np.outer(weights, weights)
    parts = (matern, variance * away**2 * falling, slope * products)
    gradient = [np.vdot(part, each) / 2 for each in parts] + [noise * np.trace(part) / 2]
    return float(missed @ weights / 2 + np.log(np.diag(factor)).sum()), np.array(gradient)


def _covariance(first: FloatArray, second: FloatArray, variance: float, length: float, slope: float) -> FloatArray:
    products: FloatArray = first @ second.T
    away = products * -2  # from here on in place: what is asked of many is bound by memory
    away += np.einsum("ij,ij->i", first, first)[:, None]
    away += np.einsum("ij,ij->i", second, second)
    np.maximum(away, 0.0, out=away)
    away *= 3 / length**2
    np.sqrt(away, out=away)
    falling = np.exp(-away)
    away += 1
    away *= falling
    away *= variance
    products *= slope
    products += away
    return products
