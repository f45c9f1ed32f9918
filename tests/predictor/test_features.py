import json

import numpy as np
import pytest

from predictor import AdditivePrior, feature_names, features
from predictor.prior import rounding_floor
from space import Architecture, PredictorError, genes_of
from tests.predictor.synthetic import DENSE, SINGLES, draw, measure
from tests.space.layouts import PICO, SMOLLM2_135M

PICO_DENSE = Architecture.dense(PICO)
# By hand: width 64 is dense; sparsity was measured in layer 0 alone.
PICO_SINGLES = {
    **{PICO_DENSE.replace(i, mlp_width=32): 0.04 * (i + 1) for i in range(3)},
    **{PICO_DENSE.replace(i, mlp_width=0): 0.36 * (i + 1) for i in range(3)},
    **{PICO_DENSE.replace(i, kv_groups=0): 0.25 for i in range(3)},
    PICO_DENSE.replace(0, mlp_sparsity=0.5): 0.01,
}


@pytest.fixture(scope="module")
def pico_prior():
    return AdditivePrior.from_pairs(PICO, list(PICO_SINGLES), list(PICO_SINGLES.values()))


@pytest.fixture(scope="module")
def prior():
    return AdditivePrior.from_pairs(SMOLLM2_135M, SINGLES, measure(SINGLES, 0, noise=0.0))


def terms_of(prior, *architectures):
    return prior.terms(genes_of(architectures))


def test_terms_by_hand(pico_prior):
    pruned = PICO_DENSE.replace(0, mlp_width=48).replace(1, kv_groups=1).replace(2, mlp_width=16, kv_groups=0)
    # Half of the way to 0.04; of two groups, one kept is half of the way to 0.25; 16 is between 0.12 and 1.08.
    half = 0.5 ** (5 / 3)
    between = ((0.12**0.6 + 1.08**0.6) / 2) ** (5 / 3)
    assert terms_of(pico_prior, pruned)[0] == pytest.approx([0, 0.04 * half, 0.25 * half, 0, 0.25, between])
    assert terms_of(pico_prior, PICO_DENSE)[0].tolist() == [0.0] * 6


def test_width_and_sparsity_add_and_go_on_beyond_the_last_point(pico_prior):
    both = PICO_DENSE.replace(0, mlp_width=32, mlp_sparsity=0.25)
    assert terms_of(pico_prior, both)[0, 1] == pytest.approx(0.04 + 0.01 * 0.5 ** (5 / 3))
    sparser = PICO_DENSE.replace(0, mlp_sparsity=0.75)
    assert terms_of(pico_prior, sparser)[0, 1] == pytest.approx(0.01 * 1.5 ** (5 / 3))


def test_exact_on_singles(prior):
    terms = terms_of(prior, *SINGLES)
    assert terms.sum(axis=1) == pytest.approx(measure(SINGLES, 0, noise=0.0), rel=1e-12)
    assert ((terms > 0).sum(axis=1) == 1).all()
    # 150 MLP singles, 5 a layer, then 90 of attention, 3 a layer.
    columns = [2 * (i // 5) + 1 for i in range(150)] + [2 * (i // 3) for i in range(90)]
    assert terms.argmax(axis=1).tolist() == columns


def test_more_kept_never_hurts():
    noisy = measure(SINGLES, 1, noise=1.0)
    noisy[4] = -0.2  # a measurement below dense is noise
    prior = AdditivePrior.from_pairs(SMOLLM2_135M, SINGLES, noisy)
    for layer in (0, 7, 29):
        mlp = terms_of(prior, *(DENSE.replace(layer, mlp_width=width) for width in range(1537)))[:, 2 * layer + 1]
        attention = terms_of(prior, *(DENSE.replace(layer, kv_groups=groups) for groups in range(4)))[:, 2 * layer]
        for curve in (mlp, attention):
            assert (np.diff(curve) <= 1e-15).all()
            assert curve[-1] == 0
            assert curve[0] > 0


def test_pairs_that_are_no_singles_do_not_change_the_prior(prior):
    more = [*draw(5, 0), DENSE, *SINGLES, DENSE.replace(3, kv_groups=1, mlp_width=384)]
    values = [9.0] * 5 + [0.0] + measure(SINGLES, 0, noise=0.0) + [9.0]
    assert AdditivePrior.from_pairs(SMOLLM2_135M, more, values) == prior


def test_round_trip(prior, pico_prior):
    for layout, one in ((SMOLLM2_135M, prior), (PICO, pico_prior)):
        again = AdditivePrior.from_dict(layout, json.loads(json.dumps(one.to_dict())))
        assert again == one
    genes = genes_of(draw(20, 1))
    again = AdditivePrior.from_dict(SMOLLM2_135M, json.loads(json.dumps(prior.to_dict())))
    assert np.array_equal(again.terms(genes), prior.terms(genes))


def test_a_missing_sub_block_is_refused():
    kept = [single for single in SINGLES if single.layers[7].mlp_width == 1536]
    with pytest.raises(PredictorError, match=r"measured alone, but the MLP of layer 7 is asked for .*; measure one"):
        AdditivePrior.from_pairs(SMOLLM2_135M, kept + draw(3, 0), [0.1] * (len(kept) + 3))
    # One that is always dense needs no measurement, until it is asked for.
    prior = AdditivePrior.from_pairs(SMOLLM2_135M, kept, [0.1] * len(kept))
    with pytest.raises(PredictorError, match="MLP of layer 7 is asked for with mlp_width 64"):
        terms_of(prior, DENSE.replace(7, mlp_width=64))


def test_a_missing_sparsity_is_refused(pico_prior):
    with pytest.raises(PredictorError, match=r"attention of layer 1 is asked for with attention_sparsity 0.5"):
        terms_of(pico_prior, PICO_DENSE.replace(1, attention_sparsity=0.5))


def test_genes_out_of_range_are_refused(prior):
    with pytest.raises(PredictorError, match=r"shape \(architectures, 30, 4\), but are of shape \(1, 3, 4\)"):
        prior.terms(genes_of([PICO_DENSE]))
    for gene, value in (("mlp_width", 1537), ("kv_groups", -1)):
        with pytest.raises(PredictorError, match=r"of layer 2 must keep between 0 and"):
            terms_of(prior, DENSE.replace(2, **{gene: value}))


@pytest.mark.parametrize("values", [{}, {"widths": [], "sparsities": []}, {"widths": 3, "sparsities": [[]] * 60}, []])
def test_damaged_values_are_refused(values):
    with pytest.raises(PredictorError, match="60 sub-blocks, but does not"):
        AdditivePrior.from_dict(SMOLLM2_135M, values)


def test_features_by_hand(pico_prior):
    pruned = PICO_DENSE.replace(0, mlp_width=0).replace(1, mlp_width=32).replace(2, kv_groups=0)
    genes = genes_of([pruned])
    row = dict(zip(feature_names(PICO), features(pico_prior.terms(genes))[0], strict=True))
    # Damages 0.36, 0.08, 0.25.
    assert row["prior"] == pytest.approx(np.log(0.69))
    assert row["neighbours"] == pytest.approx((np.sqrt(0.36 * 0.08) + np.sqrt(0.08 * 0.25)) / 0.69)
    assert row["within_layer"] == 0
    both = PICO_DENSE.replace(1, mlp_width=32, kv_groups=0)
    assert features(terms_of(pico_prior, both))[0, 2] == pytest.approx(np.sqrt(0.08 * 0.25) / 0.33)
    assert (row["mlp_0"], row["attention_2"], row["attention_0"]) == pytest.approx((0.6, 0.5, 0.0))


def test_features_of_dense_are_finite(prior):
    genes = genes_of([DENSE])
    assert np.isfinite(features(prior.terms(genes))).all()
    assert features(prior.terms(genes[:0])).shape == (0, len(feature_names(SMOLLM2_135M)))


def test_the_rounding_floor_is_read_from_one_channel_less_and_taken_off():
    floor = np.linspace(0.003, 0.001, 30)
    clean = measure(SINGLES, 0, noise=0.0)
    layer = [next(i for i, own in enumerate(each.layers) if own != DENSE.layers[i]) for each in SINGLES]
    probes = [DENSE.replace(i, mlp_width=1535) for i in (0, 10, 29)]
    found = AdditivePrior.from_pairs(
        SMOLLM2_135M,
        [*SINGLES, *probes],
        [value + floor[i] for value, i in zip(clean, layer, strict=True)] + [floor[i] for i in (0, 10, 29)],
    )
    expected = AdditivePrior.from_pairs(SMOLLM2_135M, SINGLES, clean)
    asked = [*draw(20, 0), *(DENSE.replace(i, mlp_width=1408) for i in range(30))]
    # A small value keeps a tenth of what was measured, whatever the floor.
    assert terms_of(found, *asked) == pytest.approx(terms_of(expected, *asked), rel=0.15, abs=5e-4)
    assert terms_of(found, *draw(20, 0)).sum(axis=1) == pytest.approx(
        terms_of(expected, *draw(20, 0)).sum(axis=1), rel=0.01
    )
    # Without the probes the floor stays in.
    raised = AdditivePrior.from_pairs(
        SMOLLM2_135M, SINGLES, [value + floor[i] for value, i in zip(clean, layer, strict=True)]
    )
    assert (terms_of(raised, *draw(20, 0)).sum(axis=1) > 1.02 * terms_of(expected, *draw(20, 0)).sum(axis=1)).all()


def test_the_floor_is_linear_between_the_layers_where_it_was_measured():
    widths = [{} for _ in range(60)]
    widths[2 * 5 + 1] = {1535.0: 0.002, 1024.0: 0.05}
    widths[2 * 15 + 1] = {1535.0: 0.001}
    floor = rounding_floor(SMOLLM2_135M, widths)
    assert floor[[0, 5, 10, 15, 29]] == pytest.approx([0.002, 0.002, 0.0015, 0.001, 0.001])
    assert widths[11] == {1024.0: 0.05}
    assert rounding_floor(SMOLLM2_135M, [{} for _ in range(60)]).tolist() == [0.0] * 30


def test_what_is_learned_as_it_is_is_not_divided_by_its_sum(pico_prior):
    terms = terms_of(pico_prior, PICO_DENSE.replace(0, mlp_width=0).replace(1, mlp_width=32))
    row = dict(zip(feature_names(PICO, few_tokens=True), features(terms, False, np.array([0.3]))[0], strict=True))
    assert row["prior"] == pytest.approx(0.44)
    assert row["neighbours"] == pytest.approx(np.sqrt(0.36 * 0.08))
    assert row["few_tokens"] == 0.3


def test_the_assumed_prior_is_one_curve_for_each_kind():
    rng = np.random.default_rng(0)
    asked = draw(60, 1)
    lost = 1 - genes_of(asked)[:, :, [0, 2]] / (SMOLLM2_135M.kv_groups, SMOLLM2_135M.mlp_width)
    truth = (lost ** (5 / 3) * (0.05, 0.3)).sum(axis=(1, 2))
    prior = AdditivePrior.assumed(SMOLLM2_135M, genes_of(asked), truth * np.exp(0.01 * rng.standard_normal(60)))
    np.testing.assert_allclose(terms_of(prior, *asked).sum(axis=1), truth, rtol=0.05)
    assert terms_of(prior, DENSE.replace(3, mlp_sparsity=0.5)).sum() > 0  # of which no pair told anything
