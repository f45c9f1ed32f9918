from dataclasses import replace

import numpy as np
import pytest

from predictor import AccuracyPredictor, Refinement, refine
from search.proposals import evolve
from space import Architecture, sample
from tests.predictor.synthetic import DENSE, SINGLES, SPACE, draw, measure
from tests.space.layouts import SMOLLM2_135M

FRAGILE = 5  # the layer whose MLP nothing good goes without


def harmful(architectures):
    lost = np.array([1 - each.layers[FRAGILE].mlp_width / SMOLLM2_135M.mlp_width for each in architectures])
    return (np.array(measure(architectures, 0, noise=0.01)) + 3 * lost ** (5 / 3)).tolist()


@pytest.fixture(scope="module")
def refined():
    train = draw(120, 2)
    predictor = AccuracyPredictor.fit(SMOLLM2_135M, SINGLES + train, harmful(SINGLES + train))
    rng = np.random.default_rng(0)
    good = evolve(SPACE, lambda indices: predictor.damages(SPACE.genes(indices)), rng, generations=30)
    measured = SPACE.encode(train)
    best = measured[[int(np.argmin(harmful(train)))]]
    return predictor, good, best, refine(predictor, SPACE, good, best, rng)


def test_what_cannot_be_in_a_good_model_is_cut_away(refined):
    _, _, _, found = refined
    column = 2 * FRAGILE + 1
    kept = [choice.width for choice in found.space.choices[column]]
    assert kept[-1] == 1536
    assert kept[0] >= 768
    sizes = found.space.sizes
    assert sizes[column] == sizes[1::2].min()
    assert found.cut_log10 == pytest.approx(SPACE.size_log10 - found.space.size_log10)
    assert found.cut_log10 > 1


def test_what_was_measured_best_stays_inside(refined):
    _, good, best, found = refined
    for rows in (best, good[:1]):
        assert all(found.space.allows(each) for each in SPACE.decode(rows))


def test_the_best_of_the_full_space_lies_inside(refined):
    """What an evolution finds that asks the truth itself must not have been cut away; most else was."""
    _, _, _, found = refined
    truly = evolve(
        SPACE, lambda indices: np.array(harmful(SPACE.decode(indices))), np.random.default_rng(5), 15, population=256
    )
    assert np.mean([found.space.allows(each) for each in SPACE.decode(truly[:20])]) >= 0.9
    anything = SPACE.decode(sample(SPACE, 400, np.random.default_rng(9)))
    assert np.mean([found.space.allows(each) for each in anything]) < 0.1


def test_ranges_are_contiguous_and_told(refined):
    _, _, _, found = refined
    for (first, last), own, kept in zip(found.ranges(), SPACE.choices, found.space.choices, strict=True):
        assert own[first : last + 1] == kept
    told = found.to_dict()
    assert len(told["columns"]) == SPACE.columns
    assert told["columns"][1]["kept"][1] == [1536, 0.0]
    assert told["cut_log10"] == round(found.cut_log10, 2)


def test_the_more_errors_are_allowed_the_less_is_cut(refined):
    predictor, good, best, _ = refined
    sizes = [
        refine(predictor, SPACE, good, best, np.random.default_rng(1), errors).space.size_log10 for errors in (1.0, 4.0)
    ]
    assert sizes[0] < sizes[1]


def test_dense_is_no_part_of_a_budget_below_it(refined):
    _, _, _, found = refined
    assert not found.space.allows(Architecture.dense(SMOLLM2_135M))
    assert Architecture.dense(SMOLLM2_135M) == DENSE


def test_refinements_together_keep_what_any_keeps_and_all_between():
    first, last = (
        Refinement(SPACE, replace(SPACE, choices=tuple(own[part] for own in SPACE.choices)), excess)
        for part, excess in (
            (slice(0, 1), tuple(np.arange(len(own), dtype=float) for own in SPACE.choices)),
            (slice(2, 3), tuple(np.full(len(own), 1.0) for own in SPACE.choices)),
        )
    )
    found = Refinement.together([first, last])
    assert found.full == SPACE
    assert found.space == replace(SPACE, choices=tuple(own[:3] for own in SPACE.choices))
    assert all(own.tolist() == np.minimum(np.arange(len(own)), 1.0).tolist() for own in found.excess)
    assert Refinement.together([first]) is first
