"""Allocations that look at the model: within the budget, and uneven where their rule says so."""

import numpy as np
import pytest
import torch

from evaluator import allocation
from evaluator.pruning.depth import angular_distance, angular_distances
from space import Architecture, Budget, BudgetError, Criterion, cost_of
from tests.evaluator.pieces import SLICING, logits_of, make_surgeon
from tests.pico import pico_tokens


def share(layout, architecture, metric="parameters"):
    dense = cost_of(layout, Architecture.dense(layout))
    return getattr(cost_of(layout, architecture), metric) / getattr(dense, metric)


def test_a_global_threshold_keeps_what_scores_above_it(pico):
    surgeon = make_surgeon(pico)
    # One layer whose channels differ much, one whose channels are all alike.
    surgeon.scores[1].channels.copy_(torch.linspace(0.01, 2, 48) ** 4)
    surgeon.scores[4].channels.copy_(torch.linspace(0.99, 1.01, 48))
    found = allocation.global_threshold(surgeon, [Budget("parameters", 0.7)])
    assert 0.68 < share(pico.layout, found) <= 0.7
    assert found.layers[1].mlp_width < 24
    assert found.layers[4].mlp_width == 48
    relative = [s / s.mean() for scores in surgeon.scores for s in (scores.channels, scores.groups)]
    kept = [width for layer in found.layers for width in (layer.mlp_width, layer.kv_groups)]
    lowest_kept = min(float(s.sort(descending=True).values[n - 1]) for s, n in zip(relative, kept, strict=True) if n)
    highest_gone = max(
        float(s.sort(descending=True).values[n]) for s, n in zip(relative, kept, strict=True) if n < len(s)
    )
    assert highest_gone <= lowest_kept


@pytest.mark.parametrize("rule", [allocation.owl_sparsity, allocation.global_sparsity])
def test_uneven_sparsities_meet_the_budget(pico, rule):
    surgeon = make_surgeon(pico)
    found = rule(surgeon, [Budget("nonzero_parameters", 0.5)])
    assert 0.48 < share(pico.layout, found, "nonzero_parameters") <= 0.5
    assert len({layer.mlp_sparsity for layer in found.layers}) > 1
    assert all(layer.mlp_width == 48 and layer.kv_groups == 4 for layer in found.layers)


def test_owl_spares_the_layer_with_outliers(pico):
    pico.layers[3].mlp.gate_proj.weight.data[:, 5] *= 100
    found = allocation.owl_sparsity(make_surgeon(pico), [Budget("nonzero_parameters", 0.5)])
    sparsities = [layer.mlp_sparsity for layer in found.layers]
    assert int(np.argmin(sparsities)) == 3
    assert max(sparsities) - min(sparsities) == pytest.approx(0.16, abs=0.01)


def test_owl_leaves_the_layer_with_outliers_wider(pico):
    pico.layers[3].mlp.gate_proj.weight.data[:, 5] *= 100
    found = allocation.owl_widths(make_surgeon(pico), [Budget("parameters", 0.8)])
    assert 0.78 < share(pico.layout, found) <= 0.8
    widths = [layer.mlp_width for layer in found.layers]
    assert int(np.argmax(widths)) == 3
    assert (max(widths) - min(widths)) / 48 == pytest.approx(0.16, abs=0.03)
    assert all(layer.kv_groups == 4 and not layer.mlp_sparsity for layer in found.layers)


def test_a_global_sparsity_follows_the_scores(pico):
    # A sub-block whose weights differ more in size has more that is small against its mean.
    weight = pico.layers[2].mlp.down_proj.weight.data
    weight *= torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) ** 8
    found = allocation.global_sparsity(make_surgeon(pico), [Budget("nonzero_parameters", 0.6)])
    assert int(np.argmax([layer.mlp_sparsity for layer in found.layers])) == 2


def test_budgets_that_cannot_be_met_are_refused(pico):
    with pytest.raises(BudgetError):
        allocation.owl_sparsity(make_surgeon(pico), [Budget("parameters", 0.5)])


def test_blocks_by_influence_and_by_turning(pico):
    surgeon = make_surgeon(pico, SLICING)
    influence = [each.influence for each in surgeon.statistics]
    assert allocation.least_influential(surgeon, 2) == sorted(np.argsort(influence)[:2].tolist())
    assert allocation.least_turning([0.3, 0.1, 0.2], 2) == [1, 2]
    found = allocation.without_blocks(pico.layout, [1, 4])
    assert [layer.kv_groups + layer.mlp_width for layer in found.layers] == [52, 0, 52, 52, 0, 52]


def test_angular_distances_are_those_of_the_residual_stream(pico):
    tokens, streams = pico_tokens(4, 16, 3), []
    handles = [layer.register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0])) for layer in pico.layers]
    logits_of(pico.model, tokens)
    for handle in handles:
        handle.remove()
    found = angular_distances(pico.decoder, list(pico.layers), tokens.split(2), 2)
    assert len(found) == 5
    for index in range(4):
        assert found[index] == pytest.approx(angular_distance(streams[index], streams[index + 2]), abs=1e-6)


def test_the_criterion_decides_what_a_global_threshold_keeps(pico):
    budgets = [Budget("parameters", 0.7)]
    found = {
        widths: allocation.global_threshold(make_surgeon(pico, Criterion(widths=widths)), budgets).fingerprint
        for widths in ("magnitude", "wanda", "fisher", "obs")
    }
    assert len(set(found.values())) == 4
