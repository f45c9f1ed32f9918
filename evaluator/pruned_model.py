"""A pruned Llama as a transformers model of its own: layers of different widths, sub-blocks removed.

This file needs torch and transformers alone: an export carries a copy of it next to its weights, so that the folder
also loads where secateur is not installed (`trust_remote_code=True` there; not needed where it is).

The configuration holds `per_layer_config` in the form that transformers defines for heterogeneous models: keys
`num_attention_heads`, `num_key_value_heads`, `intermediate_size` where a layer differs, and `skip` with "attention" or
"mlp" where a sub-block is removed together with its norm.
"""

from typing import Any

from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer


class RemovedAttention(nn.Module):
    """Stands where an attention was: adds nothing to the residual stream and leaves the cache alone."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        """Return a zero that broadcasts over (batch, tokens, hidden)."""
        return hidden_states.new_zeros(()), None


class RemovedMLP(nn.Module):
    """Stands where an MLP was: adds nothing to the residual stream."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return a zero that broadcasts over (batch, tokens, hidden)."""
        return hidden_states.new_zeros(())


class SecateurLlamaConfig(LlamaConfig):
    """A Llama configuration whose layers may differ."""

    model_type = "secateur_llama"

    def __init__(self, **kwargs: Any) -> None:
        # Some code of transformers asks for one global width; ours reads each layer's own.
        kwargs["allow_global_per_layer_attribute_access"] = True
        super().__init__(**kwargs)


class SecateurLlamaForCausalLM(LlamaForCausalLM):
    """A Llama whose layers have the sizes of `config.per_layer_config`."""

    config_class = SecateurLlamaConfig

    def __init__(self, config: SecateurLlamaConfig) -> None:
        super().__init__(config)
        for layer, own in zip(self.model.layers, config.per_layer_config, strict=True):
            _reshape(layer, own)


def _reshape(layer: LlamaDecoderLayer, own: Any) -> None:
    skipped = getattr(own, "skip", None) or ()
    if "attention" in skipped:
        layer.set_submodule("self_attn", RemovedAttention())
        layer.set_submodule("input_layernorm", nn.Identity())
    else:
        attention = layer.self_attn
        query_size = own.num_attention_heads * attention.head_dim
        kv_size = own.num_key_value_heads * attention.head_dim
        attention.q_proj = _resized(attention.q_proj, out_features=query_size)
        attention.k_proj = _resized(attention.k_proj, out_features=kv_size)
        attention.v_proj = _resized(attention.v_proj, out_features=kv_size)
        attention.o_proj = _resized(attention.o_proj, in_features=query_size)
    if "mlp" in skipped:
        layer.set_submodule("mlp", RemovedMLP())
        layer.set_submodule("post_attention_layernorm", nn.Identity())
    else:
        mlp = layer.mlp
        mlp.gate_proj = _resized(mlp.gate_proj, out_features=own.intermediate_size)
        mlp.up_proj = _resized(mlp.up_proj, out_features=own.intermediate_size)
        mlp.down_proj = _resized(mlp.down_proj, in_features=own.intermediate_size)


def _resized(linear: nn.Linear, in_features: int | None = None, out_features: int | None = None) -> nn.Linear:
    rows, columns = out_features or linear.out_features, in_features or linear.in_features
    if (rows, columns) == (linear.out_features, linear.in_features):
        return linear
    weight = linear.weight
    return nn.Linear(columns, rows, bias=linear.bias is not None, device=weight.device, dtype=weight.dtype)
