import numpy as np
import pytest

from predictor import AccuracyPredictor, choose_batch
from space import genes_of
from tests.predictor.synthetic import SINGLES, draw, measure
from tests.space.layouts import SMOLLM2_135M

TRAIN = draw(60, 1)
BEST = min(measure(TRAIN, 0))


@pytest.fixture(scope="module")
def predictor():
    return AccuracyPredictor.fit(SMOLLM2_135M, SINGLES + TRAIN, measure(SINGLES + TRAIN, 0))


def test_the_first_pick_has_the_highest_expected_improvement(predictor):
    asked = draw(80, 2)
    picks = choose_batch(predictor, genes_of(asked), 6, BEST)
    assert len({pick.index for pick in picks}) == 6
    value, covariance, _ = predictor.belief(genes_of(asked))
    spread = np.sqrt(np.diag(covariance))
    draws = value + spread * np.random.default_rng(0).standard_normal((20_000, 1))
    by_chance = np.maximum(np.log(BEST) - draws, 0).mean(axis=0)
    assert by_chance[picks[0].index] > 0.95 * by_chance.max()
    assert picks[0].improvement == np.float64(picks[0].improvement) > 0


def test_a_twin_of_what_is_picked_teaches_nothing_more(predictor):
    asked = draw(40, 2)
    [first, *_] = choose_batch(predictor, genes_of(asked), 1, BEST)
    twins = [asked[first.index]] * 5 + asked
    picks = choose_batch(predictor, genes_of(twins), 4, BEST)
    same = [pick for pick in picks if twins[pick.index] == asked[first.index]]
    assert twins[picks[0].index] == asked[first.index]
    assert all(pick.spread < 0.8 * first.spread for pick in same[1:])


def test_no_more_than_there_are(predictor):
    asked = draw(3, 2)
    assert len(choose_batch(predictor, genes_of(asked), 9, 0.3)) == 3


def test_factors_decide_between_equals(predictor):
    asked = draw(40, 2)
    last = choose_batch(predictor, genes_of(asked), 40, BEST)[-1].index
    factor = np.ones(40)
    factor[last] = 0.2
    assert choose_batch(predictor, genes_of(asked), 1, BEST, factor)[0].index == last


def test_under_several_budgets_a_batch_is_spread_over_them(predictor):
    asked = draw(60, 2)
    within = np.zeros((60, 4), dtype=bool)
    within[:, 3] = True
    for budget in range(3):
        within[20 * budget : 20 * (budget + 1), budget:] = True  # twenty that are within all, twenty of three, of two
    genes, best = genes_of(asked), np.full(4, max(measure(TRAIN, 0)))
    picks = choose_batch(predictor, genes, 3, best, within=within)
    # The first serves all budgets; what it promises there is what the others must beat.
    value, covariance, _ = predictor.belief(genes)
    spread = np.sqrt(np.diag(covariance))[:, None]
    draws = value[:, None] + spread * np.random.default_rng(0).standard_normal((60, 5_000))
    gain = np.maximum(np.log(best[0]) - draws, 0).mean(axis=1) * within.mean(axis=1)
    assert gain[picks[0].index] > 0.98 * gain.max()
    assert picks[0].index < 20
    alone = choose_batch(predictor, genes, 1, best[:1])[0]
    assert picks[1].improvement < 0.5 * picks[0].improvement <= 0.6 * alone.improvement * 4
    one = choose_batch(predictor, genes, 3, best[0])
    assert choose_batch(predictor, genes, 3, best[:1]) == one
