"""A step down is the exact optimum of what the slopes say, and steps end at a better architecture."""

import itertools

import numpy as np
import pytest

from predictor import AdditivePrior, Expansion
from search.descent import Descent
from search.exact import column_scores, lowest_sums
from space import Architecture, Budget, build_space, genes_of
from tests.predictor.synthetic import SINGLES
from tests.predictor.test_expansion import expansion_at, hessian, truth
from tests.space.layouts import PICO, SMOLLM2_135M

SPACE = build_space(SMOLLM2_135M, [Budget("parameters", 0.75)])


@pytest.fixture(scope="module")
def matrix():
    return hessian(3)


@pytest.fixture(scope="module")
def prior(matrix):
    return AdditivePrior.from_pairs(SMOLLM2_135M, SINGLES, truth(SINGLES, matrix).tolist())


@pytest.fixture(scope="module")
def start(prior):
    """The optimum of the sums, which knows nothing of what sub-blocks do together."""
    [found] = SPACE.decode(next(lowest_sums(SPACE, column_scores(SPACE, prior))))
    return found


def damage(architecture, matrix):
    return float(truth([architecture], matrix)[0])


def test_steps_lead_down_where_sums_see_no_way(matrix, prior, start):
    descent, best = Descent(SPACE, prior), start
    reached = [damage(start, matrix)]
    for _ in range(10):
        steps = descent.steps(expansion_at(best, matrix))
        assert all(SPACE.allows(each) for each in steps)
        assert best not in steps
        lowest = min(steps, key=lambda each: damage(each, matrix), default=best)
        if damage(lowest, matrix) < damage(best, matrix):
            best, descent.damping = lowest, steps[lowest]
        else:
            descent.shorten()
        reached.append(damage(best, matrix))
    print(reached)
    assert reached[-1] < 0.8 * reached[0]


def test_the_damping_shortens_steps(matrix, prior, start):
    expansion = expansion_at(start, matrix)
    origin = SPACE.encode([start])[0].astype(int)

    def length(damping):
        steps = Descent(SPACE, prior, damping).steps(expansion)
        return max((np.abs(SPACE.encode([each])[0] - origin).sum() for each in steps), default=0)

    lengths = [length(damping) for damping in (0.5, 2.0, 8.0, 1000.0)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[2]
    assert lengths[-1] == 0


def test_shortening_has_an_end(prior):
    descent = Descent(SPACE, prior)
    tries = itertools.takewhile(lambda _: descent.shorten(), range(100))
    assert 2 < len(list(tries)) < 10


@pytest.mark.parametrize("whole_blocks", [False, True])
def test_no_architecture_is_better_by_what_the_slopes_say(whole_blocks):
    settings = {"whole_blocks": True} if whole_blocks else {"width_step": 48}
    space = build_space(PICO, [Budget("parameters", 0.6)], **settings)
    rng = np.random.default_rng(0)
    dense = Architecture.dense(PICO)
    blocks = [dense.replace(i, kv_groups=0, mlp_width=0) for i in range(PICO.layers)]
    parts = [
        dense.replace(i, **{gene: width})
        for i in range(PICO.layers)
        for gene, whole in (("kv_groups", PICO.kv_groups), ("mlp_width", PICO.mlp_width))
        for width in (0, whole // 2)
    ]
    singles = blocks if whole_blocks else parts
    prior = AdditivePrior.from_pairs(PICO, singles, rng.uniform(0.1, 1.0, len(singles)).tolist())
    sizes = np.array([PICO.kv_groups, PICO.mlp_width] * PICO.layers)
    every = np.array(list(itertools.product(*(range(size) for size in space.sizes))), dtype=np.int16)
    if whole_blocks:
        every = every[(every[:, 0::2] == every[:, 1::2]).all(axis=1)]
    inside = every[space.within(every)]
    [start] = space.decode(inside[[len(inside) // 2]])
    slopes = rng.uniform(-1, 1, len(sizes))
    own = genes_of([start])[0][:, [0, 2]].reshape(-1)
    widths = tuple(
        tuple((float(w), float(slope * (w - at) / size)) for w in (0, size))
        for slope, at, size in zip(slopes, own, sizes, strict=True)
    )
    expansion = Expansion(PICO, start, 0.5, widths, ((),) * len(sizes))
    genes = space.genes(inside)
    first, second = (each.sum(axis=1) for each in expansion.parts(prior, genes, prior.terms(genes)))
    descent = Descent(space, prior)
    steps = descent.steps(expansion)
    assert steps
    for architecture, damping in steps.items():
        own_row = (inside == space.encode([architecture])[0]).all(axis=1)
        score = first + damping * second
        assert score[own_row] == pytest.approx(score.min(), abs=1e-3)
