"""What is measured first, what a round measures, and who wins."""

import numpy as np
import pytest

from evaluator import Measurement, Pair
from predictor import AdditivePrior
from search import selection
from search.proposals import evolve, prior_architectures
from space import Architecture, Budget, BudgetError, build_space, cost_of, sample
from tests.search.pieces import SPACE, score
from tests.space.layouts import SMOLLM2_135M


def pair(architecture, kl, origin="random"):
    return Pair(architecture, Measurement(2.0, 0.1, kl, 0.01, 0.5, 100, "protocol", 0.1), origin)


@pytest.fixture(scope="module")
def prior():
    singles = prior_architectures(SPACE)
    return AdditivePrior.from_pairs(SMOLLM2_135M, singles, score(SPACE.encode(singles)))


def within(architectures):
    return SPACE.within(SPACE.encode(architectures)).all()


def test_the_baselines():
    space = build_space(SMOLLM2_135M, (Budget("parameters", 0.7),))
    found = selection.allocations(space)
    assert list(found) == ["dense", "uniform", "uniform_whole_ends"]
    dense = cost_of(SMOLLM2_135M, found["dense"])
    for name in ("uniform", "uniform_whole_ends"):
        assert 0.69 < cost_of(SMOLLM2_135M, found[name]).parameters / dense.parameters <= 0.7
    assert len(set(found["uniform"].layers)) == 1
    assert found["uniform_whole_ends"].layers[0] == found["dense"].layers[0] != found["uniform_whole_ends"].layers[10]


def test_a_tight_budget_has_no_whole_ends_and_an_impossible_one_no_baseline():
    space = build_space(SMOLLM2_135M, (Budget("parameters", 0.1),))
    assert list(selection.allocations(space)) == ["dense", "uniform"]
    with pytest.raises(BudgetError):
        build_space(SMOLLM2_135M, (Budget("weight_bytes", 0.1),))


def test_a_sparse_search_is_compared_with_uniform_sparsity():
    space = build_space(SMOLLM2_135M, (Budget("nonzero_parameters", 0.5),), widths=False, sparsities=(0.0, 0.5, 0.7))
    [layer] = set(selection.allocations(space)["uniform"].layers)
    assert (layer.kv_groups, layer.mlp_width) == (3, 1536)
    assert 0.49 < layer.attention_sparsity < 0.52


def test_the_first_pairs(prior):
    random, guided = selection.first_pairs(SPACE, prior, 12, 10, seed=4)
    assert (len(random), within(random), within(guided)) == (12, True, True)
    assert 5 <= len(guided) <= 10
    prints = [architecture.fingerprint for architecture in (*random, *guided)]
    assert len(set(prints)) == len(prints)
    assert selection.first_pairs(SPACE, prior, 12, 10, seed=4) == (random, guided)
    assert selection.first_pairs(SPACE, prior, 12, 10, seed=5)[0] != random
    assert selection.first_pairs(SPACE, prior, 12, 0, seed=4) == (random, [])
    # Guided pairs are where a search would go: far better by the prior than random ones.
    assert np.median(score(SPACE.encode(guided))) < np.median(score(SPACE.encode(random)))


def test_diverse_choices_differ_from_each_other():
    rng = np.random.default_rng(0)
    best = evolve(SPACE, score, rng, generations=10, population=256)
    candidates = SPACE.decode(best)
    chosen = selection.diverse(SPACE, candidates, 5)
    assert chosen[0] == candidates[0]
    rows = SPACE.encode(chosen)
    distances = [(rows[i] != rows[j]).sum() for i in range(5) for j in range(i)]
    assert min(distances) >= 3
    # Where all are alike the first of the others fill up.
    dense = Architecture.dense(SMOLLM2_135M)
    alike = [dense.replace(0, mlp_width=width) for width in (1408, 1280, 1152, 1024)]
    assert selection.diverse(SPACE, alike, 3) == alike[:3]


def test_finalists_are_the_best_within_the_budget():
    dense = Architecture.dense(SMOLLM2_135M)
    drawn = SPACE.decode(sample(SPACE, 4, np.random.default_rng(0)))
    off_step = selection.allocations(build_space(SMOLLM2_135M, (Budget("parameters", 0.5),)))["uniform"]
    measured = [pair(a, kl) for a, kl in zip((dense, *drawn, off_step), (0.0, 0.4, 0.2, 0.3, 0.2, 0.1), strict=True)]
    chosen = selection.finalists(measured, SPACE, 3)
    tied = sorted((drawn[1], drawn[3]), key=lambda architecture: architecture.fingerprint)
    assert chosen == [*tied, drawn[2]]  # neither dense nor one that the space does not hold
    assert selection.finalists(measured[::-1], SPACE, 3) == chosen
