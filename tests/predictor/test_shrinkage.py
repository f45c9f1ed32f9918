"""What texts disagree about is trusted less, what they agree about stays."""

import numpy as np
import pytest

from predictor import AdditivePrior, expect_elsewhere
from predictor.shrinkage import _share
from space import Architecture
from tests.space.layouts import SMOLLM2_135M

LAYERS = SMOLLM2_135M.layers
DENSE = Architecture.dense(SMOLLM2_135M)
SINGLES = [DENSE.replace(i, kv_groups=2) for i in range(LAYERS)] + [
    DENSE.replace(i, mlp_width=512) for i in range(LAYERS)
]


def world(rng, kv_rest, mlp_rest, sequences=8):
    """Values on the sequences of one kind of text, and the damages on another kind; both kinds are drawn alike."""
    layer = np.concatenate([rng.normal(-4, 0.6, LAYERS), rng.normal(-3, 0.6, LAYERS)])
    rest = np.repeat([kv_rest, mlp_rest], LAYERS)
    kinds = layer[:, None] + rest[:, None] * rng.normal(size=(2 * LAYERS, 2))
    drawn = kinds[:, :1] + rest[:, None] * rng.normal(size=(2 * LAYERS, sequences))
    return np.exp(drawn), np.exp(kinds[:, 1])


def levels(prior):
    return np.array([prior.widths[2 * i][0][1] for i in range(LAYERS)] + [c[0][1] for c in prior.widths[1::2]])


def prior_of(values):
    return AdditivePrior.from_pairs(SMOLLM2_135M, SINGLES, values.mean(axis=1))


def test_it_is_nearer_to_what_another_kind_of_text_shows():
    gains = []
    for seed in range(20):
        values, other = world(np.random.default_rng(seed), kv_rest=0.6, mlp_rest=0.1)
        prior = prior_of(values)
        expected = expect_elsewhere(prior, SINGLES, values, shift=1.0)
        before, after = (((np.log(levels(p)) - np.log(other)) ** 2) for p in (prior, expected))
        gains.append((after[:LAYERS].mean() / before[:LAYERS].mean(), after[LAYERS:].mean() / before[LAYERS:].mean()))
    kv, mlp = np.mean(gains, axis=0)
    assert kv < 0.8
    assert 0.95 < mlp < 1.05  # what all texts agree about is left as it is


def test_the_share_by_hand():
    # Two sequences; log damages of four layers are 0, 1, 2, 3, and half a unit to either side of that in turn.
    logs = np.array([[0.5, -0.5], [0.5, 1.5], [2.5, 1.5], [2.5, 3.5]])
    rest = 8 * 0.25 / 3
    between = 5 / 3 - rest / 2
    for shift in (0.0, 1.0, 4.0):
        assert _share(np.exp(logs), shift) == pytest.approx(between / (between + rest * (0.5 + shift)))
    assert _share(np.exp(logs + np.array([0.3, -0.5])), 1.0) == pytest.approx(_share(np.exp(logs), 1.0))


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_where_all_sequences_agree_nothing_changes(shift):
    values, _ = world(np.random.default_rng(0), 0.0, 0.0)
    expected = expect_elsewhere(prior_of(values), SINGLES, values, shift)
    assert levels(expected) == pytest.approx(levels(prior_of(values)))


def test_where_layers_do_not_differ_beyond_chance_they_become_equal():
    values, _ = world(np.random.default_rng(0), 0.5, 0.5)
    noise = np.exp(np.random.default_rng(1).normal(size=values.shape))
    found = levels(expect_elsewhere(prior_of(noise), SINGLES, noise, 1.0))
    assert np.log(found[:LAYERS]).std() < 0.2 * np.log(noise[:LAYERS].mean(axis=1)).std() + 0.1


def test_what_only_shows_the_rounding_floor_is_no_level():
    values, _ = world(np.random.default_rng(0), 0.5, 0.5)
    rounding = [DENSE.replace(i, mlp_width=SMOLLM2_135M.mlp_width - 1) for i in range(0, LAYERS, 6)]
    floor = np.random.default_rng(1).uniform(1e-4, 2e-4, (len(rounding), 8))
    both = np.concatenate([values, floor])
    prior = AdditivePrior.from_pairs(SMOLLM2_135M, SINGLES + rounding, both.mean(axis=1))
    found = expect_elsewhere(prior, SINGLES + rounding, both, 1.0)
    assert found == expect_elsewhere(prior, SINGLES, values, 1.0) != prior


def test_too_little_to_go_by_changes_nothing():
    values, _ = world(np.random.default_rng(0), 0.5, 0.5)
    few = SINGLES[:3] + SINGLES[LAYERS : LAYERS + 3]
    chosen = np.concatenate([values[:3], values[LAYERS : LAYERS + 3]])
    prior = AdditivePrior.from_pairs(SMOLLM2_135M, few, chosen.mean(axis=1))
    assert expect_elsewhere(prior, few, chosen, 1.0) == prior
    assert expect_elsewhere(prior_of(values), SINGLES, values[:, :1], 1.0) == prior_of(values)
    # Dense and pairs with several changes are nobody's single damage.
    more = [DENSE, DENSE.replace(0, kv_groups=1).replace(1, kv_groups=1)]
    extended = np.concatenate([np.zeros((1, 8)), np.full((1, 8), 5.0), values])
    assert expect_elsewhere(prior_of(values), more + SINGLES, extended, 1.0) == expect_elsewhere(
        prior_of(values), SINGLES, values, 1.0
    )
    silent = values.copy()
    silent[0] = 0.0
    assert expect_elsewhere(prior_of(silent), SINGLES, silent, 1.0).widths[0] == prior_of(silent).widths[0]
