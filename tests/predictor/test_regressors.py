import warnings

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel

from predictor import DEFAULT, REGRESSORS
from predictor.boosting import DEPTH, LEAST_IN_LEAF, RATE, ROUNDS, HistGradientBoosting, XGBoost
from predictor.gaussian import MOST_PAIRS, GaussianProcess
from predictor.linear import Additive, Ridge
from space import PredictorError
from tests.predictor.test_quality import AGGREGATES, COLUMNS, problem


def wavy(seed, pairs=120):
    x, rng = problem(seed, pairs)
    return x, 0.2 + x[:, 0] + np.sin(x[:, 1]) + 0.02 * rng.standard_normal(pairs)


@pytest.mark.parametrize("name", REGRESSORS)
def test_each_learns_and_comes_back_from_its_arrays(name):
    x, y = wavy(0)
    fresh, truth = wavy(1, 700)
    kind = REGRESSORS[name]
    model = kind.fit(x, y, AGGREGATES, 3)
    told = model.predict(fresh)
    # A sine has a line in it that all but the prior alone can learn.
    assert np.sqrt(np.mean((told - truth) ** 2)) < {"additive": 0.8, "ridge": 0.5}.get(name, 0.45)
    arrays = model.to_arrays()
    assert all(values.dtype != object for values in arrays.values())
    np.testing.assert_array_equal(kind.from_arrays(arrays).predict(fresh), told)
    np.testing.assert_array_equal(kind.fit(x, y, AGGREGATES, 3).predict(fresh), told)
    np.testing.assert_allclose([model.predict(row[None])[0] for row in fresh[:5]], told[:5], rtol=1e-9)
    assert model.predict(fresh[:0]).shape == (0,)


def test_the_default_is_xgboost():
    assert DEFAULT == next(iter(REGRESSORS)) == "xgboost"


def test_the_prior_alone_is_only_shifted():
    x, _ = problem(2)
    model = Additive.fit(x, x[:, 0] + 0.7, AGGREGATES, 0)
    np.testing.assert_allclose(model.predict(x), x[:, 0] + 0.7)


def test_ridge_finds_a_line_among_outliers():
    x, rng = problem(3)
    x[:, 1:] = 0
    y = 0.3 + 0.8 * x[:, 0] + 0.01 * rng.standard_normal(60)
    y[np.argmax(x[:, 0])] -= 5
    probe = np.zeros((2, COLUMNS))
    probe[1, 0] = 1
    assert np.diff(Ridge.fit(x, y, AGGREGATES, 0).predict(probe))[0] == pytest.approx(0.8, abs=0.12)


def test_a_constant_feature_is_harmless():
    x, rng = problem(4)
    x[:, 3] = 7.0
    y = x[:, 0] + 0.1 * rng.standard_normal(60)
    assert Ridge.fit(x, y, AGGREGATES, 0).weights[3] == 0
    for kind in REGRESSORS.values():
        assert np.isfinite(kind.fit(x, y, AGGREGATES, 0).predict(x)).all()


@pytest.mark.parametrize("kind", [XGBoost, HistGradientBoosting])
def test_trees_learn_the_threshold_that_the_ridge_misses(kind):
    x, _ = problem(5, 200)
    y = x[:, 0] + np.where((x[:, 2] > 0) & (x[:, 4] > 0), 1.0, 0.0)
    models = [each.fit(x[:150], y[:150], AGGREGATES, 0) for each in (Ridge, kind)]
    linear, boosted = (np.sqrt(np.mean((model.predict(x[150:]) - y[150:]) ** 2)) for model in models)
    assert boosted < 0.75 * linear


def test_scikit_learns_trees_are_walked_as_by_itself():
    x, y = wavy(6)
    mine = HistGradientBoosting.fit(x, y, AGGREGATES, 5)
    theirs = HistGradientBoostingRegressor(
        max_iter=ROUNDS, max_depth=DEPTH, learning_rate=RATE, min_samples_leaf=LEAST_IN_LEAF, l2_regularization=1.0,
        max_features=0.6, early_stopping=False, random_state=5, monotonic_cst=[1] + [0] * (x.shape[1] - 1),
    ).fit(x, y - mine.ridge.predict(x))  # fmt: skip
    fresh, _ = problem(7, 300)
    np.testing.assert_allclose(
        mine.predict(fresh), mine.ridge.predict(fresh) + theirs.predict(fresh), rtol=1e-9, atol=1e-12
    )


def test_the_process_is_the_one_of_the_textbook():
    x, y = wavy(8)
    mine = GaussianProcess.fit(x, y, AGGREGATES, 0)
    kernel = (
        ConstantKernel(mine.variance) * Matern(mine.length, nu=1.5)
        + ConstantKernel(mine.slope) * DotProduct(0.0, "fixed")
        + WhiteKernel(mine.noise)
    )
    theirs = GaussianProcessRegressor(kernel, optimizer=None, alpha=0.0).fit(mine.points, y - x[:, 0] - mine.constant)
    fresh, truth = wavy(9, 700)
    mean, deviation = theirs.predict((fresh - mine.mean) / mine.scale, return_std=True)
    np.testing.assert_allclose(mine.predict(fresh), fresh[:, 0] + mine.constant + mean, rtol=1e-8)
    np.testing.assert_allclose(mine.spread(fresh), deviation, rtol=1e-6)
    own = np.diag(mine.covariance(fresh))
    np.testing.assert_allclose(np.sqrt(own + mine.noise), deviation, rtol=1e-6)
    assert 0.5 < np.std((truth - mine.predict(fresh)) / deviation) < 1.5


def test_value_and_spread_together_are_those_asked_alone():
    x, y = wavy(0)
    fresh, _ = wavy(1, 700)
    process = GaussianProcess.fit(x, y, AGGREGATES, 0)
    told, spread = process.predict_with_spread(fresh)
    np.testing.assert_array_equal(told, process.predict(fresh))
    np.testing.assert_array_equal(spread, process.spread(fresh))
    assert process.spread(fresh[:0]).shape == (0,)
    assert process.equals(GaussianProcess.from_arrays(process.to_arrays()))
    assert not process.equals(GaussianProcess.fit(x, y + 1, AGGREGATES, 0))


def test_the_process_takes_a_part_of_very_many_pairs():
    x, y = wavy(10, MOST_PAIRS + 50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(GaussianProcess.fit(x, y, AGGREGATES, 0).points) == MOST_PAIRS


def test_trees_that_are_not_trees():
    x, _ = problem(6)
    arrays = XGBoost.fit(x, x[:, 0], AGGREGATES, 0).to_arrays()
    with pytest.raises(PredictorError, match="XGBoost's JSON, but are not"):
        XGBoost.from_arrays(arrays | {"trees": np.frombuffer(b'{"learner": 3}', dtype=np.uint8)})
    with pytest.raises(PredictorError, match=f"must take its 2 features, but take {COLUMNS}"):
        XGBoost.from_arrays(arrays | {"weights": np.array([1.0, 2.0])})


@pytest.mark.parametrize("name", ["xgboost", "hist_gradient_boosting"])
def test_trees_never_fall_with_the_prior(name):
    x, rng = problem(4, pairs=80)
    x[:, 0] = np.sort(x[:, 0])
    falling = np.where((x[:, 0] > -0.3) & (x[:, 0] < 0.3), -1.0, 0.0)
    model = REGRESSORS[name].fit(x, x[:, 0] + falling + 0.1 * rng.standard_normal(80), AGGREGATES, 0)
    asked = np.tile(x.mean(axis=0), (50, 1))
    asked[:, 0] = np.linspace(-2, 2, 50)
    assert (np.diff(model.predict(asked)) >= -1e-6).all()
