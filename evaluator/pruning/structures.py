"""Where MLP channels and KV groups live in a layer's weights, for every way in which families lay them out.

A structure leaves with its rows in the projections that write it and its columns in the one that reads it. Columns are
the same in all families: those of the down projection are channels, those of the output projection are the features of
the query heads, heads of one group adjacent.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from space import Layout


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows that structures have in one projection, or in one part of a fused one.

    Args:
        path: of the projection inside its layer.
        indices: (structures, rows of each).
    """

    path: str
    indices: Tensor


def attention_rows(layout: Layout) -> list[Rows]:
    """Return where KV groups with their query heads live in query, key and value."""
    family, groups, size = layout.record, layout.kv_groups, layout.head_dim
    queries = torch.arange(layout.heads * size).view(groups, -1)
    keys = torch.arange(groups * size).view(groups, -1)
    if family.qkv == "separate":
        return [Rows(family.query, queries), Rows(family.key, keys), Rows(family.value, keys)]
    if family.qkv == "blocked":
        after = layout.heads * size
        return [
            Rows(family.query, queries),
            Rows(family.query, after + keys),
            Rows(family.query, after + groups * size + keys),
        ]
    # Interleaved: each head's query, key and value one behind the other.
    return [Rows(family.query, torch.arange(3 * groups * size).view(groups, -1))]


def mlp_rows(layout: Layout) -> list[Rows]:
    """Return where MLP channels live in gate and up projection."""
    family, channels = layout.record, torch.arange(layout.mlp_width)[:, None]
    if family.gate is None:
        return [Rows(family.up, channels)]
    # A fused projection holds the gate's rows before those of the up projection.
    up = channels + layout.mlp_width if family.gate == family.up else channels
    return [Rows(family.gate, channels), Rows(family.up, up)]


def rows_of(parts: Iterable[Rows], structures: Tensor) -> dict[str, Tensor]:
    """Return the rows that stay in each projection, ascending.

    Args:
        parts: where structures live.
        structures: indices of those that stay.
    """
    found: dict[str, list[Tensor]] = {}
    for part in parts:
        found.setdefault(part.path, []).append(part.indices[structures.cpu()].flatten())
    return {path: torch.cat(own).sort().values.to(structures.device) for path, own in found.items()}


def columns_of(structures: Tensor, features: int, count: int) -> Tensor:
    """Return the columns of structures in the projection that reads them, in their order.

    Args:
        structures: indices.
        features: of the projection.
        count: structures that it has in all.
    """
    size = features // count
    return (structures[:, None] * size + torch.arange(size, device=structures.device)).flatten()


def oriented(weight: Tensor, layout: Layout) -> Tensor:
    """Return a projection's weight as (out_features, in_features), whichever way its family stores it."""
    return weight if layout.record.orientation == "out_in" else weight.T


@dataclass(frozen=True, slots=True)
class StructureScores:
    """What the structures of a layer are worth; higher stays longer."""

    channels: Tensor  # (mlp_width,), float32
    groups: Tensor  # (kv_groups,), float32


def totals(values: Mapping[str, Tensor], layout: Layout) -> StructureScores:
    """Add up values of weights over all weights that leave with a channel or a KV group.

    Args:
        values: (out_features, in_features) of every projection of a layer, by its path.
        layout: the model's sizes.
    """
    family = layout.record

    def total(reader: str, parts: list[Rows], structures: int) -> Tensor:
        result = values[reader].sum(dim=0).view(structures, -1).sum(dim=1)
        for part in parts:
            result = result + values[part.path].sum(dim=1)[part.indices.to(result.device)].sum(dim=1)
        return result

    return StructureScores(
        total(family.down, mlp_rows(layout), layout.mlp_width),
        total(family.output, attention_rows(layout), layout.kv_groups),
    )
