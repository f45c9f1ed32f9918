import json

import numpy as np
import pytest

from predictor import REGRESSORS, Quality, cross_validate, error_with
from predictor.quality import learning_curve
from space import PredictorError

AGGREGATES = 3
COLUMNS = AGGREGATES + 6


def problem(seed, pairs=60):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((pairs, COLUMNS))
    return x, rng


def validated(x, y, seed=0, **settings):
    return cross_validate(x, y, AGGREGATES, seed, **settings)


def test_quality_is_held_out():
    """Noise without a pattern can be learnt by heart, but not predicted."""
    x, rng = problem(0)
    found = validated(x, rng.standard_normal(60))
    assert abs(found.quality.kendall_tau) < 0.3
    assert found.residuals.std() > 0.8


def test_quality_of_a_known_line():
    x, _ = problem(1)
    found = validated(x, 1 + 0.5 * x[:, 0])
    quality = found.quality
    assert quality.prior_kendall_tau == 1
    assert quality.kendall_tau > 0.95
    assert quality.spearman > 0.99
    assert quality.kendall_tau_best_quarter > 0.8
    assert quality.rmse_log == pytest.approx(np.sqrt(np.mean(found.residuals**2)))
    assert (quality.pairs, quality.folds, quality.seed) == (60, 10, 0)


def test_no_prior_order_is_zero_not_nan():
    x, rng = problem(2)
    x[:, 0] = 1.0
    quality = validated(x, rng.standard_normal(60)).quality
    assert quality.prior_kendall_tau == 0
    assert Quality.from_dict(json.loads(json.dumps(quality.to_dict(), allow_nan=False))) == quality


def test_damaged_quality_is_refused():
    with pytest.raises(PredictorError, match=r"these differ: .*kendall_tau"):
        Quality.from_dict({"pairs": 3})


WORLDS = {
    "additive": lambda x, rng: x[:, 0],
    "ridge": lambda x, rng: 0.6 * x[:, 0] + 0.4 * x[:, 1] + 0.02 * rng.standard_normal(len(x)),
    "gaussian_process": lambda x, rng: x[:, 0] + np.sin(x[:, AGGREGATES:].sum(axis=1)),
    "xgboost": lambda x, rng: x[:, 0] + np.where((x[:, 1] > 0) & (x[:, 2] > 0), 1.0, 0.0),
}


@pytest.mark.parametrize("name", WORLDS)
def test_the_regressor_that_fits_is_chosen_and_all_are_told_of(name):
    x, rng = problem(3, 150)
    quality = validated(x, WORLDS[name](x, rng) + 0.01 * rng.standard_normal(len(x))).quality
    assert set(quality.table) == set(REGRESSORS)
    errors = {each: scores["rmse_log"] for each, scores in quality.table.items()}
    assert errors[quality.regressor] <= 1.01 * min(errors.values())
    assert quality.rmse_log == errors[quality.regressor]
    # Trees of either kind may win where trees are right, and what is a line is one to others as well.
    assert errors[name] <= 1.2 * min(errors.values())


def test_where_there_is_no_difference_the_first_is_taken():
    x, _ = problem(4)
    for names in (("ridge", "additive"), ("additive", "ridge")):
        assert validated(x, x[:, 0] + 0.0, regressors=names).quality.regressor == names[0]


def test_the_spread_grows_with_ignorance():
    x, rng = problem(5, 120)
    x[0, 1], x[1, 2], x[2, 1] = 8.0, -8.0, -8.0  # each far from all others
    found = validated(x, x[:, 0] + np.sin(x[:, 1]) + 0.01 * rng.standard_normal(len(x)))
    assert found.spreads[:3].min() > 1.2 * np.median(found.spreads[3:])


def test_the_learning_curve_falls_and_is_read_right():
    x, rng = problem(6, 160)
    y = x[:, 0] + np.sin(x[:, 1]) + 0.05 * rng.standard_normal(len(x))
    curve = learning_curve(x, y, AGGREGATES, 0, "gaussian_process")
    assert [point.pairs for point in curve] == [36, 72, 108, 144]
    assert curve[-1].rmse_log < 0.7 * curve[0].rmse_log
    assert curve[-1].kendall_tau > curve[0].kendall_tau
    assert error_with(curve, 144) == pytest.approx(curve[-1].rmse_log)
    assert 0.5 * curve[-1].rmse_log < error_with(curve, 288) < curve[-1].rmse_log
    same = learning_curve(x, y, AGGREGATES, 0, "gaussian_process")
    assert same == curve
