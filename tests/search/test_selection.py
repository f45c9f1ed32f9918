"""What is measured first, what a round measures, and who wins."""

import numpy as np
import pytest

from evaluator import Measurement, Pair
from predictor import AdditivePrior
from search import selection
from search.baselines import fixed_allocations
from search.exact import column_scores, lowest_sums
from search.proposals import mutate, nearest, prior_architectures
from search.settings import SearchConfig
from space import Architecture, Budget, build_space, sample
from tests.search.pieces import SPACE, score
from tests.space.layouts import SMOLLM2_135M

BASELINES = fixed_allocations(SPACE)


def pair(architecture, kl, origin="random"):
    return Pair(architecture, Measurement(2.0, 0.1, kl, 0.01, 0.5, 100, "protocol", 0.1), origin)


@pytest.fixture(scope="module")
def prior():
    singles = prior_architectures(SPACE)
    return AdditivePrior.from_pairs(SMOLLM2_135M, singles, score(SPACE.encode(singles)))


def within(architectures):
    return SPACE.within(SPACE.encode(architectures)).all()


def test_the_first_pairs(prior):
    settings = SearchConfig(random_pairs=12, profile_pairs=8, guided_pairs=10)
    first = selection.first_pairs(SPACE, prior, BASELINES, settings, seed=4)
    assert list(first) == ["guided", "random", "profile"]  # those that a search cut short would want first
    assert len(first["random"]) == 12
    assert 5 <= len(first["guided"]) <= 10
    assert all(within(chosen) for chosen in first.values())
    prints = [architecture.fingerprint for chosen in first.values() for architecture in chosen]
    assert len(set(prints)) == len(prints)
    assert selection.first_pairs(SPACE, prior, BASELINES, settings, seed=4) == first
    assert selection.first_pairs(SPACE, prior, BASELINES, settings, seed=5)["random"] != first["random"]
    alone = SearchConfig(random_pairs=20, profile_pairs=0, guided_pairs=0)
    assert list(selection.first_pairs(SPACE, prior, {}, alone, seed=4)) == ["random"]
    # Guided pairs are where a search would go: far better by the prior than random ones.
    assert np.median(score(SPACE.encode(first["guided"]))) < np.median(score(SPACE.encode(first["random"])))
    # The best by additive scores, which nothing searched by them can be better than, is among them.
    [exact] = SPACE.decode(next(lowest_sums(SPACE, column_scores(SPACE, prior))))
    assert exact in first["guided"]


def test_the_baselines_are_among_the_first_pairs(prior):
    settings = SearchConfig(random_pairs=12, profile_pairs=8, guided_pairs=0)
    first = selection.first_pairs(SPACE, prior, BASELINES, settings, seed=4)["profile"]
    for baseline, found in zip([BASELINES["uniform"], BASELINES["uniform_whole_ends"]], first, strict=False):
        gaps = [abs(a.mlp_width - b.mlp_width) for a, b in zip(baseline.layers, found.layers, strict=True)]
        assert sorted(gaps)[len(gaps) // 2] <= 128  # one step of the space, landing may move a few layers further
        same = [a.kv_groups == b.kv_groups for a, b in zip(baseline.layers, found.layers, strict=True)]
        assert sum(same) > len(same) / 2


def test_other_baselines_are_starting_points_and_not_taken_for_smooth(prior):
    settings = SearchConfig(random_pairs=12, profile_pairs=8, guided_pairs=0)
    found = Architecture.dense(SMOLLM2_135M)
    for index in range(7, 13):
        found = found.replace(index, kv_groups=0, mlp_width=0)
    first = selection.first_pairs(SPACE, prior, {**BASELINES, "block_influence": found}, settings, seed=4)
    [start] = first["allocated"]
    widths = [layer.mlp_width for layer in start.layers]
    assert np.mean(widths[7:13]) < 384 < 1408 < np.mean(widths[:7] + widths[13:])
    assert first["profile"] == selection.first_pairs(SPACE, prior, BASELINES, settings, seed=4)["profile"]


def test_the_lowest_are_the_best_within_the_budget():
    dense = Architecture.dense(SMOLLM2_135M)
    drawn = SPACE.decode(sample(SPACE, 4, np.random.default_rng(0)))
    off_step = fixed_allocations(build_space(SMOLLM2_135M, (Budget("parameters", 0.5),)))["uniform"]
    measured = [pair(a, kl) for a, kl in zip((dense, *drawn, off_step), (0.0, 0.4, 0.2, 0.3, 0.2, 0.1), strict=True)]
    chosen = selection.lowest(measured, SPACE, 3)
    tied = sorted((drawn[1], drawn[3]), key=lambda architecture: architecture.fingerprint)
    assert chosen == [*tied, drawn[2]]  # neither dense nor one that the space does not hold
    assert selection.lowest(measured[::-1], SPACE, 3) == chosen


def test_finalists_are_averages_a_smooth_one_and_the_best_of_the_rest():
    drawn = SPACE.decode(sample(SPACE, 12, np.random.default_rng(0)))
    origins = ["searched"] * 5 + ["averaged"] * 4 + ["profile"] * 3
    measured = [pair(a, 0.1 + i / 100, origin) for i, (a, origin) in enumerate(zip(drawn, origins, strict=True))]
    assert selection.finalists(measured, SPACE, 6) == [drawn[0], *drawn[5:8], drawn[9], drawn[1]]
    assert selection.finalists(measured, SPACE, 1) == [drawn[0]]
    assert selection.finalists(measured[:5], SPACE, 3) == drawn[:3]  # no others to be had
    assert sorted(a.fingerprint for a in selection.finalists(measured, SPACE, 50)) == sorted(
        a.fingerprint for a in drawn
    )


def test_averages_are_new_and_of_the_best():
    centre = np.repeat(nearest(SPACE, fixed_allocations(SPACE)["uniform"], np.random.default_rng(0)), 16, axis=0)
    near = SPACE.decode(mutate(SPACE, centre, np.random.default_rng(1)))
    far = SPACE.decode(sample(SPACE, 16, np.random.default_rng(2)))
    measured = [pair(a, 0.1 + i / 100) for i, a in enumerate(near)] + [pair(a, 0.9) for a in far]
    found = selection.averages_of(measured, SPACE, 5, [0, 4, 1])
    assert len({a.fingerprint for a in found} - {p.architecture.fingerprint for p in measured}) == 5
    assert found == selection.averages_of(measured, SPACE, 5, [0, 4, 1])
    rows = SPACE.encode(found)
    assert np.abs(rows - centre[0]).sum(axis=1).max() < np.abs(SPACE.encode(far) - centre[0]).sum(axis=1).min()
    # What was measured does not come again, and smooth ones draw the averages towards them.
    more = [pair(a, 0.05, "averaged") for a in found]
    again = selection.averages_of(measured + more, SPACE, 5, [0, 4, 1])
    assert not {a.fingerprint for a in again} & {a.fingerprint for a in found}
    assert selection.averages_of([*measured, pair(far[0], 0.9, "profile")], SPACE, 5, [0, 4, 1]) != found
    assert selection.averages_of(measured, SPACE, 0, [0, 4, 1]) == []


def measured_pair(architecture, blocks, origin="searched"):
    kl = float(np.mean(blocks))
    measurement = Measurement(3.0, 0.1, kl, 0.1, 0.5, 64 * len(blocks), "p", 1.0, (3.0,) * len(blocks), tuple(blocks))
    return Pair(architecture, measurement, origin)


def test_the_consensus_is_the_mean_of_the_best_drawn_towards_the_smooth_one():
    rng = np.random.default_rng(3)
    smooth, *others = SPACE.decode(sample(SPACE, 9, rng))
    pairs = [pair(a, 0.1 + i / 100) for i, a in enumerate(others)] + [pair(smooth, 0.3, "profile")]
    found = selection.consensus(pairs, SPACE, [0, 5])
    assert found == selection.consensus(pairs, SPACE, [0, 5])
    assert all(SPACE.allows(each) for each in found)
    best, anchor = SPACE.encode(others[:4]).mean(axis=0), SPACE.encode([smooth])[0]
    away = [np.abs(row - best).mean() for row in SPACE.encode(found)]
    towards = [np.abs(row - anchor).mean() for row in SPACE.encode(found)]
    assert away[0] == min(away) < 1
    assert towards[-1] == min(towards) < towards[0]
    # The others are of no account, and without a smooth one there is nothing to be drawn to.
    assert selection.consensus(pairs[:4] + pairs[-1:], SPACE, [0, 5]) == found
    assert selection.consensus(pairs[:4], SPACE, [0, 5]) == found[:1]


def test_the_winner_is_the_lowest_or_a_smoother_one_within_an_error():
    smooth, near, far = SPACE.decode(sample(SPACE, 3, np.random.default_rng(4)))
    between = SPACE.encode([smooth, far]).mean(axis=0)
    near = SPACE.decode(np.floor(between).astype(np.int16)[None])[0]
    noise = np.array([0.0, 0.02, -0.02, 0.01, -0.01, 0.0])
    pairs = [
        measured_pair(far, 0.3 + noise),
        measured_pair(near, 0.303 + noise[::-1]),
        measured_pair(smooth, 0.4 + noise, "profile"),
    ]
    assert selection.winner(pairs, SPACE, 0.0) == far
    assert selection.winner(pairs, SPACE, 1.0) == near
    # The error is that of the difference: what is hard for both tells nothing.
    pairs[1] = measured_pair(near, 0.303 + noise + 1e-4 * noise[::-1])
    assert selection.winner(pairs, SPACE, 1.0) == far
    assert selection.winner(pairs[:2], SPACE, 1.0) == far
