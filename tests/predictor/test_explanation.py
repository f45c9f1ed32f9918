import numpy as np
import pytest

from predictor import partial_dependence, sub_block_damages, what_if
from space import PredictorError
from tests.predictor.synthetic import DENSE, draw


def test_shares_of_sub_blocks_add_up_to_the_prediction(predictor):
    for architecture in [*draw(3, 1), DENSE]:
        shares = sub_block_damages(predictor, architecture)
        assert shares.shape == (30, 2)
        assert shares.sum() == pytest.approx(predictor.predict([architecture]).value[0], rel=1e-6)


def test_only_what_is_pruned_has_a_share_and_the_more_harmful_has_more(predictor):
    both = DENSE.replace(4, mlp_width=256).replace(20, kv_groups=2)
    shares = sub_block_damages(predictor, both)
    assert set(zip(*np.nonzero(np.abs(shares) > 1e-9), strict=True)) == {(4, 1), (20, 0)}
    alone = predictor.prior.terms(np.array([[[3, 0, 1536, 0]] * 30], dtype=float))
    assert not alone.any()
    assert shares[4, 1] > shares[20, 0] > 0


def test_one_seed_one_answer(predictor):
    [architecture] = draw(1, 3)
    first, again, other = (sub_block_damages(predictor, architecture, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() < 0.25 * first.max()


def test_what_if_asks_the_changed_architecture(predictor):
    [architecture] = draw(1, 4)
    told = what_if(predictor, architecture, 7, "mlp_width", [0, 768, 1536])
    asked = [architecture.replace(7, mlp_width=width) for width in (0, 768, 1536)]
    np.testing.assert_allclose(told.value, predictor.predict(asked).value)
    assert told.value[0] > told.value[2]


def test_partial_dependence_is_the_mean_over_architectures(predictor):
    asked = draw(6, 5)
    found = partial_dependence(predictor, asked, 7, "mlp_width", [512, 1536])
    by_hand = [
        predictor.predict([each.replace(7, mlp_width=width) for each in asked]).value.mean() for width in (512, 1536)
    ]
    assert found.tolist() == pytest.approx(by_hand)


@pytest.mark.parametrize(("layer", "gene"), [(30, "mlp_width"), (-1, "mlp_width"), (3, "width")])
def test_no_such_gene_is_refused(predictor, layer, gene):
    with pytest.raises(PredictorError, match=f"but is {gene} in layer {layer}"):
        what_if(predictor, DENSE, layer, gene, [1])
