import json
import math
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau

from predictor import AccuracyPredictor, AdditivePrior, Prediction, Target, curve_of, feature_names
from space import Architecture, PredictorError, genes_of, sample
from tests.predictor.conftest import pairs_of
from tests.predictor.synthetic import DENSE, SINGLES, SPACE, draw, measure
from tests.space.layouts import PICO, SMOLLM2_135M

ROOT = Path(__file__).parent.parent.parent


def same(first: Prediction, second: Prediction) -> bool:
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in ("value", "lower", "upper"))


@pytest.mark.parametrize("seed", range(3))
def test_ranks_new_architectures_better_than_the_additive_prior(seed):
    train, test = draw(100, seed), draw(300, seed + 50)
    architectures = SINGLES + train + test
    values = measure(architectures, seed)
    known = len(SINGLES) + len(train)
    predictor = AccuracyPredictor.fit(SMOLLM2_135M, architectures[:known], values[:known])
    prediction = predictor.predict(test)
    truth = np.array(values[known:])
    mine = kendalltau(prediction.value, truth).statistic
    additive = kendalltau(predictor.prior.terms(genes_of(test)).sum(axis=1), truth).statistic
    assert mine > additive + 0.03
    assert predictor.quality.kendall_tau > predictor.quality.prior_kendall_tau + 0.02
    assert predictor.quality.kendall_tau == pytest.approx(mine, abs=0.1)
    assert predictor.quality.prior_kendall_tau == pytest.approx(additive, abs=0.1)
    assert np.median(prediction.value / truth) == pytest.approx(1, abs=0.05)


def test_intervals_cover_about_what_they_say():
    covered = []
    for seed in range(6):
        architectures = SINGLES + draw(60 + 200, seed + 10)
        values = measure(architectures, seed)
        known = len(SINGLES) + 60
        predictor = AccuracyPredictor.fit(SMOLLM2_135M, architectures[:known], values[:known])
        prediction = predictor.predict(architectures[known:])
        truth = np.array(values[known:])
        assert (prediction.lower < prediction.value).all()
        assert (prediction.value < prediction.upper).all()
        covered.append(np.mean((prediction.lower <= truth) & (truth <= prediction.upper)))
    assert 0.85 < np.mean(covered) < 0.95


def test_a_prior_may_come_from_elsewhere():
    train, test = draw(60, 0), draw(40, 5)
    values = measure(SINGLES + train, 0)
    alone, own = values[: len(SINGLES)], values[len(SINGLES) :]
    prior = AdditivePrior.from_pairs(SMOLLM2_135M, SINGLES, alone)
    with_singles = AccuracyPredictor.fit(SMOLLM2_135M, SINGLES + train, values)
    assert same(AccuracyPredictor.fit(SMOLLM2_135M, train, own, prior=prior).predict(test), with_singles.predict(test))
    half = AdditivePrior.from_pairs(SMOLLM2_135M, SINGLES, [value / 2 for value in alone])
    told = AccuracyPredictor.fit(SMOLLM2_135M, train, own, prior=half)
    assert told.prior == half
    truth = measure(test, 0)
    assert np.median(told.predict(test).value / truth) == pytest.approx(1, abs=0.1)  # the pairs tell how much it is
    with pytest.raises(PredictorError, match=r"additive prior must be of the model"):
        AccuracyPredictor.fit(PICO, train, own, prior=prior)


def test_says_what_it_was_fitted_on(predictor):
    assert (predictor.protocol, predictor.target, predictor.layout) == ("synthetic", Target(), SMOLLM2_135M)
    assert (predictor.quality.pairs, predictor.quality.seed) == (100, 3)


def test_genes_and_records_predict_alike(predictor):
    indices = SPACE.encode(draw(50, 4))
    prediction = predictor.predict(SPACE.decode(indices))
    assert len(prediction) == 50
    assert same(prediction, predictor.predict_genes(SPACE.genes(indices)))
    np.testing.assert_array_equal(predictor.damages(SPACE.genes(indices)), prediction.value)
    alone = [predictor.predict([architecture]).value[0] for architecture in SPACE.decode(indices[:5])]
    assert alone == pytest.approx(prediction.value[:5].tolist(), rel=1e-9)
    assert len(predictor.predict([])) == 0


@pytest.mark.parametrize("name", ["gaussian_process", "xgboost", "hist_gradient_boosting"])
def test_many_at_once_and_in_threads_predict_as_few(pairs, name):
    predictor = AccuracyPredictor.fit(SMOLLM2_135M, *pairs, regressors=[name])
    genes = SPACE.genes(sample(SPACE, 5000, np.random.default_rng(0)))
    genes[4000] = genes_of([DENSE])[0]
    at_once = predictor.predict_genes(genes)
    assert len(at_once) == 5000
    assert at_once.value[4000] == at_once.lower[4000] == at_once.upper[4000] == 0
    assert same(at_once, predictor.predict_genes(genes, threads=2))
    np.testing.assert_array_equal(predictor.damages(genes), at_once.value)
    np.testing.assert_array_equal(predictor.damages(genes, threads=2), at_once.value)
    some = predictor.predict_genes(genes[2040:2060])
    for part in ("value", "lower", "upper"):
        np.testing.assert_allclose(getattr(some, part), getattr(at_once, part)[2040:2060], rtol=1e-9)
    genes[4500, 7, 2] = 1537
    with pytest.raises(PredictorError, match="MLP of layer 7 must keep between 0 and 1536"):
        predictor.predict_genes(genes, threads=2)


def test_memory_does_not_grow_with_the_architectures(predictor):
    genes = SPACE.genes(np.tile(sample(SPACE, 100, np.random.default_rng(0)), (200, 1)))
    peaks = []
    for count in (2_500, 20_000):
        predictor.predict_genes(genes[:count])
        tracemalloc.start()
        predictor.predict_genes(genes[:count])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 20_000 * 3 * 8 * 3  # three results, in pieces and together


def test_dense_is_zero_and_more_damage_is_worse(predictor):
    worse = DENSE.replace(3, mlp_width=384).replace(8, mlp_width=768)
    values = predictor.predict([DENSE, worse, worse.replace(9, mlp_width=0)])
    assert values.value[0] == values.lower[0] == values.upper[0] == 0
    assert 0 < values.value[1] < values.value[2]


def test_order_and_dense_value_of_the_pairs(pairs, predictor):
    architectures, values = pairs
    assert architectures[0] == DENSE
    again = AccuracyPredictor.fit(
        SMOLLM2_135M, [*SINGLES[:9], *architectures], [*values[1:10], 0.3, *values[1:]], protocol="synthetic", seed=3
    )
    assert same(predictor.predict(draw(9, 1)), again.predict(draw(9, 1)))


def test_contributions_add_up(pairs):
    predictor = AccuracyPredictor.fit(SMOLLM2_135M, *pairs, regressors=["xgboost"])
    architectures = draw(5, 2)
    parts = predictor.contributions(architectures)
    assert list(parts[0]) == [*feature_names(SMOLLM2_135M), "constant"]
    sums = [sum(row.values()) for row in parts]
    assert sums == pytest.approx(np.log(predictor.predict(architectures).value), abs=1e-4)


def test_round_trip_to_the_last_bit(predictor, tmp_path):
    folder = tmp_path / "run" / "predictor"
    predictor.save(folder)
    predictor.save(folder)  # over itself
    assert sorted(path.name for path in folder.iterdir()) == ["predictor.json", "predictor.safetensors"]
    again = AccuracyPredictor.load(folder)
    assert same(again.predict(draw(50, 5)), predictor.predict(draw(50, 5)))
    for name in ("layout", "prior", "quality", "protocol", "target", "seed", "few_tokens", "expansions"):
        assert getattr(again, name) == getattr(predictor, name), name


CODE = """
from predictor import AccuracyPredictor
from tests.predictor.conftest import pairs_of
from tests.predictor.synthetic import draw
from tests.space.layouts import SMOLLM2_135M
predictor = AccuracyPredictor.fit(SMOLLM2_135M, *pairs_of(0), seed=3)
prediction = predictor.predict(draw(20, 5))
print([value.hex() for value in (*prediction.value.tolist(), *prediction.lower.tolist())])
"""


def test_another_process_predicts_the_same(predictor):
    run = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=True)
    prediction = predictor.predict(draw(20, 5))
    values = (*prediction.value.tolist(), *prediction.lower.tolist())
    assert run.stdout.strip() == str([value.hex() for value in values])


def test_another_seed_is_another_predictor(pairs, predictor):
    other = AccuracyPredictor.fit(SMOLLM2_135M, *pairs, seed=4)
    assert not same(other.predict(draw(20, 5)), predictor.predict(draw(20, 5)))


def refused(architectures, values, message, layout=SMOLLM2_135M):
    with pytest.raises(PredictorError, match=message):
        AccuracyPredictor.fit(layout, architectures, values)


def test_refuses_too_few_pairs(pairs):
    architectures, values = pairs
    singles = 1 + len(SINGLES)
    message = "at least 20 architectures that change more than one gene .* there are 19; measure 1 more"
    refused(architectures[: singles + 19], values[: singles + 19], message)
    AccuracyPredictor.fit(SMOLLM2_135M, architectures[: singles + 20], values[: singles + 20])
    refused(architectures[:singles], values[:singles], "there are 0; measure 20 more")
    refused([], [], "there are 0; measure 20 more")


def test_refuses_constant_targets(pairs):
    architectures, values = pairs
    singles = 1 + len(SINGLES)
    refused(architectures, values[:singles] + [0.5] * 100, "must differ, but all 100 are 0.5")
    refused(architectures, values[:singles] + [0.0] * 100, "must differ, but all 100 are 0")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.001])
def test_refuses_values_that_are_no_damage(pairs, value):
    architectures, values = pairs
    name = architectures[-1].fingerprint
    refused(architectures, [*values[:-1], value], rf"at least 0, but that of architecture {name} \(pair \d+\) is")


def test_refuses_architectures_of_another_model(pairs, predictor):
    architectures, values = pairs
    foreign = Architecture(DENSE.layers[:-1])
    refused([*architectures, foreign], [*values, 0.1], "Architecture 341 must fit .* 30 layers, but has 29")
    refused(architectures, values, "3 layers, but has 30", PICO)
    with pytest.raises(PredictorError, match="30 layers, but has 29"):
        predictor.predict([foreign])
    with pytest.raises(PredictorError, match="mlp_width must be between 0 and 1536 in layer 1, but is 2000"):
        predictor.predict([DENSE.replace(1, mlp_width=2000)])


def test_refuses_contradictions(pairs):
    architectures, values = pairs
    twice = [*architectures, architectures[300]]
    AccuracyPredictor.fit(SMOLLM2_135M, twice, [*values, values[300]])
    refused(twice, [*values, values[300] * 1.01], r"one value, but \w+ has .* \(pair 300\) and .* \(pair 341\)")
    refused(architectures, values[:-1], "341 architectures and 340 values")


def test_refuses_a_sub_block_never_measured_alone(pairs):
    architectures, values = pairs
    kept = [i for i, a in enumerate(architectures) if not (a in SINGLES and a.layers[4].kv_groups < 3)]
    refused([architectures[i] for i in kept], [values[i] for i in kept], "attention of layer 4 is asked for")


@pytest.mark.parametrize("name", ["predictor.json", "predictor.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_refuses_a_damaged_folder(predictor, tmp_path, name, damage):
    predictor.save(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(PredictorError, match=re.escape(name)):
        AccuracyPredictor.load(tmp_path)


def test_refuses_a_foreign_folder(predictor, tmp_path):
    with pytest.raises(PredictorError, match="cannot be read"):
        AccuracyPredictor.load(tmp_path / "nowhere")
    predictor.save(tmp_path)
    record = json.loads((tmp_path / "predictor.json").read_text())
    changes = {
        "version 2": {"version": 1},
        "format secateur-predictor": {"format": "other"},
        "'target'": {"target": None},
        "features": {"features": []},
        "layout": {"layout": {}},
        "quality": {"quality": {}},
        "prior": {"prior": {}},
        "'expansions'": {"expansions": None},
    }
    for message, change in changes.items():
        values = {key: value for key, value in {**record, **change}.items() if value is not None}
        (tmp_path / "predictor.json").write_text(json.dumps(values))
        with pytest.raises(PredictorError, match=message):
            AccuracyPredictor.load(tmp_path)
    (tmp_path / "predictor.json").write_text("[]")
    with pytest.raises(PredictorError, match="format secateur-predictor version 2"):
        AccuracyPredictor.load(tmp_path)


def test_refuses_arrays_of_another_predictor(pairs, predictor, tmp_path):
    name = "predictor.safetensors"
    predictor.save(tmp_path / "a")
    AccuracyPredictor.fit(SMOLLM2_135M, *pairs_of(1)).save(tmp_path / "b")
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(PredictorError, match=r"safetensors must be the one that was saved with predictor.json"):
        AccuracyPredictor.load(tmp_path / "a")


def test_few_tokens_help_where_they_know_more(pairs):
    architectures, values = pairs
    rng = np.random.default_rng(0)
    fresh = draw(200, 9)
    truth = np.array(measure(fresh, 0))

    def few(of):
        return np.array(of) * np.exp(0.03 * rng.standard_normal(len(of)))

    own = few(values)
    own[1 : 1 + len(SINGLES)] = np.nan  # of singles none is needed
    plain = AccuracyPredictor.fit(SMOLLM2_135M, architectures, values)
    better = AccuracyPredictor.fit(SMOLLM2_135M, architectures, values, few_tokens=own.tolist())
    told = better.predict(fresh, few(truth).tolist())
    assert kendalltau(told.value, truth).statistic > kendalltau(plain.predict(fresh).value, truth).statistic + 0.02
    many, measured = np.tile(genes_of(fresh), (20, 1, 1)), few(np.tile(truth, 20)).tolist()
    np.testing.assert_allclose(
        better.predict_genes(many, measured).value[-200:],
        better.predict_genes(many[-200:], measured[-200:]).value,
        rtol=1e-9,
    )
    with pytest.raises(PredictorError, match="4000 architectures and 4001 measurements"):
        better.predict_genes(many, [0.5] * 4001)
    with pytest.raises(PredictorError, match="but none were given; measure them"):
        better.predict(fresh)
    with pytest.raises(PredictorError, match="but some were given; leave them out"):
        plain.predict(fresh, few(truth).tolist())
    with pytest.raises(PredictorError, match="few tokens must be finite"):
        AccuracyPredictor.fit(SMOLLM2_135M, architectures, values, few_tokens=[np.nan] * len(values))
    with pytest.raises(PredictorError, match="341 architectures and 2 measurements"):
        AccuracyPredictor.fit(SMOLLM2_135M, architectures, values, few_tokens=[1.0, 2.0])


def test_pairs_without_any_single_fit_as_well():
    architectures = draw(300, 4)
    values = measure(architectures, 0)
    predictor = AccuracyPredictor.fit(SMOLLM2_135M, architectures[:150], values[:150])
    told = predictor.predict(architectures[150:])
    assert kendalltau(told.value, values[150:]).statistic > 0.55
    assert predictor.quality.kendall_tau > predictor.quality.prior_kendall_tau


def test_pairs_of_two_protocols_are_refused(pairs):
    architectures, values = pairs
    one = ["a"] * len(values)
    assert AccuracyPredictor.fit(SMOLLM2_135M, architectures, values, protocol=one).protocol == "a"
    with pytest.raises(PredictorError, match=r"of one protocol, but are of 2 \(a, b\)"):
        AccuracyPredictor.fit(SMOLLM2_135M, architectures, values, protocol=[*one[1:], "b"])


def test_far_from_what_was_measured_intervals_are_wider(predictor):
    near = draw(50, 6)
    far = [each.replace(i % 30, mlp_width=0, kv_groups=0) for i, each in enumerate(draw(50, 7))]
    near, far = (predictor.predict(each) for each in (near, far))
    widths = [np.median(np.log(each.upper / each.value)) for each in (near, far)]
    assert widths[1] > 1.1 * widths[0]


def test_what_was_held_out_comes_with_its_interval(pairs, predictor):
    architectures, values = pairs
    measured = {each.fingerprint: value for each, value in zip(architectures, values, strict=True)}
    assert len(predictor.held_out) == 100
    inside = [low <= measured[name] <= high for name, (_, low, high) in predictor.held_out.items()]
    assert 0.88 <= np.mean(inside) <= 0.93  # what the quantile was chosen for


def test_the_learning_curve_ends_at_the_quality(pairs, predictor):
    curve = curve_of(predictor, *pairs)
    assert curve[-1].pairs == 90
    assert curve[-1].rmse_log == pytest.approx(predictor.quality.rmse_log)
