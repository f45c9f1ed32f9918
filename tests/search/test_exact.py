"""The integer program finds what trying everything finds."""

import ctypes
import itertools

import numpy as np
import pytest

from search import exact
from search.exact import lowest_sums
from space import Budget, build_space
from tests.space.layouts import PICO, SMOLLM2_135M
from tests.space.timings import made_up

SMALL = build_space(PICO, [Budget("parameters", 0.7), Budget("kv_cache_bytes_per_token", 0.8)], width_step=48)


TIMED = build_space(
    PICO, [Budget("latency", 0.7), Budget("parameters", 0.8)], width_step=48, latency=made_up(PICO, fixed=200_003)
)


def drawn(space, seed):
    """Damages that rise as less is kept, more in some sub-blocks than in others."""
    rng = np.random.default_rng(seed)
    return [np.sort(rng.uniform(0, rng.uniform(0.1, 1.0), size))[::-1] for size in space.sizes]


def best_sums(space, scores, count=1, apart=1):
    return np.concatenate(list(itertools.islice(lowest_sums(space, scores, apart), count)))


def total(scores, rows):
    return sum(own[rows[:, column]] for column, own in enumerate(scores))


@pytest.mark.parametrize(
    ("metric", "amount"), [("parameters", 0.7), ("kv_cache_bytes_per_token", 0.7), ("kv_cache_bytes_per_token", 0.5)]
)
def test_the_best_of_all_may_take_all_of_the_budget(metric, amount, monkeypatch):
    """Where each step costs and helps alike, the optimum is the limit itself, and there are many."""
    monkeypatch.setattr(exact, "_SECONDS", 4.0)  # it is soon found, and not proved in five times as long
    space = build_space(SMOLLM2_135M, [Budget(metric, amount)])
    costs = [space.column_costs(column)[:, 0] for column in range(space.columns)]
    scores = [-own / space.limits[0] for own in costs]
    found = best_sums(space, scores, count=3)
    assert len(found) == 3
    assert space.within(found).all()
    highest = space.limits[0] - space.fixed_budget_costs[0]
    assert sum(costs[column][found[0, column]] for column in range(space.columns)) == pytest.approx(highest, rel=2e-4)


@pytest.mark.parametrize(("space", "seed"), [(SMALL, 0), (SMALL, 1), (SMALL, 2), (TIMED, 0), (TIMED, 1)])
def test_no_architecture_within_the_budgets_is_better(space, seed):
    scores = drawn(space, seed)
    every = np.array(list(itertools.product(*(range(size) for size in space.sizes))), dtype=np.int16)
    inside = every[space.within(every)]
    assert 100 < len(inside) < len(every)
    found = best_sums(space, scores, count=5)
    assert space.within(found).all()
    assert np.allclose(total(scores, found), np.sort(total(scores, inside))[:5], rtol=2e-4)


def test_the_solver_prints_nothing(capfd, monkeypatch):
    """HiGHS now and then has a line to say whatever it was told; stdout may be somebody's JSON."""
    solve = exact.milp

    def talkative(*arguments, **settings):
        ctypes.CDLL(None).printf(b"from C\n")
        return solve(*arguments, **settings)

    monkeypatch.setattr(exact, "milp", talkative)
    print("before")
    assert len(best_sums(SMALL, drawn(SMALL, 0))) == 1
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"


def test_solutions_are_as_far_apart_as_asked_for():
    space = build_space(SMOLLM2_135M, [Budget("parameters", 0.8)])
    scores = drawn(space, 0)
    found = best_sums(space, scores, count=4, apart=6)
    assert len(found) == 4
    differ = (found[:, None] != found[None]).sum(axis=2)
    assert differ[~np.eye(4, dtype=bool)].min() >= 6
    assert (np.diff(total(scores, found)) > -1e-3).all()


def test_whole_blocks_stay_whole():
    space = build_space(SMOLLM2_135M, [Budget("parameters", 0.74)], whole_blocks=True)
    scores = drawn(space, 1)
    [best] = best_sums(space, scores)
    assert space.within(best[None])[0]
    gain = [scores[2 * i][0] - scores[2 * i][1] + scores[2 * i + 1][0] - scores[2 * i + 1][1] for i in range(30)]
    assert set(np.flatnonzero(best[0::2] == 0)) == set(np.argsort(gain)[:8])


def test_there_may_be_fewer_than_asked_for():
    space = build_space(PICO, [Budget("parameters", 0.7)], whole_blocks=True)
    scores = drawn(space, 1)
    every = np.repeat(list(itertools.product((0, 1), repeat=PICO.layers)), 2, axis=1)
    inside = every[space.within(every)]
    found = best_sums(space, scores, count=40)
    assert {tuple(row) for row in found} == {tuple(row) for row in inside}
    assert (np.diff(total(scores, found)) > -1e-3).all()
