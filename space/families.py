"""Model families as data: where the parts of a decoder layer live and how their weights are laid out.

Pruning code branches on the fields of a `Family`, never on a model's name. A new family is one record here, one pico
model in the tests and a green conformance suite.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from space.errors import FamilyError

HeadCount = Literal["heads", "kv_groups", "query_size"]


@dataclass(frozen=True, slots=True)
class Family:
    """Where a family keeps its sub-blocks, and what its configuration calls their sizes.

    Module paths are relative to the model for `decoder` and `layers`, and to one layer for all others.
    """

    name: str  # transformers' `model_type`
    decoder: str  # module that turns token ids into final hidden states
    layers: str  # ModuleList of decoder layers
    attention: str
    attention_norms: tuple[str, ...]  # norms that serve the attention only and leave with it
    query: str
    key: str
    value: str
    output: str
    mlp: str | None  # None where the projections lie in the layer itself
    mlp_norms: tuple[str, ...]
    gate: str | None  # None for an MLP without gate
    up: str
    down: str
    # Fused projections are named by one path: query, key and value in blocks or interleaved per head; gate before up.
    qkv: Literal["separate", "blocked", "interleaved"] = "separate"
    orientation: Literal["out_in", "in_out"] = "out_in"  # Linear, or GPT-2's Conv1D
    norm_vectors: int = 1  # parameters a norm holds per hidden unit: 1 for RMSNorm, 2 for LayerNorm
    head_norms: int = 0  # norms over a head's features inside the attention, one vector each
    # A bias is always there, never there, or there when the configuration's key of that name is true.
    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    # Attributes of the attention module, and of its configuration, that its code takes head counts from.
    head_counts: tuple[tuple[str, HeadCount], ...] = ()
    head_counts_in_config: tuple[tuple[str, HeadCount], ...] = ()
    # Configuration's key of the count of learned positions, and rows that their table has beyond it.
    learned_positions: tuple[str, int] | None = None
    # What a configuration must say for this record to be true of it.
    required: tuple[tuple[str, Any], ...] = ()
    # Keys of the configuration.
    hidden_size: str = "hidden_size"
    layer_count: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    kv_groups: str | None = "num_key_value_heads"  # None where each head has its own key and value
    mlp_width: str = "intermediate_size"
    mlp_ratio: int | None = None  # MLP width by the hidden size, where the configuration gives none


_LLAMA = Family(
    name="llama",
    decoder="model",
    layers="model.layers",
    attention="self_attn",
    attention_norms=("input_layernorm",),
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.o_proj",
    mlp="mlp",
    mlp_norms=("post_attention_layernorm",),
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias="mlp_bias",
)
_GEMMA2 = replace(
    _LLAMA,
    name="gemma2",
    attention_norms=("input_layernorm", "post_attention_layernorm"),
    mlp_norms=("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    mlp_bias=False,
)
_RECORDS = (
    _LLAMA,
    replace(_LLAMA, name="mistral", qkv_bias=False, output_bias=False, mlp_bias=False),
    replace(_LLAMA, name="qwen2", qkv_bias=True, output_bias=False, mlp_bias=False),
    replace(_LLAMA, name="qwen3", head_norms=2, mlp_bias=False),
    _GEMMA2,
    replace(_GEMMA2, name="gemma3_text", head_norms=2),
    replace(
        _LLAMA,
        name="phi3",
        query="self_attn.qkv_proj",
        key="self_attn.qkv_proj",
        value="self_attn.qkv_proj",
        qkv="blocked",
        gate="mlp.gate_up_proj",
        up="mlp.gate_up_proj",
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        head_counts=(("num_key_value_heads", "kv_groups"),),
        head_counts_in_config=(("num_attention_heads", "heads"),),
    ),
    Family(
        name="gpt2",
        decoder="transformer",
        layers="transformer.h",
        attention="attn",
        attention_norms=("ln_1",),
        query="attn.c_attn",
        key="attn.c_attn",
        value="attn.c_attn",
        output="attn.c_proj",
        mlp="mlp",
        mlp_norms=("ln_2",),
        gate=None,
        up="mlp.c_fc",
        down="mlp.c_proj",
        qkv="blocked",
        orientation="in_out",
        norm_vectors=2,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        head_counts=(("split_size", "query_size"), ("num_heads", "heads")),
        learned_positions=("n_positions", 0),
        required=(("add_cross_attention", False),),
        hidden_size="n_embd",
        layer_count="n_layer",
        heads="n_head",
        kv_groups=None,
        mlp_width="n_inner",
        mlp_ratio=4,
    ),
    Family(
        name="opt",
        decoder="model.decoder",
        layers="model.decoder.layers",
        attention="self_attn",
        attention_norms=("self_attn_layer_norm",),
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        output="self_attn.out_proj",
        mlp=None,
        mlp_norms=("final_layer_norm",),
        gate=None,
        up="fc1",
        down="fc2",
        norm_vectors=2,
        qkv_bias="enable_bias",
        output_bias="enable_bias",
        mlp_bias="enable_bias",
        head_counts=(("num_heads", "heads"),),
        learned_positions=("max_position_embeddings", 2),
        # OPT-350m norms behind its sub-blocks: such a norm does not leave with the sub-block.
        required=(("do_layer_norm_before", True), ("layer_norm_elementwise_affine", True)),
        kv_groups=None,
        mlp_width="ffn_dim",
    ),
    Family(
        name="gpt_neox",
        decoder="gpt_neox",
        layers="gpt_neox.layers",
        attention="attention",
        attention_norms=("input_layernorm",),
        query="attention.query_key_value",
        key="attention.query_key_value",
        value="attention.query_key_value",
        output="attention.dense",
        mlp="mlp",
        mlp_norms=("post_attention_layernorm",),
        gate=None,
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        qkv="interleaved",
        norm_vectors=2,
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        mlp_bias=True,
        kv_groups=None,
    ),
)
FAMILIES: dict[str, Family] = {record.name: record for record in _RECORDS}


def family_of(name: str) -> Family:
    """Return the record of a family.

    Args:
        name: transformers' `model_type`, as in a model's `config.json`.

    Raises:
        FamilyError: no record has that name.
    """
    try:
        return FAMILIES[name]
    except KeyError:
        known = ", ".join(sorted(FAMILIES))
        raise FamilyError(
            f"A model's family must be one of {known}, but this model's is {name!r}; add a record to "
            "space/families.py or choose another model."
        ) from None
