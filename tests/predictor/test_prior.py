"""A layer's two sub-blocks together, where that was measured."""

import json

import numpy as np

from predictor import AdditivePrior, expect_elsewhere
from space import Architecture, genes_of
from tests.space.layouts import SMOLLM2_135M


def test_a_layer_removed_whole_does_what_was_measured_of_it():
    layout = SMOLLM2_135M
    dense = Architecture.dense(layout)
    parts = [dense.replace(i, **gone) for i in range(layout.layers) for gone in ({"kv_groups": 0}, {"mlp_width": 0})]
    whole = [dense.replace(i, kv_groups=0, mlp_width=0) for i in (1, 2)]
    values = [0.1, 0.3] * layout.layers + [0.6, 0.2]
    prior = AdditivePrior.from_pairs(layout, parts + whole, values)
    assert dict(prior.blocks) == {1: 0.6, 2: 0.2}
    asked = [whole[0], whole[1], dense.replace(3, kv_groups=0, mlp_width=0), whole[0].replace(2, mlp_width=0)]
    terms = prior.terms(genes_of(asked))
    np.testing.assert_allclose(terms.sum(axis=1), [0.6, 0.2, 0.4, 0.9])
    np.testing.assert_allclose(terms[0, 2:4], [0.15, 0.45])
    again = AdditivePrior.from_dict(layout, json.loads(json.dumps(prior.to_dict())))
    np.testing.assert_array_equal(again.terms(genes_of(asked)), terms)
    by_sequence = np.tile(np.array(values)[:, None], (1, 4)) * [0.5, 1, 1, 1.5]
    elsewhere = expect_elsewhere(prior, parts + whole, by_sequence, 1.0)
    both = elsewhere.terms(genes_of(asked))
    np.testing.assert_allclose(both[0].sum() / 0.6, both[2].sum() / 0.4, rtol=1e-6)
