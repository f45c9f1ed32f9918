"""What a search has to beat: each within the budget."""

import pytest

from search.baselines import fixed_allocations, scored_allocations
from space import Architecture, Budget, BudgetError, Criterion, build_space, cost_of
from tests.evaluator.pieces import SLICING, make_surgeon
from tests.space.layouts import SMOLLM2_135M

SPARSE = {"widths": False, "removal": False, "sparsities": (0.0, 0.25, 0.5, 0.75)}


def share(layout, architecture, metric="parameters"):
    dense = cost_of(layout, Architecture.dense(layout))
    return getattr(cost_of(layout, architecture), metric) / getattr(dense, metric)


def test_without_a_model():
    space = build_space(SMOLLM2_135M, (Budget("parameters", 0.7),))
    found = fixed_allocations(space)
    assert list(found) == ["dense", "uniform", "uniform_whole_ends"]
    for name in ("uniform", "uniform_whole_ends"):
        assert 0.69 < share(SMOLLM2_135M, found[name]) <= 0.7
    assert len(set(found["uniform"].layers)) == 1
    assert found["uniform_whole_ends"].layers[0] == found["dense"].layers[0] != found["uniform_whole_ends"].layers[10]


def test_a_tight_budget_has_no_whole_ends_and_an_impossible_one_no_baseline():
    space = build_space(SMOLLM2_135M, (Budget("parameters", 0.1),))
    assert list(fixed_allocations(space)) == ["dense", "uniform"]
    with pytest.raises(BudgetError):
        build_space(SMOLLM2_135M, (Budget("weight_bytes", 0.1),))
    without_cache = build_space(SMOLLM2_135M, (Budget("kv_cache_bytes_per_token", 0.1),))
    assert fixed_allocations(without_cache)["uniform"].layers[0].kv_groups == 0


def test_a_sparse_search_is_compared_with_uniform_sparsity():
    space = build_space(SMOLLM2_135M, (Budget("nonzero_parameters", 0.5),), **SPARSE)
    [layer] = set(fixed_allocations(space)["uniform"].layers)
    assert (layer.kv_groups, layer.mlp_width) == (3, 1536)
    assert 0.49 < layer.attention_sparsity < 0.52


def test_a_pattern_is_compared_with_as_many_sub_blocks_of_it_evenly_spread():
    budgets = (Budget("nonzero_parameters", 0.8),)
    space = build_space(SMOLLM2_135M, budgets, widths=False, removal=False, sparsities=(0.0, 0.5), pattern=(2, 4))
    found = fixed_allocations(space, (2, 4))
    for name in ("uniform", "uniform_whole_ends"):
        assert 0.785 < share(SMOLLM2_135M, found[name], "nonzero_parameters") <= 0.8
        assert space.allows(found[name])
    assert {layer.mlp_sparsity for layer in found["uniform"].layers} == {0.0, 0.5}
    assert not any(layer.mlp_sparsity for layer in found["uniform_whole_ends"].layers[:4])


def test_from_scores(pico):
    space = build_space(pico.layout, (Budget("parameters", 0.7),))
    found = scored_allocations(space, make_surgeon(pico, SLICING))
    assert list(found) == ["global_threshold", "block_influence"]
    assert 0.68 < share(pico.layout, found["global_threshold"]) <= 0.7
    gone = [layer.kv_groups == layer.mlp_width == 0 for layer in found["block_influence"].layers]
    assert sum(gone) == 2  # of 6: one would leave 83 %
    assert share(pico.layout, found["block_influence"]) == pytest.approx(4 / 6, abs=0.01)


@pytest.mark.parametrize(
    ("pattern", "sparsities", "expected"),
    [(None, (0.0, 0.5, 0.75), ["owl", "global_threshold"]), ("2:4", (0.0, 0.5), [])],
)
def test_from_scores_of_weights(pico, pattern, sparsities, expected):
    criterion = Criterion(update="none", pattern=pattern)
    space = build_space(
        pico.layout,
        (Budget("nonzero_parameters", 0.6),),
        widths=False,
        removal=False,
        sparsities=sparsities,
        pattern=criterion.group,
    )
    found = scored_allocations(space, make_surgeon(pico, criterion))
    assert list(found) == expected
    assert all(0.58 < share(pico.layout, each, "nonzero_parameters") <= 0.6 for each in found.values())


def test_what_cannot_meet_a_budget_is_left_out(pico):
    # Of 32 weights a row keeps at least one, which is 3 %; only removing blocks gets below.
    space = build_space(pico.layout, (Budget("nonzero_parameters", 0.01),), sparsities=(0.0, 0.5))
    found = scored_allocations(space, make_surgeon(pico, SLICING))
    assert list(found) == ["block_influence"]
    assert share(pico.layout, found["block_influence"], "nonzero_parameters") <= 0.01
