import json

import numpy as np
import pytest

from space import (
    LATENCY,
    METRICS,
    Architecture,
    Budget,
    BudgetError,
    LatencyTable,
    LayerArchitecture,
    MeasurementError,
    TableCheck,
    WholeModel,
    build_space,
    cost_of,
    land,
    milliseconds,
    sample,
    uniform_widths,
)
from tests.space.layouts import PICO, SMOLLM2_135M
from tests.space.timings import made_up

TABLE = made_up(PICO)
DENSE = Architecture.dense(PICO)


def test_latency_is_a_sum_over_sub_blocks():
    architecture = DENSE.replace(0, kv_groups=1).replace(1, mlp_width=0).replace(2, kv_groups=0)
    attention, mlp = dict(TABLE.attention), dict(TABLE.mlp)
    groups, width = PICO.kv_groups, PICO.mlp_width
    kept = attention[1] + attention[groups] * (PICO.layers - 2) + mlp[width] * (PICO.layers - 1)
    assert TABLE.of(architecture) == TABLE.fixed + kept
    assert TABLE.of(DENSE) == TABLE.dense
    nothing = Architecture((LayerArchitecture(0, 0),) * PICO.layers)
    assert TABLE.of(nothing) == TABLE.fixed


def test_more_never_takes_less_and_widths_between_lie_on_a_line():
    told = [TABLE.of_mlp(width) for width in range(PICO.mlp_width + 1)]
    assert (np.diff(told) >= 0).all()
    (low, before), (high, after) = TABLE.mlp[1:3]
    assert told[(low + high) // 2] == pytest.approx((before + after) / 2, abs=1)


def test_zeros_take_as_long_as_other_weights():
    assert TABLE.of(DENSE.replace(0, mlp_sparsity=0.5, attention_sparsity=0.5)) == TABLE.dense


CHECK = TableCheck((WholeModel("0123", 90, 100, 2), WholeModel("4567", 210, 200, 3)), 0.075, 0.1, 1.0, 1.0)


@pytest.mark.parametrize("check", [None, CHECK])
def test_a_table_comes_back_from_json(check):
    table = made_up(PICO, check=check)
    assert LatencyTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table


def test_a_whole_model_says_what_the_table_errs_by():
    assert [model.error for model in CHECK.models] == pytest.approx([-0.1, 0.05])


@pytest.mark.parametrize(
    "changes",
    [
        {"fixed": None, "extra": 1},
        {"attention": [[0, 0]]},
        {"attention": [[0, 5], [1, 6]]},
        {"mlp": [[0, 0], [8, 20], [16, 10]]},
        {"mlp": [[0, 0], [8, 0]]},
        {"mlp": 3},
        {"conditions": {"phase": "prefill"}},
    ],
)
def test_a_damaged_table_is_refused(changes):
    with pytest.raises(MeasurementError, match="time the sub-blocks again"):
        LatencyTable.from_dict({**TABLE.to_dict(), **changes})


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("latency=0.8", 0.8),
        ("latency=80%", 0.8),
        ("latency=150ms", 150e6),
        ("latency = 0.5 s", 0.5e9),
        ("latency=900us", 900e3),
    ],
)
def test_a_budget_is_a_share_or_a_time(text, amount):
    budget = Budget.parse(text)
    assert budget.amount == pytest.approx(amount)
    assert Budget.parse(str(budget)) == budget
    limit = amount * TABLE.dense if amount <= 1 else amount
    assert budget.timed_by(TABLE).limit(cost_of(PICO, DENSE)) == pytest.approx(limit)


@pytest.mark.parametrize("amount", ["", "150", "1.2", "0", "-3ms", "120%", "150M", "nan", "fast"])
def test_a_time_needs_its_unit(amount):
    with pytest.raises(BudgetError, match=f"a time with us, ms or s, but is '{amount}'; write for example"):
        Budget.parse(f"latency={amount}")


def test_without_a_table_a_budget_is_refused():
    with pytest.raises(BudgetError, match=r"must have a table of timings, but latency=0\.8 has none here; time"):
        build_space(PICO, [Budget.parse("latency=0.8")])
    with pytest.raises(BudgetError, match="must have a table of timings"):
        uniform_widths(PICO, [Budget.parse("latency=0.8")])


def test_a_budget_that_nothing_meets_is_told_in_milliseconds():
    least = milliseconds(TABLE.fixed)
    with pytest.raises(BudgetError, match=rf"latency {least} .* and latency=0\.001ms allows 0\.001 ms"):
        build_space(PICO, [Budget.parse("latency=1us")], latency=TABLE)


def test_latency_is_a_column_of_costs_where_it_is_known():
    space = build_space(PICO, latency=TABLE)
    assert space.metrics == (*METRICS, LATENCY)
    drawn = np.random.default_rng(0).integers(0, space.sizes, (20, space.columns)).astype(np.int16)
    for row, architecture in zip(space.costs(drawn).tolist(), space.decode(drawn), strict=True):
        assert row == [*cost_of(PICO, architecture).values(), TABLE.of(architecture)]
        assert dict(zip(space.metrics, row, strict=True)) == space.amounts(architecture)
    assert LATENCY not in build_space(PICO).amounts(DENSE)


@pytest.mark.parametrize(
    "more", [{}, {"whole_blocks": True}, {"sparsities": (0.0, 0.5)}, {"removal": False, "width_step": 96}]
)
def test_what_is_drawn_or_landed_is_within_a_budget_on_latency(more):
    table = made_up(SMOLLM2_135M)
    budgets = [Budget("latency", 0.7), Budget("parameters", 0.9)]
    space = build_space(SMOLLM2_135M, budgets, latency=table, **more)
    rng = np.random.default_rng(0)
    drawn = sample(space, 40, rng)
    scattered = land(space, rng.integers(0, space.sizes, (40, space.columns)).astype(np.int16), rng)
    for rows in (drawn, scattered):
        assert space.within(rows).all()
        told = [table.of(architecture) for architecture in space.decode(rows)]
        assert max(told) <= 0.7 * table.dense
        assert max(told) > 0.66 * table.dense


def test_choices_are_sorted_by_what_they_take():
    space = build_space(PICO, [Budget("latency", 0.9)], sparsities=(0.0, 0.5), latency=TABLE)
    for column in range(space.columns):
        assert (np.diff(space.column_costs(column)[:, 0]) >= 0).all()
    assert space.decode(space.sizes[None] - 1) == [DENSE]


def test_uniform_widths_within_a_time():
    budget = Budget("latency", 0.6).timed_by(TABLE)
    found = uniform_widths(PICO, [budget])
    wider = [LayerArchitecture(layer.kv_groups, layer.mlp_width + 1) for layer in found.layers]
    assert TABLE.of(found) <= 0.6 * TABLE.dense < TABLE.of(Architecture(tuple(wider)))
