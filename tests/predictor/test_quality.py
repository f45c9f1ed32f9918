import json

import numpy as np
import pytest

from predictor import Quality, cross_validate
from predictor.boosting import BoostedModel, Margin
from predictor.features import AGGREGATES
from predictor.quality import half_width
from space import PredictorError

COLUMNS = len(AGGREGATES) + 6


def problem(seed, pairs=60):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((pairs, COLUMNS))
    return x, rng


def test_half_width_by_hand():
    # The ceil(10 * 0.9) = 9th of 9; the ceil(12 * 0.75) = 9th of 11.
    assert half_width(np.array([1, -2, 3, -4, 5, 6, 7, 8, -9.0]), 0.9) == 9
    assert half_width(np.arange(-5, 6).astype(float), 0.75) == 4
    assert half_width(np.array([2.0, -3.0]), 0.9) == 3  # too few for the level: the largest


def test_quality_is_held_out():
    """Noise without a pattern can be learnt by heart, but not predicted."""
    x, rng = problem(0)
    quality, residuals = cross_validate(x, rng.standard_normal(60), seed=0)
    assert abs(quality.kendall_tau) < 0.3
    assert residuals.std() > 0.8


def test_quality_of_a_known_line():
    x, _ = problem(1)
    quality, residuals = cross_validate(x, 1 + 0.5 * x[:, 0], seed=0)
    assert quality.prior_kendall_tau == 1
    assert quality.kendall_tau > 0.95
    assert quality.spearman > 0.99
    assert quality.kendall_tau_best_quarter > 0.8
    assert quality.rmse_log == pytest.approx(np.sqrt(np.mean(residuals**2)))
    assert (quality.pairs, quality.folds, quality.seed) == (60, 10, 0)


def test_no_prior_order_is_zero_not_nan():
    x, rng = problem(2)
    x[:, 0] = 1.0
    quality, _ = cross_validate(x, rng.standard_normal(60), seed=0)
    assert quality.prior_kendall_tau == 0
    assert Quality.from_dict(json.loads(json.dumps(quality.to_dict(), allow_nan=False))) == quality


def test_damaged_quality_is_refused():
    with pytest.raises(PredictorError, match=r"these differ: .*kendall_tau"):
        Quality.from_dict({"pairs": 3})


def test_margin_finds_a_line_among_outliers():
    x, rng = problem(3)
    x[:, 1:] = 0
    y = 0.3 + 0.8 * x[:, 0] + 0.01 * rng.standard_normal(60)
    y[np.argmax(x[:, 0])] -= 5
    margin = Margin.fit(x, y)
    probe = np.zeros((2, COLUMNS))
    probe[1, 0] = 1
    assert np.diff(margin(probe))[0] == pytest.approx(0.8, abs=0.12)
    assert Margin.from_dict(json.loads(json.dumps(margin.to_dict()))) == margin


def test_a_constant_feature_is_harmless():
    x, rng = problem(4)
    x[:, 3] = 7.0
    margin = Margin.fit(x, x[:, 0] + 0.1 * rng.standard_normal(60))
    assert margin.weights[3] == 0
    assert np.isfinite(margin.weights).all()


def test_trees_learn_the_threshold_that_the_margin_misses():
    x, _ = problem(5, 200)
    y = x[:, 0] + np.where((x[:, 2] > 0) & (x[:, 4] > 0), 1.0, 0.0)
    margin, model = Margin.fit(x[:150], y[:150]), BoostedModel.fit(x[:150], y[:150], 0)
    linear, boosted = (np.sqrt(np.mean((f(x[150:]) - y[150:]) ** 2)) for f in (margin, model.predict))
    assert boosted < 0.75 * linear


def test_trees_that_are_not_trees():
    x, _ = problem(6)
    model = BoostedModel.fit(x, x[:, 0], 0)
    with pytest.raises(PredictorError, match="XGBoost's JSON, but are not"):
        BoostedModel.from_json(model.margin, b'{"learner": 3}')
    with pytest.raises(PredictorError, match=f"must take its 2 features, but take {COLUMNS}"):
        BoostedModel.from_json(Margin(0.0, (1.0, 2.0)), model.trees_json())
    with pytest.raises(PredictorError, match="intercept and weights"):
        Margin.from_dict({"intercept": 1.0})
