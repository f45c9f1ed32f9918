import numpy as np
import pytest

from space import Architecture, Budget, build_space, cost_of, sample
from tests.space.layouts import SMOLLM2_135M

SPACE = build_space(SMOLLM2_135M, [Budget("parameters", 0.8)])


def test_samples_land_within_the_budget_and_near_it():
    drawn = sample(SPACE, 200, np.random.default_rng(0))
    assert SPACE.within(drawn).all()
    dense = cost_of(SMOLLM2_135M, Architecture.dense(SMOLLM2_135M))
    shares = SPACE.costs(drawn)[:, 0] / dense.parameters
    assert shares.max() <= 0.8
    assert shares.min() > 0.797  # one step of an MLP is 0.2 % of the decoder


def test_same_seed_same_samples():
    first, again = (sample(SPACE, 30, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, sample(SPACE, 30, np.random.default_rng(8)))
    assert len(np.unique(first, axis=0)) == 30


@pytest.mark.parametrize("seed", range(3))
def test_samples_are_stratified(seed):
    """Few samples still spread over both traits: attention kept, and evenness over the layers."""
    drawn = sample(SPACE, 16, np.random.default_rng(seed))
    attention = drawn[:, 0::2].mean(axis=1) / 3
    unevenness = (drawn[:, 1::2] / 12).std(axis=1)
    assert attention.min() < 0.65
    assert attention.max() > 0.8
    assert unevenness.min() < 0.15
    assert unevenness.max() > 0.25


def test_no_samples():
    assert sample(SPACE, 0, np.random.default_rng(0)).shape == (0, SPACE.columns)
