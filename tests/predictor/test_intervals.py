"""Intervals cover what they say, for what is predicted low as well as for what is predicted high."""

import numpy as np
import pytest

from predictor.intervals import Intervals


def test_where_all_are_alike_it_is_the_conformal_quantile():
    # The ceil(10 * 0.9) = 9th of 9; the ceil(12 * 0.75) = 9th of 11.
    for scores, coverage, expected in ((np.arange(1.0, 10), 0.9, 9), (np.arange(11.0), 0.75, 8)):
        found = Intervals.calibrate(np.zeros(len(scores)), scores, coverage)
        assert found.factor(np.array([-1.0, 0.0, 3.0])).tolist() == [expected] * 3
    few = Intervals.calibrate(np.zeros(2), np.array([2.0, 3.0]), 0.9)
    assert few.factor(np.zeros(1)) == 3  # too few for the level: the largest


def test_repeats_are_no_evidence():
    rng = np.random.default_rng(0)
    places, scores = rng.standard_normal(40), rng.exponential(size=40)
    once = Intervals.calibrate(places, scores, 0.9)
    again = Intervals.calibrate(np.tile(places, 3), np.tile(scores, 3), 0.9, repeats=3)
    np.testing.assert_allclose(again.factors, once.factors)


@pytest.mark.parametrize("seed", range(3))
def test_it_covers_where_errors_grow_with_the_damage(seed):
    rng = np.random.default_rng(seed)

    def draw(count):
        places = np.where(rng.random(count) < 0.7, 0.0, 1.0) + 0.05 * rng.standard_normal(count)
        return places, np.abs(rng.standard_normal(count)) * (1 + 3 * (places > 0.5))

    found = Intervals.calibrate(*draw(200), 0.9)
    places, scores = draw(4000)
    inside = scores <= found.factor(places)
    for part in (places > 0.5, places <= 0.5):
        assert 0.84 <= inside[part].mean() <= 0.97
