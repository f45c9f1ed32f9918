"""How good regressors are on pairs that they have not seen, which one to take, and whether more pairs would pay."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr
from sklearn.model_selection import KFold

from predictor.dataset import FloatArray
from predictor.gaussian import GaussianProcess
from predictor.intervals import Intervals
from predictor.regressors import REGRESSORS
from space import PredictorError

_FOLDS = ((500, 10), (5000, 5))  # up to so many pairs; with 10, each fold's model has nearly as many as the final one
_FEWEST_FOLDS = 3
AS_GOOD = 1.01  # times the lowest error is no difference
_ROUNDS, _FEW_PAIRS = 4, 500  # of cross-validation for the intervals, of so many pairs at most
COVERAGE = 0.9  # share of new measurements that an interval is to contain
CURVE = (0.25, 0.5, 0.75, 1.0)  # shares of the pairs


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
    regressor: str  # the one chosen, whose quality this is
    # By regressor: kendall_tau, kendall_tau_best_quarter and rmse_log of each that was tried on the same folds.
    table: Mapping[str, Mapping[str, float]]

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


@dataclass(frozen=True)
class HeldOut:
    """What models that had not seen a pair said of it.

    Args:
        quality: of the chosen regressor, and the table of all.
        residuals: (pairs,) measured less predicted by the chosen one, natural logarithms.
        spreads: (pairs,) standard deviation that the Gaussian process expected of the pair.
        intervals: calibrated on several such rounds.
        rounds: (rounds, pairs) the residuals of those rounds.
    """

    quality: Quality
    residuals: FloatArray
    spreads: FloatArray
    intervals: Intervals
    rounds: FloatArray

    def error(self, which: NDArray[np.bool_]) -> float:
        """Return the root mean square error of some of the pairs (pairs,), over all rounds."""
        return float(np.sqrt(np.mean(self.rounds[:, which] ** 2)))


def cross_validate(
    x: FloatArray,
    log_values: FloatArray,
    aggregates: int,
    seed: int,
    regressors: Sequence[str] = tuple(REGRESSORS),
    prior: FloatArray | None = None,
    judged: NDArray[np.bool_] | None = None,
) -> HeldOut:
    """Predict each pair by models that have not seen it, and choose the regressor of the lowest error.

    Args:
        x: (pairs, features), the logarithm of the prior first.
        log_values: (pairs,) natural logarithms of the measured values.
        aggregates: how many of the first columns are aggregates.
        seed: of the folds and of each fold's models.
        regressors: names of those to try, preferred ones first.
        prior: (pairs,) the additive prior alone; None takes the first feature.
        judged: (pairs,) which count for the quality, for some may be known to their features; None takes all.
    """
    prior = x[:, 0] if prior is None else prior
    judged = np.ones(len(x), dtype=np.bool_) if judged is None else judged
    kernels: list[GaussianProcess] = []
    predicted, spreads = _held_out(x, log_values, aggregates, seed, 0, regressors, kernels)
    truth = log_values[judged]
    table = {name: _scores(found[judged], truth) for name, found in predicted.items()}
    least = min(scores["rmse_log"] for scores in table.values())
    chosen = next(name for name in regressors if table[name]["rmse_log"] <= AS_GOOD * least)
    quality = Quality(
        **table[chosen],
        spearman=_number(spearmanr(predicted[chosen][judged], truth).statistic),
        prior_kendall_tau=_number(kendalltau(prior[judged], truth).statistic),
        pairs=len(log_values),
        folds=fold_count(len(x)),
        seed=seed,
        regressor=chosen,
        table=table,
    )
    rounds = [(predicted[chosen], spreads)]
    # One division of few pairs into folds is a matter of chance: another may give half of the quantile.
    for number in range(1, _ROUNDS if len(x) <= _FEW_PAIRS else 1):
        own, others = _held_out(x, log_values, aggregates, seed, number, [chosen], kernels)
        rounds.append((own[chosen], others))
    places = np.concatenate([own[judged] for own, _ in rounds])
    scores = np.concatenate([(np.abs(log_values - own) / others)[judged] for own, others in rounds])
    intervals = Intervals.calibrate(places, scores, COVERAGE, len(rounds))
    residuals = np.array([log_values - own for own, _ in rounds])
    return HeldOut(quality, residuals[0], spreads, intervals, residuals)


def _held_out(
    x: FloatArray,
    log_values: FloatArray,
    aggregates: int,
    seed: int,
    number: int,
    regressors: Sequence[str],
    kernels: list[GaussianProcess],
) -> tuple[dict[str, FloatArray], FloatArray]:
    """Return held-out predictions (pairs,) of each regressor and the process' standard deviations (pairs,).

    Tuning is nearly all of a fit's time, so the first round's processes are added to `kernels`, one for each fold, and
    later rounds take their kernels.
    """
    predicted = {name: np.empty_like(log_values) for name in regressors}
    spreads = np.empty_like(log_values)
    draw = seed if not number else int(np.random.default_rng([seed, number]).integers(2**31))
    for fold, (train, test) in enumerate(KFold(fold_count(len(x)), shuffle=True, random_state=draw).split(x)):
        like = kernels[fold] if number else None
        process = GaussianProcess.fit(x[train], log_values[train], aggregates, seed, like)
        if not number:
            kernels.append(process)
        spreads[test] = process.spread(x[test])
        for name in regressors:
            kind = REGRESSORS[name]
            model = process if kind is GaussianProcess else kind.fit(x[train], log_values[train], aggregates, seed)
            predicted[name][test] = model.predict(x[test])
    return predicted, spreads


def fold_count(pairs: int) -> int:
    """Return into how many folds so many pairs are divided."""
    return next((folds for most, folds in _FOLDS if pairs <= most), _FEWEST_FOLDS)


def _scores(predicted: FloatArray, log_values: FloatArray) -> dict[str, float]:
    best = log_values <= np.quantile(log_values, 0.25)
    return {
        "kendall_tau": _number(kendalltau(predicted, log_values).statistic),
        "kendall_tau_best_quarter": _number(kendalltau(predicted[best], log_values[best]).statistic),
        "rmse_log": float(np.sqrt(np.mean((predicted - log_values) ** 2))),
    }


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Held-out quality with fewer pairs to learn from."""

    pairs: int
    kendall_tau: float
    kendall_tau_best_quarter: float
    rmse_log: float


def learning_curve(
    x: FloatArray, log_values: FloatArray, aggregates: int, seed: int, regressor: str
) -> list[CurvePoint]:
    """Return the held-out quality of a regressor by how many pairs it was fitted on.

    The same pairs are held out at every point, and what a smaller point learns from is part of what a larger one does.

    Args:
        x: (pairs, features).
        log_values: (pairs,).
        aggregates: how many of the first columns are aggregates.
        seed: of folds, draws and models.
        regressor: its name.
    """
    rng = np.random.default_rng(seed)
    predicted = {share: np.empty_like(log_values) for share in CURVE}
    counts = dict.fromkeys(CURVE, 0)
    kind = REGRESSORS[regressor]
    for train, test in KFold(fold_count(len(x)), shuffle=True, random_state=seed).split(x):
        order = rng.permutation(train)
        for share in CURVE:
            part = train if share == CURVE[-1] else order[: max(2, round(share * len(order)))]
            counts[share] = len(part)
            model = kind.fit(x[part], log_values[part], aggregates, seed)
            predicted[share][test] = model.predict(x[test])
    return [CurvePoint(counts[share], **_scores(predicted[share], log_values)) for share in CURVE]


def error_with(curve: Sequence[CurvePoint], pairs: int) -> float:
    """Return the error (root mean square of the logarithm) to expect with so many pairs.

    The error falls by a power of the pairs, read from the curve; it is not expected to rise.

    Source: Hestness et al., Deep Learning Scaling is Predictable (arXiv 1712.00409), for the power law.
    """
    counts, errors = np.log([point.pairs for point in curve]), np.log([max(point.rmse_log, 1e-9) for point in curve])
    slope = min(float(np.polyfit(counts, errors, 1)[0]), 0.0)
    return float(np.exp(errors[-1] + slope * (math.log(pairs) - counts[-1])))


def _number(value: Any) -> float:
    """Return a correlation, 0 where it is undefined because all values are equal."""
    return float(value) if math.isfinite(value) else 0.0
