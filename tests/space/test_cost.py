"""Closed-form cost against what real models hold and compute."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from space import BUDGET_METRICS, Architecture, Budget, BudgetError, LayerArchitecture, Layout, cost_of
from space.cost import BYTES_PER_VALUE, FLOPS_CONTEXT, zeros_per_row
from tests.space.layouts import PICO, SMOLLM2_135M

DENSE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "head_dim": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": FLOPS_CONTEXT,
    "attn_implementation": "eager",
}
VARIANTS = [
    {},
    {"tie_word_embeddings": True},
    {"attention_bias": True},
    {"mlp_bias": True},
    {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
]
# One architecture that every layer has alike, and the configuration of a model of that size.
SIZES = [
    (LayerArchitecture(2, 64), {}),
    (LayerArchitecture(1, 24), {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24}),
]


def model_of(variant, sizes):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{"tie_word_embeddings": False, **DENSE, **variant, **sizes})).eval()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize(("layer", "sizes"), SIZES, ids=["dense", "pruned"])
def test_cost_is_what_a_real_model_has(variant, layer, sizes):
    layout = Layout.from_config({"model_type": "llama", **DENSE, **variant})
    cost = cost_of(layout, Architecture((layer,) * layout.layers))
    model = model_of(variant, sizes)
    layers = model.model.layers
    assert cost.parameters == cost.nonzero_parameters == sum(p.numel() for p in layers.parameters())
    model_bytes = sum(p.numel() * p.element_size() for p in model.to(torch.bfloat16).parameters())
    assert cost.weight_bytes == model_bytes

    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(torch.arange(5)[None], past_key_values=cache)
    held = sum(part.numel() * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))
    assert cost.kv_cache_bytes_per_token * 5 == held

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, FLOPS_CONTEXT, dtype=torch.long), use_cache=False)
    counted = counter.get_flop_counts()
    in_layers = sum(sum(counted[f"LlamaForCausalLM.model.layers.{index}"].values()) for index in range(layout.layers))
    assert cost.flops_per_token * FLOPS_CONTEXT == in_layers


def test_a_removed_sub_block_costs_nothing():
    dense = Architecture.dense(PICO)
    empty = Architecture((LayerArchitecture(0, 0),) * PICO.layers)
    cost = cost_of(PICO, empty)
    assert (cost.parameters, cost.kv_cache_bytes_per_token, cost.flops_per_token) == (0, 0, 0)
    assert cost.weight_bytes == BYTES_PER_VALUE * (2 * 96 * 32 + 32)
    both = [cost_of(PICO, dense.replace(1, **{gene: 0})).parameters for gene in ("kv_groups", "mlp_width")]
    whole = cost_of(PICO, dense).parameters
    assert sum(whole - part for part in both) == whole // PICO.layers


def test_known_model():
    """SmolLM2-135M has 134,515,008 parameters, in bf16 two bytes each."""
    assert cost_of(SMOLLM2_135M, Architecture.dense(SMOLLM2_135M)).weight_bytes == 2 * 134_515_008


def test_sparsity_counts_whole_zeros_per_row():
    dense = Architecture.dense(PICO)
    sparse = dense.replace(0, mlp_sparsity=0.3)
    # Rows of gate and up have 32 inputs (9 zeros), those of down 64 (19 zeros).
    zeros = 2 * 64 * 9 + 32 * 19
    assert cost_of(PICO, dense).nonzero_parameters - cost_of(PICO, sparse).nonzero_parameters == zeros
    assert cost_of(PICO, dense).parameters == cost_of(PICO, sparse).parameters
    assert zeros_per_row(10, 0.3) == 3  # 10 * 0.3 is below 3 in floating point


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("parameters=0.8", 0.8),
        ("parameters = 80%", 0.8),
        ("weight_bytes=200M", 2e8),
        ("weight_bytes=1.5g", 1.5e9),
        ("flops_per_token=5e8", 5e8),
    ],
)
def test_budget_text(text, amount):
    budget = Budget.parse(text)
    assert budget.amount == pytest.approx(amount)
    assert budget.metric == text.partition("=")[0].strip()
    assert Budget.parse(str(budget)) == budget


def test_budget_limits():
    dense = cost_of(PICO, Architecture.dense(PICO))
    assert Budget("parameters", 0.5).limit(dense) == dense.parameters / 2
    assert Budget("parameters", 5000.0).limit(dense) == 5000


@pytest.mark.parametrize(
    ("share", "whole"), [(0.7, 16_128), (0.1, 2_304), (0.3, 6_912), (1.0, 23_040), (0.99999, 23_039)]
)
def test_what_is_just_the_share_is_within_it(share, whole):
    """In floating point 0.7 of 23,040 is below 16,128."""
    assert Budget("kv_cache_bytes_per_token", share).limit_from(23_040) == whole


@pytest.mark.parametrize("text", ["", "size=0.8", "0.8", "Parameters=0.8"])
def test_bad_metric(text):
    with pytest.raises(BudgetError, match=f"metric of {', '.join(BUDGET_METRICS)}, but is '{text}'; write for example"):
        Budget.parse(text)


@pytest.mark.parametrize("amount", ["", "0", "-1", "nan", "inf", "M", "80%%", "a lot"])
def test_bad_amount(amount):
    with pytest.raises(BudgetError, match=f"must be a positive number, a percentage .*, but is '{amount}'; write"):
        Budget.parse(f"parameters={amount}")
