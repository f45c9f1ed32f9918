"""Cutting an architecture out of a dense model in memory, by slicing widths and making weights zero.

A `Surgeon` changes the model in place and can always go back: it keeps the dense weights, and `install` touches only
the layers in which the new architecture differs from the installed one, so going from one candidate to the next costs
milliseconds.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from evaluator.pruned_model import SubBlock, set_head_counts, stand_ins
from evaluator.pruning import wanda
from evaluator.pruning.criteria import narrow, structure_scores, thin
from evaluator.pruning.levels import Level, Levels
from evaluator.pruning.statistics import InputStatistics, LayerStatistics, projections
from evaluator.pruning.structures import (
    StructureScores,
    attention_rows,
    columns_of,
    mlp_rows,
    oriented,
    rows_of,
)
from space import Architecture, Criterion, Family, LayerArchitecture, Layout

Structure = Literal["groups", "channels"]  # KV groups of attention, channels of an MLP


@dataclass(frozen=True)
class Part:
    """What stays of a projection, and where that lies in the dense one."""

    level: Level
    places: Tensor | None  # rows or columns of the dense weight; None is all
    dimension: int  # 0 for rows, 1 for columns


@dataclass(frozen=True)
class _Projection:
    """A dense projection's weights, as they were before any pruning."""

    module: Any  # Linear, or transformers' Conv1D
    weight: Tensor  # (out_features, in_features)
    bias: Tensor | None  # (out_features,)


class Surgeon:
    """Installs architectures in a dense model.

    Not safe for several threads: one surgeon owns its model.

    Args:
        layers: the model's decoder layers.
        layout: the dense model's sizes.
        statistics: what calibration saw of each layer.
        criterion: what to prune by.
        levels: where prepared weights are kept; None keeps them in memory.
    """

    def __init__(
        self,
        layers: nn.ModuleList,
        layout: Layout,
        statistics: Sequence[LayerStatistics],
        criterion: Criterion | None = None,
        levels: Levels | None = None,
    ) -> None:
        self.layout = layout
        self.family: Family = layout.record
        self._family = asdict(self.family)
        self.criterion = criterion or Criterion()
        self.installed = Architecture.dense(layout)
        self._layers = layers
        self.statistics = statistics
        self._levels = levels or Levels()
        self._dense = [self._remember(layer) for layer in layers]
        self._modules = [self._remember_modules(layer) for layer in layers]
        attentions: list[Any] = [layer.get_submodule(self.family.attention) for layer in layers]
        self._configs = [attention.config for attention in attentions]
        self._rows = {"groups": attention_rows(layout), "channels": mlp_rows(layout)}
        self._selections: dict[tuple[int, str, int], tuple[Tensor, dict[str, Tensor]]] = {}
        self._slices: dict[tuple[int, str], Tensor] = {}
        self.scores = [self._score(index) for index in range(layout.layers)]

    def install(self, architecture: Architecture) -> None:
        """Make the model in memory that of an architecture.

        Raises:
            ArchitectureError: the architecture does not fit the model.
            SettingError: its sparsities or widths do not fit the criterion's pattern.
        """
        architecture.check(self.layout)
        with torch.no_grad():
            for index in architecture.changed_layers(self.installed):
                now, target = self.installed.layers[index], architecture.layers[index]
                if (now.kv_groups, now.attention_sparsity) != (target.kv_groups, target.attention_sparsity):
                    self._install_attention(index, target)
                if (now.mlp_width, now.mlp_sparsity) != (target.mlp_width, target.mlp_sparsity):
                    self._install_mlp(index, target)
        self.installed = architecture

    def restore(self) -> None:
        """Make the model in memory the dense one again, bit for bit."""
        self.install(Architecture.dense(self.layout))

    def prepare(self, architectures: Sequence[Architecture], progress: Callable[[int], None] = lambda _: None) -> None:
        """Make all levels that architectures need, layer by layer, and leave the dense model installed.

        Args:
            architectures: of which each layer is prepared by itself.
            progress: told 1 after each layer.
        """
        self.restore()
        dense = Architecture.dense(self.layout).layers[0]
        with torch.no_grad():
            for index in range(self.layout.layers):
                for target in dict.fromkeys(each.layers[index] for each in architectures):
                    self._install_attention(index, target)
                    self._install_mlp(index, target)
                self._install_attention(index, dense)
                self._install_mlp(index, dense)
                progress(1)

    def kept_groups(self, index: int, count: int) -> Tensor:
        """Return the KV groups that a layer keeps, ascending."""
        return self._kept(index, "groups", count)[0]

    def kept_channels(self, index: int, count: int) -> Tensor:
        """Return the MLP channels that a layer keeps, ascending."""
        return self._kept(index, "channels", count)[0]

    def _kept(self, index: int, structure: Structure, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the structures that a layer keeps, and their rows by projection; sorted once for each count."""
        key = index, structure, count
        if key not in self._selections:
            kept = wanda.kept(getattr(self.scores[index], structure), count)
            self._selections[key] = kept, rows_of(self._rows[structure], kept)
        return self._selections[key]

    def dense_weight(self, index: int, path: str) -> Tensor:
        """Return a projection's dense weight (out_features, in_features), whatever is installed."""
        return self._dense[index][path].weight

    def projection(self, index: int, path: str) -> nn.Module:
        """Return a projection's module, whatever is installed."""
        module: nn.Module = self._dense[index][path].module
        return module

    def _remember(self, layer: nn.Module) -> dict[str, _Projection]:
        found = {}
        for path in projections(self.family):
            module: Any = layer.get_submodule(path)
            bias = module.bias.data if module.bias is not None else None
            found[path] = _Projection(module, oriented(module.weight.data, self.layout), bias)
        return found

    def _remember_modules(self, layer: nn.Module) -> dict[str, nn.Module]:
        paths = {**stand_ins(self._family, "attention"), **stand_ins(self._family, "mlp")}
        return {path: layer.get_submodule(path) for path in paths}

    def _score(self, index: int) -> StructureScores:
        weights = {path: dense.weight for path, dense in self._dense[index].items()}
        return structure_scores(self.criterion, weights, self.statistics[index], self.layout)

    def _install_attention(self, index: int, target: LayerArchitecture) -> None:
        layout = self.layout
        self._place_modules(index, "attention", removed=target.kv_groups == 0)
        if target.kv_groups == 0:
            return
        self._place(index, "groups", target.kv_groups, target.attention_sparsity)
        heads = target.kv_groups * layout.heads_per_group
        counts = {"heads": heads, "kv_groups": target.kv_groups, "query_size": heads * layout.head_dim}
        attention = self._modules[index][self.family.attention]
        set_head_counts(attention, self._family, self._configs[index], counts)

    def _install_mlp(self, index: int, target: LayerArchitecture) -> None:
        self._place_modules(index, "mlp", removed=target.mlp_width == 0)
        if target.mlp_width == 0:
            return
        self._place(index, "channels", target.mlp_width, target.mlp_sparsity)

    def _place_modules(self, index: int, sub_block: SubBlock, removed: bool) -> None:
        """Put a sub-block's stand-ins or its own modules into their places."""
        for path, stand_in in stand_ins(self._family, sub_block).items():
            self._layers[index].set_submodule(path, stand_in if removed else self._modules[index][path])

    def _place(self, index: int, structure: Structure, count: int, sparsity: float) -> None:
        """Give a sub-block's projections the weights of the structures that stay, made sparse."""
        for path, part in self.parts(index, structure, count, sparsity).items():
            self._set(index, path, part.level)

    def parts(self, index: int, structure: Structure, count: int, sparsity: float) -> dict[str, Part]:
        """Return what stays of a sub-block's projections; good until the next call or installation.

        Args:
            index: of the layer.
            structure: of attention or of the MLP.
            count: structures that stay, at least 1.
            sparsity: share of zeros per row.
        """
        structures = self.layout.kv_groups if structure == "groups" else self.layout.mlp_width
        kept, rows = self._kept(index, structure, count) if count < structures else (None, {})
        found = {}
        for path in dict.fromkeys(part.path for part in self._rows[structure]):
            own = rows.get(path)
            found[path] = Part(self._writer(index, path, own, sparsity), own, 0)
        reader = self.family.output if structure == "groups" else self.family.down
        features = self._dense[index][reader].weight.shape[1]
        columns = None if kept is None else columns_of(kept, features, structures)
        found[reader] = Part(self._reader(index, reader, kept, structures, sparsity), columns, 1)
        return found

    def _writer(self, index: int, path: str, rows: Tensor | None, sparsity: float) -> Level:
        """Return the weights of a projection that structures are rows of."""
        dense = self._dense[index][path]

        def make() -> Level:
            if sparsity > 0:
                whole = dense.weight if rows is None else dense.weight.index_select(0, rows)
                weight = self._thin(path, whole, self.statistics[index].inputs[path], sparsity)
            else:
                weight = dense.weight if rows is None else self._sliced(index, path, rows)
            level = {"weight": weight}
            if dense.bias is not None:
                level["bias"] = dense.bias if rows is None else dense.bias.index_select(0, rows)
            return level

        count = len(dense.weight) if rows is None else len(rows)
        if sparsity == 0:
            return make()
        return self._levels.get(f"{index}:{path}:{count}:{sparsity}", make, dense.weight.device)

    def _sliced(self, index: int, path: str, rows: Tensor) -> Tensor:
        """Return some rows of a dense weight, where the last ones of this projection were.

        Fresh memory costs more than the copy, and giving back the old as much again.
        """
        dense = self._dense[index][path].weight
        if (index, path) not in self._slices:
            self._slices[index, path] = torch.empty_like(dense, memory_format=torch.contiguous_format)
        return torch.index_select(dense, 0, rows, out=self._slices[index, path][: len(rows)])

    def _reader(self, index: int, path: str, kept: Tensor | None, structures: int, sparsity: float) -> Level:
        """Return the weights of the projection that structures are columns of."""
        dense = self._dense[index][path]
        # What stays as it is, or is only sliced, needs no statistics, which may lie on the disk, and is no level.
        prepared = sparsity > 0 or (kept is not None and self.criterion.update != "none")

        def make() -> Level:
            inputs = self.statistics[index].inputs[path] if prepared else None
            weight, bias = dense.weight, dense.bias
            if kept is not None:
                columns = columns_of(kept, weight.shape[1], structures)
                weight, moved = narrow(self.criterion, weight, inputs, columns)
                if moved is not None:
                    bias = moved if bias is None else bias + moved
                if sparsity > 0 and inputs is not None:
                    inputs = inputs.select(columns)
            if sparsity > 0 and inputs is not None:
                weight = self._thin(path, weight, inputs, sparsity)
            return {"weight": weight} if bias is None else {"weight": weight, "bias": bias}

        if not prepared:
            return make()
        count = structures if kept is None else len(kept)
        return self._levels.get(f"{index}:{path}:{count}:{sparsity}", make, dense.weight.device)

    def _thin(self, path: str, weight: Tensor, inputs: InputStatistics, sparsity: float) -> Tensor:
        family = self.family
        attention = path in (family.query, family.key, family.value, family.output)
        return thin(self.criterion, weight, inputs, sparsity, attention)

    def _set(self, index: int, path: str, level: Level) -> None:
        dense = self._dense[index][path]
        module = dense.module
        # Levels from the disk are not yet where the model is.
        weight, bias = level["weight"].to(dense.weight.device), level.get("bias")
        # Untouched weights go back as they lay in memory, so that the dense model is the same bit for bit.
        module.weight.data = oriented(weight, self.layout)
        if bias is not None or module.bias is not None:
            module.bias = None if bias is None else nn.Parameter(bias.to(weight.device), requires_grad=False)
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = weight.shape
        else:
            module.nf = weight.shape[0]  # transformers' Conv1D
