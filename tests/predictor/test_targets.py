import numpy as np
import pytest

from predictor import AccuracyPredictor, Target
from space import PredictorError
from tests.predictor.conftest import pairs_of
from tests.predictor.synthetic import draw, measure
from tests.space.layouts import SMOLLM2_135M

# Target and what a damage of 0.2 measures.
CASES = {
    "kl": (Target(), 0.2),
    "nll": (Target("nll", 3.0), 3.2),
    "perplexity": (Target("perplexity", 28.5), 28.5 * np.exp(0.2)),
    "accuracy": (Target("accuracy", 0.6), 0.4),
    "latency": (Target("latency", 120.0), 120 * np.exp(-0.2)),
}


@pytest.mark.parametrize("name", CASES)
def test_damage_and_value_are_each_others_reverse(name):
    target, value = CASES[name]
    damage = target.damage(np.array([value, target.dense]))
    np.testing.assert_allclose(damage, [0.2, 0.0], atol=1e-12)
    np.testing.assert_allclose(target.values(damage), [value, target.dense])
    np.testing.assert_allclose(target.damage_of(target.learned(damage)), damage, atol=2e-6)
    assert Target.from_dict(target.to_dict()) == target


def test_chance_may_make_an_accuracy_better_but_no_divergence():
    assert Target("accuracy", 0.5).damage(np.array([0.52])) == pytest.approx(-0.02)
    assert Target("perplexity", 28.5).damage(np.array([28.4])) == 0


@pytest.mark.parametrize("name", CASES)
def test_each_target_is_learned_and_told_in_its_own_unit(name):
    target, _ = CASES[name]
    architectures, values = pairs_of(0)
    fresh = draw(200, 77)
    # Damages of up to 2 leave no accuracy.
    scale = 0.1 if name in ("accuracy", "latency") else 1.0
    truth = target.values(scale * np.array(measure(fresh, 0)))
    predictor = AccuracyPredictor.fit(
        SMOLLM2_135M, architectures, target.values(scale * np.array(values)).tolist(), target=target
    )
    told = predictor.predict(fresh)
    assert np.corrcoef(told.value, truth)[0, 1] > 0.9
    assert np.median(np.abs(target.damage(told.value) / target.damage(truth) - 1)) < 0.12
    assert (told.lower < told.upper).all()
    assert 0.8 < np.mean((told.lower <= truth) & (truth <= told.upper)) <= 0.97
    dense = predictor.predict(architectures[:1])
    assert dense.value[0] == dense.lower[0] == dense.upper[0] == target.dense
    ordered = np.argsort(predictor.damages(predictor_genes(fresh)))
    best, worst = truth[ordered[:50]].mean(), truth[ordered[-50:]].mean()
    # What a cost saves is no damage; all else is the worse the more there is of it.
    assert (best > worst) == (name in ("accuracy", "latency"))


def predictor_genes(architectures):
    from space import genes_of

    return genes_of(architectures)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Target("speed"), "must be one of kl, nll"),
        (lambda: Target("kl", 0.1), "kl must be 0, but is 0.1"),
        (lambda: Target("perplexity", 0.0), "perplexity must be above 0, but is 0"),
        (lambda: Target("accuracy", float("nan")), "accuracy must be finite, but is nan"),
    ],
)
def test_what_no_target_can_be_is_refused(make, message):
    with pytest.raises(PredictorError, match=message):
        make()


@pytest.mark.parametrize(
    ("target", "value"),
    [
        (Target(), -0.1),
        (Target("nll", 3.0), -1.0),
        (Target("perplexity", 20.0), 0.0),
        (Target("accuracy", 0.5), np.inf),
    ],
)
def test_values_that_a_target_cannot_have_are_refused(target, value):
    architectures, values = pairs_of(0)
    values = target.values(0.1 * np.array(values)).tolist()
    values[9] = value
    with pytest.raises(PredictorError, match=rf"{architectures[9].fingerprint} \(pair"):
        AccuracyPredictor.fit(SMOLLM2_135M, architectures, values, target=target)
