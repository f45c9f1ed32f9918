"""Pruned models in the stock classes of transformers, which run everywhere: where all layers are alike, or by padding.

A stock class has one set of sizes for all layers. A model fits it when whole blocks are removed, or all blocks that
stay are alike; any other fits once its layers are padded with zeros to the widest of them, which gives back the memory
and the time that pruning saved, and no digit of the result but to rounding.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from evaluator.standalone import OF_CLASS, assembled
from space import ExportError

_OWN_KEYS = ("pruning", "per_layer_config", "allow_global_per_layer_attribute_access", "auto_map", "kv_sharing_modes")


def even(model: PreTrainedModel) -> PreTrainedModel | None:
    """Return a pruned model in its family's stock class, sharing the weights; None where layers differ.

    Args:
        model: of one of our classes.
    """
    family, layers = _told(model)
    kept = [index for index, own in enumerate(layers) if own["kv_groups"] or own["mlp_width"]]
    shapes = {(layers[index]["kv_groups"], layers[index]["mlp_width"]) for index in kept}
    adds = any(own["attention_bias_added"] or own["mlp_bias_added"] for own in layers)
    # A model may scale its attention by where the layer stands, and the layers behind a removed one move.
    scales = getattr(model.config, "scale_attn_by_inverse_layer_idx", False) and len(kept) < len(layers)
    if len(shapes) != 1 or adds or scales:
        return None
    [(groups, width)] = shapes
    if not groups or not width:
        return None
    config = _stock_config(model, kept, groups, width)
    if config is None:
        return None
    path = family["layers"]
    renamed = {f"{path}.{old}.": f"{path}.{new}." for new, old in enumerate(kept)}
    weights = {_renamed(name, path, renamed): tensor for name, tensor in model.state_dict().items()}
    return assembled(_stock_class(model), config, weights, model)


def padded(model: PreTrainedModel) -> PreTrainedModel:
    """Return a pruned model in its family's stock class, every layer padded with zeros to the widest.

    Args:
        model: of one of our classes.

    Raises:
        ExportError: pruning has added biases, which the stock class has no place for.
    """
    family, layers = _told(model)
    if any(own["attention_bias_added"] or own["mlp_bias_added"] for own in layers):
        raise ExportError(
            "A model must have no biases but its family's to be padded, but pruning has added some to this one "
            "(update: bias); export to huggingface with its own code, or search with another update."
        )
    # A head that is not there adds nothing whatever its keys are; at least one must be there.
    groups = max(1, *(own["kv_groups"] for own in layers))
    width = max(1, *(own["mlp_width"] for own in layers))
    config = _stock_config(model, range(len(layers)), groups, width)
    if config is None:  # the stock class derives the size of a head from their count
        groups = model.config.num_attention_heads if family["kv_groups"] is None else _dense_groups(model, family)
        config = _stock_config(model, range(len(layers)), groups, width)
    assert config is not None
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in _stock_class(model)(config).state_dict().items()}
    given = model.state_dict()
    weights = {
        name: given[name]
        if name in given and given[name].shape == shape
        else _filled(name, shape, model, family, given)
        for name, shape in shapes.items()
    }
    return assembled(_stock_class(model), config, weights, model)


def _stock_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    """Return the stock class that one of our classes is made from."""
    found: type[PreTrainedModel] = type(model).__mro__[1]
    return found


def _told(model: PreTrainedModel) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]:
    pruning: Mapping[str, Any] = model.config.pruning
    return pruning["family"], pruning["layers"]


def _dense_groups(model: PreTrainedModel, family: Mapping[str, Any]) -> int:
    return int(getattr(model.config, family["kv_groups"]))


def _stock_config(model: PreTrainedModel, kept: Sequence[int], groups: int, width: int) -> PreTrainedConfig | None:
    """Return the stock class's configuration with some layers, all of one shape; None where it cannot say that."""
    family, layers = _told(model)
    own = layers[kept[0]]
    values = {key: value for key, value in model.config.to_dict().items() if key not in (*_OWN_KEYS, *OF_CLASS)}
    values[family["layer_count"]] = len(kept)
    types = getattr(model.config, "layer_types", None)
    values["layer_types"] = [types[index] for index in kept] if types else None
    values[family["mlp_width"]] = width
    dense_heads = values[family["heads"]]
    dense_groups = values[family["kv_groups"]] if family["kv_groups"] else dense_heads
    if groups != dense_groups:
        if family["kv_groups"] is None:
            return None
        values |= {family["kv_groups"]: groups, family["heads"]: groups * dense_heads // dense_groups}
        values["head_dim"] = own["head_dim"]
    base: type[PreTrainedConfig] = type(model.config).__mro__[1]
    if values["layer_types"] is None:
        del values["layer_types"]
    try:
        return base(**values)
    except ValueError:  # a Llama's hidden size must be a multiple of its heads, even where their size is given
        return None


def _renamed(name: str, path: str, renamed: Mapping[str, str]) -> str:
    if not name.startswith(f"{path}."):
        return name
    old = name[: name.index(".", len(path) + 1) + 1]
    return renamed[old] + name[len(old) :]


def _filled(
    name: str, shape: torch.Size, model: PreTrainedModel, family: Mapping[str, Any], given: Mapping[str, Tensor]
) -> Tensor:
    """Return a weight of the stock class with zeros where the pruned model has nothing."""
    path, _, kind = name.rpartition(".")
    _, _, place = path.removeprefix(f"{family['layers']}.").partition(".")
    if place in (*family["attention_norms"], *family["mlp_norms"]):
        # Whatever it is: what reads it is all zeros.
        return torch.full(shape, float(kind == "weight"), dtype=model.dtype, device=model.device)
    zeros = torch.zeros(shape, dtype=model.dtype, device=model.device)
    if name not in given:
        return zeros
    transposed = family["orientation"] == "in_out" and kind == "weight"
    source, target = (tensor.T if transposed else tensor for tensor in (given[name], zeros))
    if place in (family["output"], family["down"]):
        target[..., : source.shape[-1]] = source
        return zeros
    # What the pruned layer has comes first in each part of a fused projection; an interleaved one is whole heads.
    shares = _shares(family, place, model.config)
    for part, room in zip(
        source.split(_cut(len(source), shares)), target.split(_cut(len(target), shares)), strict=True
    ):
        room[: len(part)] = part
    return zeros


def _shares(family: Mapping[str, Any], place: str, config: PreTrainedConfig) -> list[int]:
    """Return in what proportions the rows of a projection are those of its parts."""
    if place == family["query"] == family["key"] and family["qkv"] == "blocked":
        groups = getattr(config, family["kv_groups"]) if family["kv_groups"] else getattr(config, family["heads"])
        return [getattr(config, family["heads"]) // groups, 1, 1]
    if place == family["gate"] == family["up"]:
        return [1, 1]
    return [1]


def _cut(rows: int, shares: Sequence[int]) -> list[int]:
    return [rows * share // sum(shares) for share in shares]
