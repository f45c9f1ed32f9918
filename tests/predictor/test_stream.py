"""What layers removed together do: by hand on three layers, and learned where the additive prior is blind."""

import json

import numpy as np
import pytest
from scipy.stats import kendalltau

from predictor import AccuracyPredictor, AdditivePrior, ResidualStream
from space import Architecture, Budget, PredictorError, build_space, genes_of, sample
from tests.space.layouts import SMOLLM2_135M

LAYERS = SMOLLM2_135M.layers
SPACE = build_space(SMOLLM2_135M, [Budget("parameters", 0.74)], whole_blocks=True)
DENSE = Architecture.dense(SMOLLM2_135M)
BLOCKS = [DENSE.replace(layer, kv_groups=0, mlp_width=0) for layer in range(LAYERS)]


def walk(seed=0):
    """A stream whose neighbouring layers partly undo each other."""
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((LAYERS, 64))
    steps[1:] -= 0.7 * steps[:-1]
    states = np.concatenate([np.full((1, 64), 2.0), 2.0 + 0.1 * steps.cumsum(axis=0)])
    unit = states / np.linalg.norm(states, axis=1, keepdims=True)
    added = np.diff(states, axis=0) / np.linalg.norm(states[:-1], axis=1, keepdims=True)
    return ResidualStream(1 - unit @ unit.T, added @ added.T)


STREAM = walk()


def damage(architectures):
    """The truth: what a run of layers does follows the displacement over all of it."""
    found = []
    for each in architectures:
        gone = [layer.kv_groups == 0 for layer in each.layers] + [False]
        total, start = 0.0, None
        for layer, own in enumerate(gone):
            if own and start is None:
                start = layer
            if not own and start is not None:
                total += STREAM.displacement[start, layer]
                start = None
        found.append(total)
    return np.array(found)


def test_by_hand():
    displacement = np.array([[0.0, 1.0, 1.5, 4.0], [1.0, 0.0, 1.0, 2.0], [1.5, 1.0, 0.0, 2.0], [4.0, 2.0, 2.0, 0.0]])
    overlap = np.array([[1.0, -0.5, 0.0], [-0.5, 1.0, 0.25], [0.0, 0.25, 1.0]])
    stream = ResidualStream(displacement, overlap)
    terms = np.array([[1.0, 1.0, 2.0, 2.0, 3.0, 3.0]] * 4)
    removed = np.array([[True, True, False], [True, False, True], [False, True, True], [False, False, False]])
    found = stream.joint(terms, removed)
    # Layers 0 and 1 together: 6 of 12, times 1.5 / (1 + 1); layers 1 and 2: 10 of 12, times 2 / (1 + 2).
    expected = [(12 - 6 + 6 * 0.75) / 12, 1.0, (12 - 10 + 10 * 2 / 3) / 12, 1.0]
    assert np.exp(found[:, 0]) == pytest.approx(expected)
    assert np.exp(found[:, 1]) == pytest.approx([(2 - 1.0) / 2, 1.0, (2 + 0.5) / 2, 1.0])


def test_what_runs_of_layers_do_is_predicted_where_sums_are_blind():
    rng = np.random.default_rng(1)
    drawn = SPACE.decode(np.unique(sample(SPACE, 160, rng), axis=0))
    train, test = drawn[:80], drawn[80:]
    pairs = BLOCKS + train
    values = damage(pairs) * np.exp(0.02 * rng.standard_normal(len(pairs)))
    plain, told = (
        AccuracyPredictor.fit(SMOLLM2_135M, pairs, values, stream=each, regressors=["gaussian_process"])
        for each in (None, STREAM)
    )
    truth = np.log(damage(test))
    errors = [np.std(np.log(each.predict(test).value) - truth) for each in (plain, told)]
    assert errors[1] < 0.5 * errors[0]
    assert told.quality.rmse_log < 0.6 * plain.quality.rmse_log


def test_what_to_expect_before_any_whole_architecture_is_measured():
    prior = AdditivePrior.from_pairs(SMOLLM2_135M, BLOCKS, damage(BLOCKS).tolist())
    drawn = SPACE.decode(sample(SPACE, 60, np.random.default_rng(3)))
    genes = genes_of(drawn)
    truth = damage(drawn)
    assert STREAM.expected(prior, genes) == pytest.approx(truth)
    assert kendalltau(prior.terms(genes).sum(axis=1), truth).statistic < 0.8


def test_a_predictor_keeps_its_stream(tmp_path):
    drawn = SPACE.decode(sample(SPACE, 40, np.random.default_rng(2)))
    pairs = BLOCKS + drawn
    told = AccuracyPredictor.fit(SMOLLM2_135M, pairs, damage(pairs), stream=STREAM, regressors=["gaussian_process"])
    told.save(tmp_path / "predictor")
    again = AccuracyPredictor.load(tmp_path / "predictor")
    assert again.predict(drawn).value.tolist() == told.predict(drawn).value.tolist()
    assert (
        ResidualStream.from_dict(json.loads(json.dumps(STREAM.to_dict()))).overlap.tolist() == STREAM.overlap.tolist()
    )
    assert "overlap" in told.feature_names


def test_streams_that_do_not_fit_are_refused():
    with pytest.raises(PredictorError, match="finite matrices of layers and of one more"):
        ResidualStream(np.zeros((3, 3)), np.zeros((3, 3)))
    with pytest.raises(PredictorError, match="finite matrices"):
        ResidualStream(np.zeros((4, 4)), np.full((3, 3), np.nan))
    short = ResidualStream(np.zeros((4, 4)), np.zeros((3, 3)))
    drawn = SPACE.decode(sample(SPACE, 40, np.random.default_rng(2)))
    with pytest.raises(PredictorError, match="of 30 layers, but has 3"):
        AccuracyPredictor.fit(SMOLLM2_135M, BLOCKS + drawn, damage(BLOCKS + drawn), stream=short)
