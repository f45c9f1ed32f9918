"""Strategies spend what they may, within the budget, and the same seed measures the same."""

import numpy as np
import pytest

from search.config import load_config
from search.exact import column_scores, lowest_sums
from search.folder import RunFolder
from search.job import Run
from search.objective import additive_prior
from search.progress import Reporter
from search.strategies import STRATEGIES
from space import genes_of, sample
from tests.evaluator.pieces import make_evaluator

OTHERS = [name for name in STRATEGIES if name != "predictor"]  # which whole runs are tests of
TOKENS = 124  # of the search text: 4 sequences of 31 predicted tokens


@pytest.fixture
def work(pico, pico_folder, tmp_path):
    """Return what makes a new run on one store, as several strategies have."""
    judge = make_evaluator(pico, tmp_path)

    def make(seed=0, **settings):
        values = {"model": str(pico_folder), "budget": "parameters=0.7", "seed": seed, **settings}
        config = load_config(None, values)
        space = config.search_space(pico.layout)
        return Run(config, RunFolder(tmp_path), Reporter(quiet=True), judge, space, {}, [], [], None)

    return make


def asked(run):
    return [(each.split, each.pair.architecture.fingerprint) for each in run.trace]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("whole_blocks", [False, True])
def test_a_strategy_spends_its_tokens_within_the_budget(work, name, whole_blocks):
    run = work(**{"space.whole_blocks": whole_blocks})
    STRATEGIES[name](run, 40 * TOKENS)
    whole = [each.pair for each in run.trace if each.split == "search" and each.pair.origin != "prior"]
    assert len(whole) >= 4
    assert all(run.space.allows(pair.architecture) for pair in whole)
    assert len({pair.architecture for pair in whole}) == len(whole)
    assert run.trace[-1].tokens == run.spent
    if not whole_blocks:  # else there are few architectures, and all may have been measured
        most = {"evolution": 16 * 31 + 4 * 62}.get(name, 0) + TOKENS
        assert 40 * TOKENS <= run.spent <= 40 * TOKENS + most


@pytest.mark.parametrize("name", OTHERS)
def test_the_same_seed_measures_the_same(work, name):
    first, again, other = work(), work(), work(seed=1)
    for run in (first, again, other):
        STRATEGIES[name](run, 35 * TOKENS)
    assert asked(first) == asked(again)
    assert first.spent == again.spent  # though all was in the store
    if name != "additive":  # which draws nothing
        assert asked(first) != asked(other)


def test_evolution_never_gets_worse_and_beats_its_start(work):
    run = work()
    STRATEGIES["evolution"](run, 150 * TOKENS)
    whole = [each.pair.measurement.kl for each in run.trace if each.split == "search"]
    assert min(whole) < whole[0]
    stages = {each.split for each in run.trace}
    assert stages == {"search:1", "search:2", "search"}
    of = {stage: sum(each.split == stage for each in run.trace) for stage in stages}
    assert of["search:1"] > 2.5 * of["search:2"] > 5 * of["search"]


def test_additive_measures_the_lowest_sums_first(work):
    run = work()
    STRATEGIES["additive"](run, 40 * TOKENS)
    prior = additive_prior(run.space, run.pairs)
    scores = column_scores(run.space, prior)
    rows = sample(run.space, 50, np.random.default_rng(0))
    added = sum(own[rows[:, column]] for column, own in enumerate(scores))
    assert np.allclose(added, prior.terms(run.space.genes(rows)).sum(axis=1))
    solved = [each.pair.architecture for each in run.trace if each.pair.origin == "searched"]
    sums = prior.terms(genes_of(solved)).sum(axis=1)
    assert sums[0] <= sums.min() * (1 + 2e-4)
    assert sums.max() < added.min()
    assert solved[:1] == run.space.decode(next(lowest_sums(run.space, scores)))


def test_what_was_measured_before_is_paid_for_but_not_measured_again(work):
    first, second = work(), work()
    rows = sample(first.space, 5, np.random.default_rng(0))
    first.score(first.space.decode(rows), "random")
    measured = first.evaluator.store.tokens_measured()
    second.score(second.space.decode(rows), "random")
    second.score(second.space.decode(rows), "random")  # once
    assert second.evaluator.store.tokens_measured() == measured
    assert second.spent == first.spent > 0
