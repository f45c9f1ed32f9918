"""A space of whole blocks: a layer is removed or stays, whatever is proposed."""

import numpy as np
import pytest

from search.config import load_config
from search.proposals import averages, blend, cross, evolve, mutate, offspring, prior_architectures, profiles
from space import Architecture, Budget, SettingError, build_space, land, sample
from tests.space.layouts import SMOLLM2_135M

SPACE = build_space(SMOLLM2_135M, [Budget("parameters", 0.74)], whole_blocks=True)
KEPT = 22  # of 30 layers


def test_samples_keep_as_many_layers_as_the_budget_allows():
    drawn = sample(SPACE, 50, np.random.default_rng(0))
    assert SPACE.within(drawn).all()
    assert (drawn[:, 0::2] == drawn[:, 1::2]).all()
    assert (drawn[:, 0::2].sum(axis=1) == KEPT).all()
    assert len(np.unique(drawn, axis=0)) > 40


def test_half_a_block_is_not_in_the_space():
    [whole] = sample(SPACE, 1, np.random.default_rng(0))
    half = whole.copy()
    half[1 + 2 * int(np.flatnonzero(whole[0::2])[0])] = 0
    assert SPACE.budget_costs(half[None]) < SPACE.limits
    assert not SPACE.within(half[None])[0]
    [architecture] = SPACE.decode(half[None])
    assert not SPACE.allows(architecture)


def test_landing_follows_what_is_held():
    rows = np.ones((200, SPACE.columns), dtype=np.int16)
    held = np.zeros(rows.shape, dtype=bool)
    rows[:, 7], held[:, 7] = 0, True  # the MLP of layer 3
    rows[:, 10], held[:, 10] = 1, True  # the attention of layer 5
    landed = land(SPACE, rows, np.random.default_rng(0), held)
    assert SPACE.within(landed).all()
    assert (landed[:, 6:8] == 0).all()
    assert (landed[:, 10:12] == 1).all()
    assert (rows == 1).sum() == 200 * (SPACE.columns - 1)


def test_whatever_is_proposed_is_made_of_whole_blocks():
    rng = np.random.default_rng(0)
    parents = sample(SPACE, 20, rng)
    for children in (
        mutate(SPACE, parents, rng),
        cross(SPACE, parents, rng),
        blend(SPACE, parents, rng),
        averages(SPACE, parents, parents[:2], 9, rng),
        offspring(SPACE, parents, 40, rng),
        profiles(SPACE, 10, rng),
    ):
        assert SPACE.within(children).all()
        assert (children[:, 0::2].sum(axis=1) == KEPT).all()
    assert (mutate(SPACE, parents, rng) != parents).any(axis=1).mean() > 0.6


def test_the_average_of_like_architectures_keeps_what_they_share():
    rng = np.random.default_rng(1)
    parent = sample(SPACE, 1, rng)
    others = mutate(SPACE, np.repeat(parent, 4, axis=0), rng, most_swaps=1)
    found = averages(SPACE, np.concatenate([np.repeat(parent, 28, axis=0), others]), parent, 5, rng)
    assert (found == parent).all()


def test_evolution_finds_the_layers_that_are_missed_least():
    worth = np.random.default_rng(3).permutation(SMOLLM2_135M.layers) + 1.0
    best = evolve(SPACE, lambda rows: ((1 - rows[:, 0::2]) * worth).sum(axis=1), np.random.default_rng(0))
    assert set(np.flatnonzero(best[0, 0::2] == 0)) == set(np.argsort(worth)[:8])


def test_the_prior_removes_each_block():
    dense = Architecture.dense(SMOLLM2_135M)
    expected = [dense.replace(layer, kv_groups=0, mlp_width=0) for layer in range(SMOLLM2_135M.layers)]
    assert prior_architectures(SPACE) == expected


def test_the_setting_takes_no_other():
    settings = {"model": "smollm2-135m", "budget": "parameters=0.74", "space.whole_blocks": True}
    assert load_config(None, settings).search_space(SMOLLM2_135M) == SPACE
    for other in ({"space.width_step": 64}, {"space.removal": False}, {"space.widths": True}):
        with pytest.raises(SettingError, match="whole_blocks searches nothing else"):
            load_config(None, settings | other)
