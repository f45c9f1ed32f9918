"""Pairs of architecture and measured value: what no predictor may be fitted on is refused here."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from space import GENES, Architecture, ArchitectureError, Layout, PredictorError, genes_of

FloatArray = NDArray[np.float64]

FEWEST_PAIRS = 20  # below that, a held-out rank correlation says nothing
_SAME = 1e-6  # relative difference that two measurements of one architecture may have, the rounding of float32


@dataclass(frozen=True)
class Pairs:
    """Checked pairs of architecture and value, each architecture once, dense left out.

    Args:
        genes: (pairs, layers, genes in the order of `GENES`).
        values: (pairs,) measured values.
        fingerprints: (pairs,) of the architectures.
    """

    genes: FloatArray
    values: FloatArray
    fingerprints: tuple[str, ...]

    @classmethod
    def check(cls, layout: Layout, architectures: Sequence[Architecture], values: Sequence[float]) -> Self:
        """Check pairs and turn them into arrays.

        Args:
            layout: the dense model.
            architectures: one or more; dense may be among them.
            values: measured value of each.

        Raises:
            PredictorError: the pairs do not fit the layout or contradict each other.
        """
        if len(architectures) != len(values):
            raise PredictorError(
                f"Each architecture must come with one value, but there are {len(architectures)} architectures and "
                f"{len(values)} values; give pairs."
            )
        genes = checked_genes(layout, architectures)
        first: dict[Architecture, int] = {}
        for index, (architecture, value) in enumerate(zip(architectures, values, strict=True)):
            known = first.setdefault(architecture, index)
            if known != index and not math.isclose(values[known], value, rel_tol=_SAME, abs_tol=1e-12):
                raise PredictorError(
                    f"An architecture must have one value, but {architecture.fingerprint} has {values[known]:g} "
                    f"(pair {known}) and {value:g} (pair {index}); keep the pairs of one protocol."
                )
        rows = [index for architecture, index in first.items() if architecture != Architecture.dense(layout)]
        fingerprints = tuple(architectures[row].fingerprint for row in rows)
        return cls(genes[rows], np.array(values, dtype=np.float64)[rows], fingerprints)

    def check_trainable(self) -> None:
        """Check that trees can be trained on these pairs.

        Raises:
            PredictorError: they are too few, or their values are all the same.
        """
        if len(self.values) < FEWEST_PAIRS:
            raise PredictorError(
                f"A predictor must be trained on at least {FEWEST_PAIRS} architectures that change more than one "
                f"gene of one sub-block, but there are {len(self.values)}; measure {FEWEST_PAIRS - len(self.values)} "
                "more."
            )
        if np.ptp(self.values) <= _SAME * np.abs(self.values).max():
            raise PredictorError(
                f"The values of a predictor's pairs must differ, but all {len(self.values)} are {self.values[0]:g}; "
                "measure on more tokens or with another metric."
            )

    def where(self, mask: NDArray[np.bool_]) -> "Pairs":
        """Return the pairs (pairs,) that a mask selects."""
        chosen = tuple(self.fingerprints[index] for index in np.flatnonzero(mask))
        return Pairs(self.genes[mask], self.values[mask], chosen)


def checked_genes(layout: Layout, architectures: Iterable[Architecture]) -> FloatArray:
    """Return the genes (architectures, layers, genes) of architectures that fit the layout.

    Raises:
        PredictorError: an architecture does not fit.
    """
    records = list(architectures)
    for index, architecture in enumerate(records):
        try:
            architecture.check(layout)
        except ArchitectureError as error:
            raise PredictorError(
                f"Architecture {index} must fit the predictor's model, but does not: {error}"
            ) from None
    return genes_of(records).reshape(-1, layout.layers, len(GENES))


def dense_widths(layout: Layout) -> tuple[int, ...]:
    """Return the width of each sub-block (2 * layers) of the dense model."""
    return (layout.kv_groups, layout.mlp_width) * layout.layers


def changed(layout: Layout, genes: FloatArray) -> NDArray[np.bool_]:
    """Return where genes differ from dense: (architectures, 2 * layers, width and sparsity)."""
    dense = np.array([(width, 0.0) for width in dense_widths(layout)])  # (2 * layers, 2)
    return np.asarray(by_sub_block(genes) != dense)


def singles(layout: Layout, genes: FloatArray) -> NDArray[np.bool_]:
    """Return which of (architectures, layers, genes) differ from dense in exactly one gene of one sub-block."""
    return np.asarray(changed(layout, genes).sum(axis=(1, 2)) == 1)


def blocks_alone(layout: Layout, genes: FloatArray) -> NDArray[np.bool_]:
    """Return which of (architectures, layers, genes) are the dense model less one whole layer."""
    sub_blocks = by_sub_block(genes)
    differ = changed(layout, genes)
    removed = (sub_blocks[:, :, 0] == 0) & ~differ[:, :, 1]  # (architectures, 2 * layers)
    whole = removed[:, 0::2] & removed[:, 1::2]
    return np.asarray((whole.sum(axis=1) == 1) & (differ.sum(axis=(1, 2)) == 2))


def removed_layers(genes: FloatArray) -> NDArray[np.bool_]:
    """Return which layers (architectures, layers) nothing is left of."""
    widths = by_sub_block(genes)[:, :, 0].reshape(len(genes), genes.shape[1], 2)
    return np.asarray((widths == 0).all(axis=2))


def by_sub_block(genes: FloatArray) -> FloatArray:
    """View genes (architectures, layers, 4) as (architectures, 2 * layers, width and sparsity)."""
    return genes.reshape(len(genes), 2 * genes.shape[1], 2)
