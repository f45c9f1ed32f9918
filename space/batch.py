"""Many architectures at once, as one array of genes: read and checked, encoded, and told what they cost.

To read a record takes longer than to predict it. An array (architectures, layers, genes in the order of `GENES`) is
checked at once, and most of what is asked of it depends on one sub-block at a time: that is computed for the distinct
choices, of which there are few, and looked up for all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from space.architecture import GENES, SPARSITY_DIGITS, Architecture, LayerArchitecture
from space.domain import Indices, SearchSpace
from space.errors import ArchitectureError
from space.layout import Layout

Genes = NDArray[np.float64]  # (architectures, layers, genes in the order of `GENES`)

_ROWS = 4096  # architectures looked up at once, so that memory stays bounded
_TIE = 1e-6
_GRID = 64  # possible choices for each that is there, up to which marking them is quicker than sorting


@dataclass(frozen=True)
class DistinctChoices:
    """Genes as the distinct choices of sub-blocks that occur in them.

    Args:
        columns: (choices,) the sub-block that each is of: 2 i the attention of layer i, 2 i + 1 its MLP.
        widths: (choices,) KV groups or channels that are kept.
        sparsities: (choices,).
        at: (architectures, 2 * layers) which choice each sub-block takes.
    """

    columns: NDArray[np.intp]
    widths: NDArray[np.intp]
    sparsities: NDArray[np.float64]
    at: NDArray[np.intp]

    @classmethod
    def of(cls, layout: Layout, genes: Genes) -> Self:
        """Find the choices in genes that `read_genes` would take.

        Args:
            layout: the dense model.
            genes: (architectures, layers, genes).
        """
        sub_blocks = genes.reshape(len(genes), 2 * layout.layers, 2)
        columns, most = sub_blocks.shape[1], max(layout.kv_groups, layout.mlp_width) + 1
        keys = sub_blocks[:, :, 0].astype(np.intp)
        keys += np.arange(columns) * most
        levels = np.zeros(1)
        if genes[:, :, 1::2].any():
            levels = np.unique(sub_blocks[:, :, 1])
            keys *= len(levels)
            keys += np.searchsorted(levels, sub_blocks[:, :, 1])
        found, at = _distinct(keys, columns * most * len(levels))
        column, width = np.divmod(found // len(levels), most)
        return cls(column, width, levels[found % len(levels)], at)

    @property
    def removed_layers(self) -> NDArray[np.bool_]:
        """Which layers (architectures, layers) nothing is left of."""
        gone = (self.widths == 0)[self.at]
        return np.asarray(gone[:, 0::2] & gone[:, 1::2])

    def __iter__(self) -> Iterator[tuple[int, int, float]]:
        """Iterate over (column, width, sparsity)."""
        return zip(self.columns.tolist(), self.widths.tolist(), self.sparsities.tolist(), strict=True)


def _distinct(keys: NDArray[np.intp], possible: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the distinct keys, and for each key which of them it is."""
    if len(keys) == 1:  # of different sub-blocks
        return keys[0], np.arange(keys.size).reshape(keys.shape)
    if possible > _GRID * keys.size:
        found, at = np.unique(keys, return_inverse=True)
        return found, at.reshape(keys.shape)
    there = np.zeros(possible, dtype=np.bool_)
    there[keys] = True
    found = np.flatnonzero(there)
    place = np.empty(possible, dtype=np.intp)
    place[found] = np.arange(len(found))
    return found, place[keys]


def read_genes(layout: Layout, values: ArrayLike) -> Genes:
    """Check genes of many architectures at once, and return them as `genes_of` returns those of records.

    Args:
        layout: the dense model.
        values: (architectures, layers, genes in the order of `GENES`), as nested lists or an array of any numbers.

    Returns:
        An array of its own; sparsities are rounded, and those of removed sub-blocks 0, as in `LayerArchitecture`.

    Raises:
        ArchitectureError: the shape is another, or a gene has a value that no architecture of the layout may have.
    """
    genes = _as_array(layout, values)
    widths, sparsities = genes[:, :, 0::2], genes[:, :, 1::2]
    _round(sparsities)
    dense = np.array([layout.kv_groups, layout.mlp_width], dtype=np.float64)
    # Not a number is not within anything.
    right = (widths >= 0) & (widths <= dense) & (widths == np.floor(widths)) & (sparsities >= 0) & (sparsities < 1)
    if not right.all():
        row, layer, part = (int(index) for index in np.argwhere(~right)[0])
        raise ArchitectureError(_refusal(layout, row, layer, part, genes[row, layer]))
    sparsities[widths == 0] = 0.0
    return genes


def _round(sparsities: NDArray[np.float64]) -> None:
    """Round sparsities in place, as `LayerArchitecture` does."""
    rounded = np.round(sparsities, SPARSITY_DIGITS)
    finer = rounded != sparsities
    if finer.any():
        scaled = sparsities[finer] * 10**SPARSITY_DIGITS
        # Python looks at the exact number where numpy sees one just between two.
        between = np.abs(scaled - np.floor(scaled) - 0.5) < _TIE
        own = rounded[finer]
        own[between] = [round(value, SPARSITY_DIGITS) for value in sparsities[finer][between].tolist()]
        rounded[finer] = own
        sparsities[...] = rounded


def _as_array(layout: Layout, values: ArrayLike) -> Genes:
    """Return a copy of genes as an array of floats of the right shape."""
    shape = (layout.layers, len(GENES))
    try:
        found = np.asarray(values)
        if not found.size:
            found = found.astype(np.float64).reshape(-1, *shape)
        if found.dtype.kind not in "iuf" or found.ndim != 3 or found.shape[1:] != shape:
            raise ValueError(f"an array of shape {found.shape} and type {found.dtype}")
    except ValueError as error:
        raise ArchitectureError(
            f"Genes must be numbers of shape (architectures, {shape[0]}, {shape[1]}), in a layer {', '.join(GENES)}, "
            f"but are not ({error}); give one list of {shape[0]} layers for each architecture."
        ) from None
    return found.astype(np.float64)


def _refusal(layout: Layout, row: int, layer: int, part: int, genes: NDArray[np.float64]) -> str:
    width, sparsity = (float(value) for value in genes[2 * part : 2 * part + 2])
    name, level = GENES[2 * part : 2 * part + 2]
    dense = (layout.kv_groups, layout.mlp_width)[part]
    if 0 <= width <= dense and width.is_integer():
        return (
            f"{level} must be at least 0 and below 1 in layer {layer} of architecture {row}, but is {sparsity:g}; "
            "remove a sub-block by a width of 0."
        )
    nearest = min(max(round(width), 0), dense) if np.isfinite(width) else dense
    return (
        f"{name} must be a whole number between 0 and {dense} in layer {layer} of architecture {row}, but is "
        f"{width:g}; the nearest is {nearest}."
    )


def encode_genes(space: SearchSpace, genes: Genes) -> Indices:
    """Turn genes into index vectors, as `SearchSpace.encode` does with records.

    Args:
        space: the search space.
        genes: (architectures, layers, genes), as `read_genes` returns them.

    Raises:
        ArchitectureError: a gene has a value that the space does not allow.
    """
    found = np.empty((len(genes), space.columns), dtype=np.int16)
    for first in range(0, len(genes), _ROWS):
        choices = DistinctChoices.of(space.layout, genes[first : first + _ROWS])
        known = np.array([space.position(*choice) for choice in choices], dtype=np.int16)
        found[first : first + _ROWS] = known[choices.at]
        if (known < 0).any():
            row = first + int(np.flatnonzero((known[choices.at] < 0).any(axis=1))[0])
            try:
                space.encode([_record(genes[row])])
            except ArchitectureError as error:
                raise ArchitectureError(
                    f"Architecture {row} must be of the search space, but is not: {error}"
                ) from None
    return found


def check_indices(space: SearchSpace, values: ArrayLike) -> Indices:
    """Check index vectors that somebody else wrote, and return them as an array.

    Args:
        space: the search space.
        values: (architectures, columns of the space) whole numbers, as nested lists or an array.

    Raises:
        ArchitectureError: the shape is another, or a column has no choice of that index.
    """
    try:
        found = np.asarray(values)
        if not found.size:
            found = found.astype(np.int16).reshape(-1, space.columns)
        if found.dtype.kind not in "iu" or found.ndim != 2 or found.shape[1] != space.columns:
            raise ValueError(f"an array of shape {found.shape} and type {found.dtype}")
    except ValueError as error:
        raise ArchitectureError(
            f"Indices of choices must be whole numbers of shape (architectures, {space.columns}), but are not "
            f"({error}); give for each layer that of its attention and that of its MLP."
        ) from None
    wrong = (found < 0) | (found >= space.sizes)
    if wrong.any():
        row, column = (int(index) for index in np.argwhere(wrong)[0])
        raise ArchitectureError(
            f"The index of a choice must be between 0 and {space.sizes[column] - 1} for the "
            f"{'MLP' if column % 2 else 'attention'} of layer {column // 2}, but is {found[row, column]} in "
            f"architecture {row}; 0 is the cheapest choice, the last one dense."
        )
    return found.astype(np.int16)


def costs_of_genes(space: SearchSpace, genes: Genes) -> NDArray[np.float64]:
    """Return the costs (architectures, metrics in the order of `space.metrics`), of the space or not.

    Args:
        space: whose layout and latency they are told by.
        genes: (architectures, layers, genes), as `read_genes` returns them.
    """
    found = np.empty((len(genes), len(space.metrics)))
    for first in range(0, len(genes), _ROWS):
        choices = DistinctChoices.of(space.layout, genes[first : first + _ROWS])
        table = np.array([space.choice_cost(*choice) for choice in choices], dtype=np.float64).T
        for metric, (own, fixed) in enumerate(zip(table.copy(), space.fixed_cost, strict=True)):
            found[first : first + _ROWS, metric] = np.take(own, choices.at).sum(axis=1) + fixed
    return found


def _record(genes: NDArray[np.float64]) -> Architecture:
    """Return one architecture's genes (layers, genes) as a record."""
    rows: list[dict[str, Any]] = [dict(zip(GENES, row, strict=True)) for row in genes.tolist()]
    widths = ("kv_groups", "mlp_width")
    return Architecture(
        tuple(
            LayerArchitecture(**{name: int(row[name]) if name in widths else row[name] for name in GENES})
            for row in rows
        )
    )
