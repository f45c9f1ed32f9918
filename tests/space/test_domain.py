import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from space import (
    GENES,
    Architecture,
    ArchitectureError,
    Budget,
    BudgetError,
    Layout,
    SettingError,
    build_space,
    cost_of,
    default_width_step,
    genes_of,
    land,
)
from tests.space.layouts import PICO, SMOLLM2_135M

SPACES = [
    build_space(PICO),
    build_space(PICO, sparsities=(0.0, 0.25, 0.5)),
    build_space(PICO, [Budget("parameters", 0.5)], width_step=24, removal=False),
    build_space(PICO, [Budget("nonzero_parameters", 0.5)], widths=False, removal=False, sparsities=(0.0, 0.5, 0.7)),
]


@st.composite
def vectors(draw, space):
    rows = draw(st.lists(st.tuples(*(st.integers(0, int(size) - 1) for size in space.sizes)), min_size=1, max_size=4))
    return np.array(rows, dtype=np.int16)


@pytest.mark.parametrize("space", SPACES)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_decode_encode_and_costs_agree(space, data):
    indices = data.draw(vectors(space))
    architectures = space.decode(indices)
    assert np.array_equal(space.encode(architectures), indices)
    assert np.array_equal(space.genes(indices), genes_of(architectures))
    assert space.costs(indices).tolist() == [list(cost_of(PICO, a).values()) for a in architectures]


@given(
    data=st.data(),
    parameters=st.floats(0.2, 1.0),
    cache=st.floats(0.2, 1.0),
    flops=st.floats(0.2, 1.0),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_land_is_always_within_all_budgets(data, parameters, cache, flops, seed):
    budgets = [
        Budget("parameters", parameters),
        Budget("kv_cache_bytes_per_token", cache),
        Budget("flops_per_token", flops),
    ]
    space = build_space(PICO, budgets, sparsities=(0.0, 0.5))
    indices = data.draw(vectors(space))
    before = indices.copy()
    landed = land(space, indices, np.random.default_rng(seed))
    assert np.array_equal(indices, before)
    assert space.within(landed).all()
    assert ((landed >= 0) & (landed < space.sizes)).all()
    dense = cost_of(PICO, Architecture.dense(PICO))
    for architecture in space.decode(landed):
        for budget in budgets:
            assert getattr(cost_of(PICO, architecture), budget.metric) <= budget.limit(dense)


def test_land_leaves_no_room_for_another_step():
    space = build_space(SMOLLM2_135M, [Budget("parameters", 0.8)])
    rng = np.random.default_rng(0)
    landed = land(space, np.zeros((20, space.columns), dtype=np.int16), rng)
    for column in range(space.columns):
        more = landed.copy()
        more[:, column] += 1
        rows = more[:, column] < space.sizes[column]
        assert not space.within(more[rows]).any()


@pytest.mark.parametrize("metric", ["parameters", "nonzero_parameters", "kv_cache_bytes_per_token"])
def test_choices_run_from_cheapest_to_dense(metric):
    """The last choice is dense, also where sparse choices cost as much in the budget's metric."""
    space = build_space(PICO, [Budget(metric, 1.0)], sparsities=(0.0, 0.5))
    dense = np.array([space.sizes - 1])
    assert space.decode(dense) == [Architecture.dense(PICO)]
    costs = [space.column_costs(column)[:, 0] for column in range(space.columns)]
    assert all((np.diff(cost) >= 0).all() for cost in costs)


def test_choices_of_a_space():
    space = build_space(SMOLLM2_135M)
    assert [choice.width for choice in space.choices[0]] == [0, 1, 2, 3]
    assert [choice.width for choice in space.choices[1]] == list(range(0, 1537, 128))
    assert space.columns == 60
    assert space.size_log10 == pytest.approx(30 * np.log10(4 * 13))
    assert [c.width for c in build_space(SMOLLM2_135M, width_step=1000).choices[1]] == [0, 1000, 1536]
    assert [c.width for c in build_space(SMOLLM2_135M, removal=False).choices[0]] == [1, 2, 3]
    assert space.genes(np.zeros((5, 60), dtype=np.int16)).shape == (5, 30, len(GENES))
    assert default_width_step(PICO) == 8
    assert default_width_step(SMOLLM2_135M) == 128


def test_no_architectures_encode_to_no_rows():
    assert build_space(PICO).encode([]).shape == (0, 6)


@pytest.mark.parametrize("step", [0, -8, 65])
def test_bad_step(step):
    with pytest.raises(
        SettingError, match=f"between 1 and the model's MLP width 64, but is {step}; leave it out to get 8"
    ):
        build_space(PICO, width_step=step)


@pytest.mark.parametrize("sparsities", [(), (1.0,), (-0.1, 0.5)])
def test_bad_sparsities(sparsities):
    with pytest.raises(SettingError, match="sparsities must be at least 0 and below 1"):
        build_space(PICO, sparsities=sparsities)


def test_infeasible_budget():
    with pytest.raises(
        BudgetError, match=r"smallest has parameters .* and parameters=0.01 allows .*; raise the budget"
    ):
        build_space(PICO, [Budget("parameters", 0.01)], removal=False)


def test_encode_refuses_what_the_space_does_not_allow():
    space = build_space(PICO, width_step=16, sparsities=(0.0, 0.5))
    dense = Architecture.dense(PICO)
    with pytest.raises(ArchitectureError, match=r"mlp_width .* layer 1, but is 20; the nearest are 16 and 32"):
        space.encode([dense.replace(1, mlp_width=20)])
    with pytest.raises(
        ArchitectureError, match=r"sparsity of the attention in layer 2 must be one of 0, 0.5, but is 0.3"
    ):
        space.encode([dense.replace(2, attention_sparsity=0.3)])
    with pytest.raises(ArchitectureError, match="3 layers, but has 2"):
        space.encode([Architecture(dense.layers[:2])])


def test_a_layout_of_wide_layers_keeps_the_step():
    assert default_width_step(Layout.from_dict({**PICO.to_dict(), "mlp_width": 11008})) == 128


@pytest.mark.parametrize("whole_blocks", [False, True])
def test_a_budget_that_leaves_nothing_is_refused(whole_blocks):
    with pytest.raises(BudgetError, match=r"must leave a model something of its layers, but parameters=1e-06"):
        build_space(PICO, [Budget("parameters", 1e-6)], whole_blocks=whole_blocks)
    one_block = 1 / PICO.layers + 1e-6
    assert build_space(PICO, [Budget("parameters", one_block)], whole_blocks=whole_blocks).columns == 2 * PICO.layers
