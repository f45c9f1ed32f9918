"""The range of costs that a search covers: rungs within the budgets, from the top to the floor."""

import numpy as np
import pytest

from search.ladder import Ladder
from space import Budget, SettingError, build_space, cost_of, sample
from tests.search.pieces import SPACE
from tests.space.layouts import SMOLLM2_135M

ONE = Ladder(build_space(SMOLLM2_135M, [Budget("parameters", 0.8)]), ("weight_bytes",))
TWO = Ladder(SPACE, ("weight_bytes", "kv_cache_bytes_per_token"), 0.5)


def test_without_costs_the_space_is_the_one_rung():
    plain, rng = Ladder(SPACE), np.random.default_rng(0)
    assert plain.rungs(rng=rng) == plain.corners() == [SPACE]
    assert rng.random() == np.random.default_rng(0).random()  # nothing was drawn
    assert plain.shares(SPACE.decode(sample(SPACE, 2, rng))).shape == (2, 0)
    assert plain.marks.shape == (1, 0)


def test_shares_are_of_the_dense_models_costs():
    found = SPACE.decode(sample(SPACE, 3, np.random.default_rng(0)))
    dense = cost_of(SMOLLM2_135M, found[0].dense(SMOLLM2_135M))
    for architecture, row in zip(found, TWO.shares(found), strict=True):
        cost = cost_of(SMOLLM2_135M, architecture)
        assert row.tolist() == [
            cost.weight_bytes / dense.weight_bytes,
            cost.kv_cache_bytes_per_token / dense.kv_cache_bytes_per_token,
        ]


@pytest.mark.parametrize("ladder", [ONE, TWO])
def test_rungs_reach_from_the_budgets_to_the_floor(ladder):
    metrics = len(ladder.against)
    rungs = ladder.rungs()
    assert len(rungs) == 2**metrics + 4
    assert rungs[0] == ladder.space
    rng = np.random.default_rng(1)
    tops = np.array([ladder.shares(rung.decode(sample(rung, 20, rng))).max(axis=0) for rung in rungs])
    assert np.allclose(tops[0], ladder.top, atol=0.02)
    assert (tops[-1] <= ladder.floor).all()
    for rung in rungs:
        assert ladder.space.within(sample(rung, 20, rng)).all()
    # Between the ends they are spread over the range, elsewhere each time that a generator says where.
    assert (np.ptp(tops, axis=0) > 0.9 * (ladder.top - ladder.floor)).all()
    drawn = [ladder.rungs(rng=np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert ladder.rungs() == rungs


def test_marks_and_reference_lie_a_little_beyond_the_range():
    for ladder in (ONE, TWO):
        marks = ladder.marks
        assert (marks >= ladder.floor).all()
        assert (marks < ladder.reference).all()
        beyond = (marks > ladder.top).mean(axis=0)
        assert np.allclose(beyond, 1 / 6, atol=0.03)  # so that what is within all of the budgets counts


def test_the_floor_is_halfway_to_the_smallest_unless_it_is_given():
    least = (np.asarray(ONE._priced.fixed_budget_costs) / ONE._priced.limits)[0]
    assert ONE.floor.tolist() == [pytest.approx((1 + least) / 2)]
    assert TWO.floor.tolist() == [0.5, 0.5]


def test_costs_that_cannot_be_traded_are_refused():
    with pytest.raises(SettingError, match=r"between the smallest weight_bytes .* 0.210 and 0.84. of .*, but is 0.100"):
        Ladder(ONE.space, ("weight_bytes",), 0.1)
    with pytest.raises(SettingError, match=r"that the budgets allow, 0.000 and 0.[67]\d\d .*, but is 0.800"):
        Ladder(SPACE, ("kv_cache_bytes_per_token",), 0.8)
    budget = Budget("nonzero_parameters", 0.6)
    sparse = build_space(SMOLLM2_135M, [budget], widths=False, removal=False, sparsities=(0, 0.5))
    with pytest.raises(SettingError, match="every architecture has the same parameters; leave it out"):
        Ladder(sparse, ("parameters",))
