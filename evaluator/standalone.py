"""A pruned model as people run it: a transformers model of its own, with the weights installed in the dense one.

Its class and configuration are those of an export, and no weight is copied, so what holds of it (its logits, its speed)
holds of the export.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from evaluator.checkpoint import DenseModel, quiet_transformers
from evaluator.pruned_model import PRUNED
from space import Architecture

# Keys of a configuration that another class has of its own.
OF_CLASS = ("model_type", "architectures", "transformers_version", "_name_or_path", "_model_name_or_path")


def pruned_config(dense: DenseModel, architecture: Architecture) -> PreTrainedConfig:
    """Return the configuration of a pruned model.

    Args:
        dense: the model it comes from.
        architecture: what is kept.
    """
    layout, family = dense.layout, dense.layout.record
    values = dense.model.config.to_dict()
    for key in OF_CLASS:
        values.pop(key, None)
    differing: dict[str, dict[str, Any]] = {}
    layers: list[dict[str, Any]] = []
    for index, layer in enumerate(architecture.layers):
        heads = layer.kv_groups * layout.heads_per_group
        own: dict[str, Any] = {}
        skip = [name for name, width in (("attention", layer.kv_groups), ("mlp", layer.mlp_width)) if width == 0]
        if skip:
            own["skip"] = skip
        if 0 < layer.kv_groups < layout.kv_groups and family.kv_groups is not None:
            own |= {family.kv_groups: layer.kv_groups, family.heads: heads}
        if 0 < layer.mlp_width < layout.mlp_width and family.mlp_width in values:
            own[family.mlp_width] = layer.mlp_width
        if own:
            differing[str(index)] = own
        layers.append(
            {
                "kv_groups": layer.kv_groups,
                "heads": heads,
                "head_dim": layout.head_dim,
                "mlp_width": layer.mlp_width,
                "attention_bias_added": layout.adds_attention_bias(layer.kv_groups),
                "mlp_bias_added": layout.adds_mlp_bias(layer.mlp_width),
            }
        )
    if differing:
        values["per_layer_config"] = differing
    if any(layer.kv_groups == 0 for layer in architecture.layers):
        # A cache asks its first layer that holds anything how long it is; this tells it which layers hold nothing.
        values["kv_sharing_modes"] = [None if layer.kv_groups else "reuse" for layer in architecture.layers]
    if "head_dim" in values or family.name == "llama":
        values["head_dim"] = layout.head_dim
    values["pruning"] = {"family": asdict(family), "layers": layers}
    return PRUNED[family.name][0](**values)


def standalone(dense: DenseModel, architecture: Architecture) -> PreTrainedModel:
    """Return the pruned model that is installed in `dense` now as a model of its own; it shares the weights.

    It is good until another architecture is installed.

    Args:
        dense: the model, with `architecture` installed.
        architecture: what is kept.
    """
    weights = {name: tensor.contiguous() for name, tensor in dense.model.state_dict().items()}
    return assembled(PRUNED[dense.layout.family][1], pruned_config(dense, architecture), weights, dense.model)


def student_of(dense: DenseModel, architecture: Architecture) -> DenseModel:
    """Return the same in the form of a dense model, by whose weights' hash it is still called.

    Args:
        dense: the model, with `architecture` installed.
        architecture: what is kept.
    """
    with quiet_transformers():  # which takes layers of their own widths for a risk
        return replace(dense, model=standalone(dense, architecture))


def assembled(
    kind: type[PreTrainedModel], config: PreTrainedConfig, weights: Mapping[str, Tensor], like: PreTrainedModel
) -> PreTrainedModel:
    """Return a model that shares weights which are there.

    Args:
        kind: its class.
        config: its configuration.
        weights: by name.
        like: a model of the same family, for the dtype and for what no checkpoint holds, such as the frequencies of
            rotary embeddings, which depend on the dense sizes alone.
    """
    config.dtype = like.dtype
    with torch.device("meta"):
        model: PreTrainedModel = kind(config)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    own = dict(like.named_buffers())
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            path, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(path), leaf, own[name])
    model.eval()
    return model
