"""Many architectures at once, as numbers: checked, changed, and what they cost."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from space import GENES, Architecture, ArchitectureError, LayerArchitecture, Layout, SearchSpace

Genes = NDArray[np.float64]  # (architectures, layers, genes in the order of `GENES`)


def checked(genes: Genes, layout: Layout) -> None:
    """Refuse what is no architecture of a model.

    Args:
        genes: of the architectures.
        layout: the dense model.

    Raises:
        ArchitectureError: the layers are too many or few, or a gene is out of its range.
    """
    if genes.shape[1] != layout.layers:
        raise ArchitectureError(
            f"An architecture must have one entry for each of the model's {layout.layers} layers, but has "
            f"{genes.shape[1]}; add or remove entries (a removed layer is kv_groups 0 and mlp_width 0)."
        )
    whole = {"kv_groups": layout.kv_groups, "mlp_width": layout.mlp_width}
    for place, gene in enumerate(GENES):
        own = genes[:, :, place]
        if gene in whole:
            bad, rule = (
                (own < 0) | (own > whole[gene]) | (own != np.floor(own)),
                f"a whole number of 0 to {whole[gene]}",
            )
        else:
            bad, rule = ~((own >= 0) & (own < 1)), "at least 0 and below 1"
        if bad.any():
            row, layer = (int(each) for each in np.argwhere(bad)[0])
            raise ArchitectureError(
                f"{gene} must be {rule}, but is {own[row, layer]:g} in layer {layer} of architecture {row}; change it."
            )


def changed_genes(genes: Genes, changes: Sequence[tuple[int, str, float]], space: SearchSpace) -> Genes:
    """Return architectures with genes changed in each.

    Args:
        genes: of the architectures.
        changes: layer, gene and value of each change.
        space: of the run.

    Raises:
        ArchitectureError: there is no such layer.
    """
    found = genes.copy()
    for layer, gene, value in changes:
        if layer >= found.shape[1]:
            raise ArchitectureError(
                f"A change must be in a layer of 0 to {found.shape[1] - 1}, but is in {layer}; choose another."
            )
        found[:, layer, GENES.index(gene)] = value
    return found


def costs_of(space: SearchSpace, genes: Genes) -> NDArray[np.float64]:
    """Return costs (architectures, metrics in the order of `space.metrics`) of any architectures of the model.

    Args:
        space: what tells costs.
        genes: of the architectures.
    """
    return np.array([list(space.amounts(each).values()) for each in architectures_of(genes)], dtype=np.float64)


def architectures_of(genes: Genes) -> list[Architecture]:
    """Return architectures as records."""
    return [
        Architecture(tuple(LayerArchitecture(int(g), int(w), float(a), float(m)) for g, a, w, m in each))
        for each in genes.tolist()
    ]
