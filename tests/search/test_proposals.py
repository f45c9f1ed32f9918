"""Proposals stay within every budget, and the evolution finds what is better."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search import proposals
from search.baselines import fixed_allocations
from search.proposals import (
    averages,
    blend,
    cross,
    evolve,
    mutate,
    nearest,
    offspring,
    prior_architectures,
    profiles,
    rounding_architectures,
)
from space import Architecture, Budget, build_space, cost_of, sample
from tests.search.pieces import SPACE, score
from tests.space.layouts import PICO, SMOLLM2_135M


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), share=st.sampled_from([0.3, 0.6, 0.9]))
def test_whatever_is_proposed_is_within_the_budgets(seed, share):
    space = build_space(SMOLLM2_135M, (Budget("parameters", share), Budget("flops_per_token", 0.95)))
    rng = np.random.default_rng(seed)
    parents = sample(space, 20, rng)
    before = parents.copy()
    for children, count in (
        (mutate(space, parents, rng), 20),
        (cross(space, parents, rng), 20),
        (blend(space, parents, rng), 20),
        (averages(space, parents, parents[:2], 9, rng), 9),
        (averages(space, parents[:3], parents[:0], 4, rng), 4),
        (offspring(space, parents, 33, rng), 33),
        (offspring(space, parents[:1], 17, rng), 17),
        (offspring(space, parents, 33, rng, fresh=False), 33),
    ):
        assert children.shape == (count, space.columns)
        assert space.within(children).all()
        assert (children >= 0).all()
        assert (children < space.sizes).all()
    assert (parents == before).all()


def test_mutations_are_near_their_parents():
    rng = np.random.default_rng(0)
    parents = sample(SPACE, 200, rng)
    few = (mutate(SPACE, parents, rng, most_swaps=1) != parents).sum(axis=1)
    many = (mutate(SPACE, parents, rng, most_swaps=12) != parents).sum(axis=1)
    assert np.median(few) < np.median(many) < SPACE.columns / 2
    assert (few > 0).mean() > 0.9


def test_children_of_two_parents_have_layers_of_both():
    rng = np.random.default_rng(0)
    low, high = np.zeros((1, SPACE.columns), np.int16), sample(SPACE, 1, rng)
    children = cross(SPACE, np.concatenate([low, high] * 20).astype(np.int16), rng)
    assert len(np.unique(children, axis=0)) > 10


def test_a_blend_lies_between_its_parents(monkeypatch):
    monkeypatch.setattr(proposals, "land", lambda space, rows, rng: rows)  # what is asked for, before the budget
    low, high = (np.tile(np.rint(share * (SPACE.sizes - 1)).astype(np.int16), (40, 1)) for share in (0.25, 0.75))
    found = blend(SPACE, np.concatenate([low, high]), np.random.default_rng(0))
    assert (found >= low[0]).all()
    assert (found <= high[0]).all()
    assert ((found > low[0]).any(axis=1) & (found < high[0]).any(axis=1)).sum() > 20


def test_averages_are_what_the_best_have_in_common_and_use_the_budget():
    centre = nearest(SPACE, fixed_allocations(SPACE)["uniform_whole_ends"], np.random.default_rng(0))
    around = mutate(SPACE, np.repeat(centre, 16, axis=0), np.random.default_rng(1))
    found, again = (averages(SPACE, around, centre, 12, np.random.default_rng(2)) for _ in range(2))
    assert (found == again).all()
    apart = np.abs(around - centre).sum(axis=1).mean()
    assert np.abs(found - centre).sum(axis=1).mean() < 0.7 * apart
    assert ((SPACE.budget_costs(found) / SPACE.limits).max(axis=1) > 0.99).all()


def test_averages_are_drawn_up_to_half_way_to_an_anchor():
    centre = nearest(SPACE, fixed_allocations(SPACE)["uniform"], np.random.default_rng(0))
    around = mutate(SPACE, np.repeat(centre, 16, axis=0), np.random.default_rng(1))
    anchor = sample(SPACE, 1, np.random.default_rng(3))
    found = averages(SPACE, around, anchor, 24, np.random.default_rng(2))
    way = np.abs(found - centre).sum(axis=1) / np.abs(anchor - centre).sum()
    assert (way < 0.25).any()  # some stay where they are
    assert ((way > 0.35) & (way < 0.75)).any()


def test_evolution_finds_better_than_sampling_and_repeats():
    drawn = sample(SPACE, 2000, np.random.default_rng(1))
    found = evolve(SPACE, score, np.random.default_rng(1), generations=20, population=128)
    again = evolve(SPACE, score, np.random.default_rng(1), generations=20, population=128)
    assert (found == again).all()
    assert len(np.unique(found, axis=0)) == len(found) == 16
    assert SPACE.within(found).all()
    values = score(found)
    assert (np.diff(values) >= 0).all()
    assert values[0] < score(drawn).min()


@pytest.mark.parametrize(
    ("layout", "budget", "more"),
    [
        (SMOLLM2_135M, "parameters=0.8", {}),
        (PICO, "parameters=0.8", {}),
        (PICO, "nonzero_parameters=0.5", {"widths": False, "removal": False, "sparsities": (0.0, 0.5, 0.7)}),
        (PICO, "nonzero_parameters=0.5", {"sparsities": (0.0, 0.5)}),
    ],
)
def test_the_prior_changes_one_sub_block_at_a_time(layout, budget, more):
    space = build_space(layout, (Budget.parse(budget),), **more)
    found = prior_architectures(space)
    dense = space.encode([Architecture.dense(layout)])
    changed = space.encode(found) != dense
    assert (changed.sum(axis=1) == 1).all()
    assert changed.any(axis=0).all()  # every sub-block has its turn
    assert len({architecture.fingerprint for architecture in found}) == len(found)
    for column in range(space.columns):
        levels = {space.encode([a])[0, column] for a, row in zip(found, changed, strict=True) if row[column]}
        assert 0 in levels or more.get("removal") is False  # the deepest cut is among them


def test_of_many_sparsities_the_prior_takes_those_next_to_three():
    space = build_space(
        PICO,
        (Budget.parse("nonzero_parameters=0.5"),),
        widths=False,
        removal=False,
        sparsities=(0.0, 0.2, 0.45, 0.6, 0.72, 0.8, 0.95),
    )
    found = prior_architectures(space)
    assert sorted({layer.mlp_sparsity for each in found for layer in each.layers}) == [0.0, 0.45, 0.72, 0.95]
    every = prior_architectures(space, sparsities=None)
    assert len(every) == 2 * len(found) == space.columns * 6


def test_rounding_is_measured_at_both_ends_and_between():
    found = rounding_architectures(SPACE)
    layers = SPACE.layout.layers
    changed = [[i for i, layer in enumerate(each.layers) if layer.mlp_width < SPACE.layout.mlp_width] for each in found]
    assert changed[0] == [0]
    assert changed[-1] == [layers - 1]
    assert all(len(own) == 1 for own in changed)
    assert len(found) == min(layers, 6)
    assert {each.layers[own[0]].mlp_width for each, own in zip(found, changed, strict=True)} == {
        SPACE.layout.mlp_width - 1
    }


def test_profiles_are_smooth_and_use_the_budget():
    drawn = profiles(SPACE, 16, np.random.default_rng(0))
    assert drawn.tolist() == profiles(SPACE, 16, np.random.default_rng(0)).tolist()
    assert len(np.unique(drawn, axis=0)) == 16
    share = SPACE.budget_costs(drawn) / SPACE.limits
    assert (share <= 1).all()
    assert (share.max(axis=1) > 0.99).all()
    steps = np.abs(np.diff(drawn[:, 1::2].astype(int), axis=1))
    scattered = np.abs(np.diff(sample(SPACE, 16, np.random.default_rng(0))[:, 1::2].astype(int), axis=1))
    assert steps.mean() < 0.5 * scattered.mean()
    by_parameters = build_space(SMOLLM2_135M, (Budget("parameters", 0.8),))
    free = profiles(by_parameters, 16, np.random.default_rng(0))
    assert (free[1::2, ::2] == 3).mean() > 0.9  # where the budget leaves it, every other one has the attention whole


def test_nearest_takes_what_the_space_has():
    dense = Architecture.dense(SMOLLM2_135M)
    [found] = SPACE.decode(nearest(SPACE, dense.replace(3, mlp_width=700), np.random.default_rng(0)))
    assert SPACE.allows(found)
    exact = dense.replace(3, mlp_width=640).replace(4, kv_groups=1, mlp_width=128)
    tight = build_space(SMOLLM2_135M, (Budget("parameters", float(cost_of(SMOLLM2_135M, exact).parameters)),))
    off = dense.replace(3, mlp_width=690).replace(4, kv_groups=1, mlp_width=150)
    assert tight.decode(nearest(tight, off, np.random.default_rng(0))) == [exact]
