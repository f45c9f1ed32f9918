import pytest

from space import (
    Architecture,
    Budget,
    BudgetError,
    Layout,
    cost_of,
    evenly_sparse,
    uniform_sparsity,
    uniform_widths,
    whole_ends,
)
from tests.space.layouts import PICO, SMOLLM2_135M

LLAMA_2_7B = Layout.from_dict(
    {**SMOLLM2_135M.to_dict(), "layers": 32, "hidden_size": 4096, "heads": 32, "kv_groups": 32, "head_dim": 128}
    | {"mlp_width": 11008, "vocabulary": 32000, "tied_embeddings": False}
)


def fits(layout, architecture, *budgets):
    dense = cost_of(layout, Architecture.dense(layout))
    cost = cost_of(layout, architecture)
    return all(getattr(cost, budget.metric) <= budget.limit(dense) for budget in budgets)


@pytest.mark.parametrize("share", [0.95, 0.8, 0.7, 0.5])
@pytest.mark.parametrize("layout", [SMOLLM2_135M, LLAMA_2_7B], ids=["SmolLM2-135M", "Llama-2-7B"])
@pytest.mark.parametrize("ends", [False, True])
def test_uniform_widths_are_within_the_budget_and_maximal(layout, share, ends):
    budget = Budget("parameters", share)
    whole = whole_ends(layout) if ends else frozenset()
    architecture = uniform_widths(layout, [budget], whole)
    cut = {layer for index, layer in enumerate(architecture.layers) if index not in whole}
    assert len(cut) == 1
    assert {architecture.layers[index] for index in whole} <= {Architecture.dense(layout).layers[0]}
    assert fits(layout, architecture, budget)
    wider = architecture
    for index in set(range(layout.layers)) - whole:
        wider = wider.replace(index, mlp_width=wider.layers[index].mlp_width + 1)
    assert not fits(layout, wider, budget)


def test_uniform_widths_meet_several_budgets():
    budgets = Budget("parameters", 0.8), Budget("kv_cache_bytes_per_token", 0.5)
    architecture = uniform_widths(SMOLLM2_135M, budgets)
    assert fits(SMOLLM2_135M, architecture, *budgets)
    assert architecture.layers[0].kv_groups == 1


def test_no_budget_leaves_the_model_dense():
    assert uniform_widths(PICO, []) == Architecture.dense(PICO)
    assert uniform_sparsity(PICO, []) == Architecture.dense(PICO)


@pytest.mark.parametrize("share", [0.9, 0.5])
def test_uniform_sparsity_is_within_the_budget_and_no_sparser_than_needed(share):
    budget = Budget("nonzero_parameters", share)
    architecture = uniform_sparsity(SMOLLM2_135M, [budget])
    layer = architecture.layers[0]
    assert set(architecture.layers) == {layer}
    assert layer.attention_sparsity == layer.mlp_sparsity == pytest.approx(1 - share, abs=0.003)
    assert fits(SMOLLM2_135M, architecture, budget)
    denser = architecture
    for index in range(SMOLLM2_135M.layers):
        sparsity = layer.mlp_sparsity - 0.003
        denser = denser.replace(index, attention_sparsity=sparsity, mlp_sparsity=sparsity)
    assert not fits(SMOLLM2_135M, denser, budget)


def test_whole_ends():
    assert whole_ends(SMOLLM2_135M) == {0, 1, 2, 3, 28, 29}
    assert whole_ends(PICO) == {0}


def test_whole_ends_alone_over_the_budget():
    with pytest.raises(
        BudgetError, match=r"leaves its first and last layers whole .* parameters=0.1; raise the budget"
    ):
        uniform_widths(SMOLLM2_135M, [Budget("parameters", 0.1)], whole_ends(SMOLLM2_135M))


@pytest.mark.parametrize("share", [0.9, 0.75, 0.6])
def test_evenly_sparse_is_within_the_budget_and_spread_over_depth(share):
    budget = Budget("nonzero_parameters", share)
    architecture = evenly_sparse(SMOLLM2_135M, [budget], 0.5)
    assert fits(SMOLLM2_135M, architecture, budget)
    sparse = [index for index, layer in enumerate(architecture.layers) if layer.mlp_sparsity]
    gaps = [b - a for a, b in zip([-1, *sparse], [*sparse, SMOLLM2_135M.layers], strict=True)]
    assert max(gaps) <= 2 * SMOLLM2_135M.layers / len(sparse)
    for index, layer in enumerate(architecture.layers):
        for gene in ("mlp_sparsity", "attention_sparsity"):
            if getattr(layer, gene):
                assert not fits(SMOLLM2_135M, architecture.replace(index, **{gene: 0.0}), budget)


def test_evenly_sparse_over_the_budget():
    with pytest.raises(BudgetError):
        evenly_sparse(SMOLLM2_135M, [Budget("nonzero_parameters", 0.4)], 0.5)
