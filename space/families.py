"""Model families as data: where the parts of a decoder layer live and how their weights are laid out.

Pruning code branches on the fields of a `Family`, never on a model's name. A new family is one record here, one pico
model in the tests and a green conformance suite.
"""

from dataclasses import dataclass
from typing import Literal

from space.errors import FamilyError


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
    mlp: str
    mlp_norms: tuple[str, ...]
    gate: str | None  # None for an MLP without gate
    up: str
    down: str
    qkv: Literal["separate", "blocked", "interleaved"] = "separate"
    orientation: Literal["out_in", "in_out"] = "out_in"  # Linear, or GPT-2's Conv1D
    norm_vectors: int = 1  # parameters a norm holds per hidden unit: 1 for RMSNorm, 2 for LayerNorm
    # A bias is always there, never there, or there when the configuration's key of that name is true.
    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    # Keys of the configuration.
    hidden_size: str = "hidden_size"
    layer_count: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    kv_groups: str = "num_key_value_heads"
    mlp_width: str = "intermediate_size"


FAMILIES: dict[str, Family] = {
    "llama": Family(
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
    ),
}


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
