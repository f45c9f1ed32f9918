"""Cutting an architecture out of a dense model in memory, by slicing widths and masking weights.

A `Surgeon` changes the model in place and can always go back: it keeps the dense weights, and `install` touches only
the layers in which the new architecture differs from the installed one, so going from one candidate to the next costs
milliseconds.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evaluator.pruned_model import RemovedAttention, RemovedMLP
from evaluator.pruning import wanda
from evaluator.pruning.statistics import InputNorms, projections
from space import Architecture, Family, LayerArchitecture, Layout

# Masked weights of this many bytes are kept, since a search asks for the same few levels again and again.
MASK_CACHE_BYTES = 2**30


@dataclass(frozen=True)
class _Projection:
    """A dense projection's weights, as they were before any pruning."""

    module: nn.Linear
    weight: Tensor  # (out_features, in_features)
    bias: Tensor | None  # (out_features,)


class Surgeon:
    """Installs architectures in a dense model.

    Not safe for several threads: one surgeon owns its model.

    Args:
        layers: the model's decoder layers.
        layout: the dense model's sizes.
        norms: what calibration saw.
    """

    def __init__(self, layers: nn.ModuleList, layout: Layout, norms: InputNorms) -> None:
        self.layout = layout
        self.family: Family = layout.record
        self.installed = Architecture.dense(layout)
        self._layers = layers
        self._norms = norms.norms
        self._dense = [self._remember(layer) for layer in layers]
        self._modules = [self._remember_modules(layer) for layer in layers]
        self._masked: dict[tuple[int, str, int, float], Tensor] = {}
        self._masked_bytes = 0
        self._channel_scores = [self._score_channels(index) for index in range(layout.layers)]
        self._group_scores = [self._score_groups(index) for index in range(layout.layers)]

    def install(self, architecture: Architecture) -> None:
        """Make the model in memory that of an architecture.

        Raises:
            ArchitectureError: the architecture does not fit the model.
        """
        architecture.check(self.layout)
        with torch.no_grad():
            for index in architecture.changed_layers(self.installed):
                self._install_attention(index, architecture.layers[index])
                self._install_mlp(index, architecture.layers[index])
        self.installed = architecture

    def restore(self) -> None:
        """Make the model in memory the dense one again, bit for bit."""
        self.install(Architecture.dense(self.layout))

    def _remember(self, layer: nn.Module) -> dict[str, _Projection]:
        found = {}
        for name in projections(self.family):
            module = layer.get_submodule(name)
            assert isinstance(module, nn.Linear), f"{name} is a {type(module).__name__}"
            bias = module.bias.data if module.bias is not None else None
            found[name] = _Projection(module, module.weight.data, bias)
        return found

    def _remember_modules(self, layer: nn.Module) -> dict[str, nn.Module]:
        family = self.family
        names = (family.attention, family.mlp, *family.attention_norms, *family.mlp_norms)
        return {name: layer.get_submodule(name) for name in names}

    def _score_channels(self, index: int) -> Tensor:
        down = self.family.down
        return wanda.channel_scores(self._dense[index][down].weight, self._norms[index][down])

    def _score_groups(self, index: int) -> Tensor:
        output = self.family.output
        return wanda.group_scores(self._dense[index][output].weight, self._norms[index][output], self.layout.kv_groups)

    def _install_attention(self, index: int, target: LayerArchitecture) -> None:
        family, layer, dense = self.family, self._layers[index], self._dense[index]
        if target.kv_groups == 0:
            self._remove(layer, family.attention, family.attention_norms, RemovedAttention())
            return
        self._return(index, family.attention, family.attention_norms)
        groups = heads = None
        if target.kv_groups < self.layout.kv_groups:
            kept = wanda.kept(self._group_scores[index], target.kv_groups)
            groups = _features(kept, self.layout.head_dim)
            heads = _features(kept, self.layout.head_dim * self.layout.heads_per_group)
        sparsity = target.attention_sparsity
        self._set(index, family.query, dense[family.query], heads, None, sparsity)
        self._set(index, family.key, dense[family.key], groups, None, sparsity)
        self._set(index, family.value, dense[family.value], groups, None, sparsity)
        self._set(index, family.output, dense[family.output], None, heads, sparsity)

    def _install_mlp(self, index: int, target: LayerArchitecture) -> None:
        family, layer, dense = self.family, self._layers[index], self._dense[index]
        if target.mlp_width == 0:
            self._remove(layer, family.mlp, family.mlp_norms, RemovedMLP())
            return
        self._return(index, family.mlp, family.mlp_norms)
        channels = None
        if target.mlp_width < self.layout.mlp_width:
            channels = wanda.kept(self._channel_scores[index], target.mlp_width)
        if family.gate is not None:
            self._set(index, family.gate, dense[family.gate], channels, None, target.mlp_sparsity)
        self._set(index, family.up, dense[family.up], channels, None, target.mlp_sparsity)
        self._set(index, family.down, dense[family.down], None, channels, target.mlp_sparsity)

    @staticmethod
    def _remove(layer: nn.Module, name: str, norms: tuple[str, ...], stand_in: nn.Module) -> None:
        layer.set_submodule(name, stand_in)
        for norm in norms:
            layer.set_submodule(norm, nn.Identity())

    def _return(self, index: int, name: str, norms: tuple[str, ...]) -> None:
        for module in (name, *norms):
            self._layers[index].set_submodule(module, self._modules[index][module])

    def _set(
        self,
        index: int,
        name: str,
        dense: _Projection,
        rows: Tensor | None,
        columns: Tensor | None,
        sparsity: float,
    ) -> None:
        """Give a projection the kept rows and columns of its dense weights, masked to a sparsity."""
        weight = dense.weight if rows is None else dense.weight.index_select(0, rows)
        weight = weight if columns is None else weight.index_select(1, columns)
        if sparsity > 0:
            weight = self._sparse(index, name, weight, columns, sparsity)
        module = dense.module
        module.weight = nn.Parameter(weight, requires_grad=False)
        if dense.bias is not None:
            bias = dense.bias if rows is None else dense.bias.index_select(0, rows)
            module.bias = nn.Parameter(bias, requires_grad=False)
        module.out_features, module.in_features = weight.shape

    def _sparse(self, index: int, name: str, weight: Tensor, columns: Tensor | None, sparsity: float) -> Tensor:
        # A projection's kept rows and columns follow from how many are kept, so its size identifies them.
        key = (index, name, weight.numel(), sparsity)
        if key in self._masked:
            return self._masked[key]
        norms = self._norms[index][name]
        norms = norms if columns is None else norms.index_select(0, columns)
        masked = weight * wanda.row_mask(wanda.weight_scores(weight, norms), sparsity)
        size = masked.numel() * masked.element_size()
        if self._masked_bytes + size <= MASK_CACHE_BYTES:
            self._masked[key] = masked
            self._masked_bytes += size
        return masked


def _features(groups: Tensor, size: int) -> Tensor:
    """Return the indices of the features of whole groups, `size` features each."""
    return (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()
