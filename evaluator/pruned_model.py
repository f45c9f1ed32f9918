"""Pruned models as transformers models of their own: layers of different widths, sub-blocks removed.

This file needs torch and transformers alone: an export carries a copy of it next to its weights, so that the folder
also loads where secateur is not installed (`trust_remote_code=True` there; not needed where it is).

The configuration says all that the code has to know:

- `per_layer_config`, in the form that transformers defines for heterogeneous models, where a layer differs: `skip` with
  "attention" or "mlp" where a sub-block is removed together with its norms, else the family's own keys where it has
  them (`num_attention_heads`, `num_key_value_heads`, `intermediate_size` of a Llama).
- `pruning`, with the paths of the family's projections (`family`) and, for every layer, its KV groups, MLP width and
  added biases (`layers`).
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.pytorch_utils import Conv1D

# In the place of each layer's type in config.json. A stock class told by hand to open such a folder would make up what
# is removed at random, with no more than a warning; this makes it refuse.
_NO_STOCK_TYPE = "pruned"

SubBlock = Literal["attention", "mlp"]


class RemovedAttention(nn.Module):
    """Stands where an attention was: adds nothing to the residual stream and leaves the cache alone."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        """Return a zero that broadcasts over (batch, tokens, hidden)."""
        return hidden_states.new_zeros(()), None


class RemovedMLP(nn.Module):
    """Stands where an MLP was: adds nothing to the residual stream."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return a zero that broadcasts over (batch, tokens, hidden)."""
        return hidden_states.new_zeros(())


def set_head_counts(
    attention: Any, family: Mapping[str, Any], config: PreTrainedConfig, counts: Mapping[str, int]
) -> None:
    """Tell an attention module how many heads it has, where its code does not see that from the weights.

    Args:
        attention: the module.
        family: with `head_counts` and `head_counts_in_config`, pairs of an attribute and a key of `counts`.
        config: what the module was made with.
        counts: `heads`, `kv_groups` and `query_size`.
    """
    for name, what in family["head_counts"]:
        setattr(attention, name, counts[what])
    if family["head_counts_in_config"]:
        own = copy.copy(config)
        for name, what in family["head_counts_in_config"]:
            setattr(own, name, counts[what])
        attention.config = own


def stand_ins(family: Mapping[str, Any], sub_block: SubBlock) -> dict[str, nn.Module]:
    """Return what stands where, by its path in the layer, when a sub-block is removed."""
    found: dict[str, nn.Module] = {path: nn.Identity() for path in family[f"{sub_block}_norms"]}
    if sub_block == "attention":
        return found | {family["attention"]: RemovedAttention()}
    if family["mlp"]:
        return found | {family["mlp"]: RemovedMLP()}
    # The projections lie in the layer itself.
    return found | {family["up"]: nn.Identity(), family["down"]: RemovedMLP()}


def _remove(layer: nn.Module, family: Mapping[str, Any], sub_block: SubBlock) -> None:
    for path, stand_in in stand_ins(family, sub_block).items():
        layer.set_submodule(path, stand_in)


def _reshape(layer: nn.Module, own: Mapping[str, Any], family: Mapping[str, Any], config: PreTrainedConfig) -> None:
    groups, width = own["kv_groups"], own["mlp_width"]
    queries, keys = own["heads"] * own["head_dim"], groups * own["head_dim"]
    if groups == 0:
        _remove(layer, family, "attention")
    else:
        rows = {family["query"]: queries, family["key"]: keys, family["value"]: keys}
        if len(rows) == 1:  # fused
            rows = {family["query"]: queries + 2 * keys}
        for path, size in rows.items():
            _resize(layer, path, rows=size)
        _resize(layer, family["output"], columns=queries, bias=own["attention_bias_added"])
        counts = {"heads": own["heads"], "kv_groups": groups, "query_size": queries}
        set_head_counts(layer.get_submodule(family["attention"]), family, config, counts)
    if width == 0:
        _remove(layer, family, "mlp")
    else:
        fused = family["gate"] == family["up"]
        for path in filter(None, dict.fromkeys((family["gate"], family["up"]))):
            _resize(layer, path, rows=2 * width if fused else width)
        _resize(layer, family["down"], columns=width, bias=own["mlp_bias_added"])


def _resize(
    layer: nn.Module, path: str, rows: int | None = None, columns: int | None = None, bias: bool = False
) -> None:
    module: Any = layer.get_submodule(path)
    weight, has_bias = module.weight, bias or module.bias is not None
    transposed = isinstance(module, Conv1D)
    size = tuple(weight.shape[::-1]) if transposed else tuple(weight.shape)
    wanted = (rows or size[0], columns or size[1])
    if wanted == size and has_bias == (module.bias is not None):
        return
    new: nn.Module
    if transposed:
        new = Conv1D(wanted[0], wanted[1]).to(weight.device, weight.dtype)
    else:
        new = nn.Linear(wanted[1], wanted[0], bias=has_bias, device=weight.device, dtype=weight.dtype)
    layer.set_submodule(path, new)


def _classes(
    name: str, config_base: type[PreTrainedConfig], model_base: type[PreTrainedModel]
) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    """Return the classes of a family's pruned models."""

    class Config(config_base):  # type: ignore[misc,valid-type]
        model_type = f"secateur_{config_base.model_type}"

        def __init__(self, **kwargs: Any) -> None:
            # Some code of transformers asks for one global width; ours reads each layer's own.
            kwargs["allow_global_per_layer_attribute_access"] = True
            if _NO_STOCK_TYPE in (kwargs.get("layer_types") or ()):
                kwargs["layer_types"] = kwargs["pruning"]["layer_types"]
                if kwargs["layer_types"] is None:  # a family whose layers are of one type
                    del kwargs["layer_types"]
            super().__init__(**kwargs)

        def __getattribute__(self, key: str) -> Any:
            own = object.__getattribute__(self, "__dict__")
            if uneven := own.get("_heterogeneity_spec"):
                key = type(self).attribute_map.get(key, key)
                if key in uneven.per_layer_attributes and key in own:
                    return own[key]  # as is allowed above, without a warning whenever a model is opened
            return super().__getattribute__(key)

        def to_dict(self) -> dict[str, Any]:
            """Return plain values, which no other class takes for its own."""
            values: dict[str, Any] = super().to_dict()
            if values.get("pruning"):
                values["pruning"] = {**values["pruning"], "layer_types": values.get("layer_types")}
                values["layer_types"] = [_NO_STOCK_TYPE] * len(values["pruning"]["layers"])
            return values

        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
            """Rebuild a configuration, of this family alone."""
            found = config_dict.get("model_type", cls.model_type)
            if found != cls.model_type:
                raise ValueError(f"A {cls.model_type} must be opened as one, but this configuration is of a {found}.")
            return super().from_dict(config_dict, **kwargs)

    class Model(model_base):  # type: ignore[misc,valid-type]
        config_class = Config

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            family: Mapping[str, Any] = config.pruning["family"]
            layers: Sequence[Mapping[str, Any]] = config.pruning["layers"]
            for layer, own in zip(self.get_submodule(family["layers"]), layers, strict=True):
                _reshape(layer, own, family, config)

    for made, kind in ((Config, "Config"), (Model, "ForCausalLM")):
        made.__name__ = made.__qualname__ = f"Secateur{name}{kind}"
        made.__doc__ = f"{name} whose layers may differ."
    return Config, Model


SecateurLlamaConfig, SecateurLlamaForCausalLM = _classes("Llama", LlamaConfig, LlamaForCausalLM)
SecateurMistralConfig, SecateurMistralForCausalLM = _classes("Mistral", MistralConfig, MistralForCausalLM)
SecateurQwen2Config, SecateurQwen2ForCausalLM = _classes("Qwen2", Qwen2Config, Qwen2ForCausalLM)
SecateurQwen3Config, SecateurQwen3ForCausalLM = _classes("Qwen3", Qwen3Config, Qwen3ForCausalLM)
SecateurGemma2Config, SecateurGemma2ForCausalLM = _classes("Gemma2", Gemma2Config, Gemma2ForCausalLM)
SecateurGemma3Config, SecateurGemma3ForCausalLM = _classes("Gemma3", Gemma3TextConfig, Gemma3ForCausalLM)
SecateurPhi3Config, SecateurPhi3ForCausalLM = _classes("Phi3", Phi3Config, Phi3ForCausalLM)
SecateurGPT2Config, SecateurGPT2ForCausalLM = _classes("GPT2", GPT2Config, GPT2LMHeadModel)
SecateurOPTConfig, SecateurOPTForCausalLM = _classes("OPT", OPTConfig, OPTForCausalLM)
SecateurGPTNeoXConfig, SecateurGPTNeoXForCausalLM = _classes("GPTNeoX", GPTNeoXConfig, GPTNeoXForCausalLM)

# By the `model_type` of the dense model.
PRUNED: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    config.model_type.removeprefix("secateur_"): (config, model)
    for config, model in (
        (SecateurLlamaConfig, SecateurLlamaForCausalLM),
        (SecateurMistralConfig, SecateurMistralForCausalLM),
        (SecateurQwen2Config, SecateurQwen2ForCausalLM),
        (SecateurQwen3Config, SecateurQwen3ForCausalLM),
        (SecateurGemma2Config, SecateurGemma2ForCausalLM),
        (SecateurGemma3Config, SecateurGemma3ForCausalLM),
        (SecateurPhi3Config, SecateurPhi3ForCausalLM),
        (SecateurGPT2Config, SecateurGPT2ForCausalLM),
        (SecateurOPTConfig, SecateurOPTForCausalLM),
        (SecateurGPTNeoXConfig, SecateurGPTNeoXForCausalLM),
    )
}
