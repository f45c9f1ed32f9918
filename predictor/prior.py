"""The additive replace-one-sub-block prior: what each sub-block would do alone, and the sum of that.

Notation: L layers; sub-block 2 i is the attention of layer i, 2 i + 1 its MLP; the damage of a sub-block is what is
measured when it alone is pruned and all else is dense. The prior of an architecture is the sum of its 2 L damages.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from scipy.optimize import nnls

from predictor.dataset import FloatArray, blocks_alone, by_sub_block, changed, checked_genes, dense_widths, singles
from predictor.lines import Lines
from space import GENES, Architecture, DistinctChoices, Layout, PredictorError

Knots = tuple[tuple[float, float], ...]  # (gene, value), as measured, the least damage first

# KL grows with the channels lost to about this power.
POWER = 5 / 3
LEAST_SHARE = 0.1  # of a measured value stays when the rounding floor is taken off


@dataclass(frozen=True)
class AdditivePrior:
    """The additive replace-one-sub-block prior: one damage curve per sub-block and gene.

    A curve is a power law between measured points, value = c lost ** POWER locally; it starts at 0 for the dense gene,
    never falls as less is kept, and goes on at its own slope beyond the last measured point. Before that, the rounding
    floor (see `rounding_floor`) is taken off: it is in every measurement once, and a sum over all sub-blocks would
    count it once for each. What it is read from, MLPs less one channel, is no point of a curve. The damages of a
    sub-block's width and of its sparsity add. Where a whole layer was removed alone, that is what its two sub-blocks do
    together once both are gone, in shares as each alone; where neither was measured alone, each has half of it.

    Args:
        layout: the dense model.
        widths: measured (width, value) of each sub-block, widest first; empty where none was measured.
        sparsities: measured (sparsity, value) of each sub-block, densest first; empty where none was measured.
        blocks: by layer, the value measured without it; not in it where that was not measured.

    Source: Puzzle (arXiv 2411.19146), replace-1-block scores.
    """

    layout: Layout
    widths: tuple[Knots, ...]
    sparsities: tuple[Knots, ...]
    blocks: Mapping[int, float] = field(default_factory=dict)
    _table: FloatArray = field(init=False, repr=False, compare=False)  # (2 * layers, widths), a value for each width
    _roots: Lines = field(init=False, repr=False, compare=False)  # of each sub-block's damage by its sparsity

    def __post_init__(self) -> None:
        table = np.zeros((2 * self.layout.layers, max(dense_widths(self.layout)) + 1))
        for column, (knots, dense) in enumerate(zip(self.widths, dense_widths(self.layout), strict=True)):
            asked = np.arange(dense + 1, dtype=np.float64)
            # Nothing measured: 0 for the dense width and no number for the others.
            table[column, : dense + 1] = _curve(dense - asked, [(dense - w, v) for w, v in knots], float(dense))
        object.__setattr__(self, "_table", table)
        roots = [zip(*_roots(knots, 1.0), strict=True) if knots else () for knots in self.sparsities]
        object.__setattr__(self, "_roots", Lines.through([[tuple(own)] for own in roots]))

    @classmethod
    def from_pairs(cls, layout: Layout, architectures: Iterable[Architecture], values: Sequence[float]) -> Self:
        """Build the prior from those architectures that differ from dense in one gene of one sub-block.

        Args:
            layout: the dense model.
            architectures: architectures; those that are no singles are ignored, unless they need a missing one.
            values: measured value of each, 0 for the dense model; KL in nats per token.

        Raises:
            PredictorError: a sub-block that some architecture changes was never measured alone.
        """
        return cls.from_genes(layout, checked_genes(layout, architectures), np.asarray(values, dtype=np.float64))

    @classmethod
    def from_genes(cls, layout: Layout, genes: FloatArray, values: FloatArray) -> Self:
        """Build the prior from genes (architectures, layers, genes) and their values (architectures,).

        Raises:
            PredictorError: as `from_pairs`.
        """
        widths: list[dict[float, float]] = [{} for _ in range(2 * layout.layers)]
        sparsities: list[dict[float, float]] = [{} for _ in range(2 * layout.layers)]
        sub_blocks = by_sub_block(genes)
        for row in np.flatnonzero(singles(layout, genes)):
            column, gene = (int(index) for index in np.argwhere(changed(layout, genes[row : row + 1])[0])[0])
            (widths if gene == 0 else sparsities)[column][float(sub_blocks[row, column, gene])] = float(values[row])
        floor = rounding_floor(layout, widths)
        blocks = {}
        for row in np.flatnonzero(blocks_alone(layout, genes)):
            layer = int(np.flatnonzero((sub_blocks[row, :, 0] == 0).reshape(-1, 2).all(axis=1))[0])
            blocks[layer] = float(max(values[row] - floor[layer], LEAST_SHARE * values[row]))
        for column, (by_width, by_sparsity) in enumerate(zip(widths, sparsities, strict=True)):
            for curve in (by_width, by_sparsity):
                for kept, value in curve.items():
                    curve[kept] = float(max(value - floor[column // 2], LEAST_SHARE * value))
        for layer, value in blocks.items():
            own = slice(2 * layer, 2 * layer + 2)
            if not any(widths[own]):
                widths[own] = [{0.0: value / 2}, {0.0: value / 2}]
        prior = cls(
            layout,
            tuple(tuple(sorted(curve.items(), reverse=True)) for curve in widths),
            tuple(tuple(sorted(curve.items())) for curve in sparsities),
            blocks,
        )
        prior.terms(genes)  # refuses what was never measured
        return prior

    @classmethod
    def assumed(cls, layout: Layout, genes: FloatArray, damages: FloatArray) -> Self:
        """Build a prior where no sub-block was measured alone: those of one kind all do the same damage.

        Of that damage, lost share ** POWER for width and sparsity of attention and MLP each, as much as fits best.

        Args:
            layout: the dense model.
            genes: (architectures, layers, genes) of whole architectures.
            damages: (architectures,).
        """
        dense = np.array(dense_widths(layout), dtype=np.float64)
        sub_blocks = by_sub_block(genes)
        lost = np.stack([1 - sub_blocks[:, :, 0] / dense, sub_blocks[:, :, 1]], axis=2) ** POWER
        by_kind = lost.reshape(len(genes), layout.layers, 4).sum(axis=1)  # attention and MLP, width and sparsity
        found, _ = nnls(by_kind, np.maximum(damages, 0.0))
        # Noise may give a kind nothing; then nothing could be learned of it.
        amounts = np.maximum(found, LEAST_SHARE * max(found.max(), 1.0 / len(dense)))
        widths = [((0.0, float(amounts[2 * (column % 2)])),) for column in range(len(dense))]
        sparsities = [((1.0, float(amounts[2 * (column % 2) + 1])),) for column in range(len(dense))]
        return cls(layout, tuple(widths), tuple(sparsities))

    def terms(self, genes: FloatArray) -> FloatArray:
        """Return the damage that each sub-block would do alone.

        Args:
            genes: (architectures, layers, genes in the order of `GENES`).

        Returns:
            (architectures, 2 * layers), column 2 i for the attention of layer i and 2 i + 1 for its MLP.

        Raises:
            PredictorError: a gene is out of range, or the sub-block was never measured alone with that gene changed.
        """
        return self.terms_of(self.choices(genes))

    def choices(self, genes: FloatArray) -> DistinctChoices:
        """Return the distinct choices in genes (architectures, layers, genes).

        Raises:
            PredictorError: a gene is out of range.
        """
        if genes.ndim != 3 or genes.shape[1:] != (self.layout.layers, len(GENES)):
            raise PredictorError(
                f"Genes must be of shape (architectures, {self.layout.layers}, {len(GENES)}), but are of shape "
                f"{genes.shape}; give architectures of the model that the predictor was fitted on."
            )
        sub_blocks = by_sub_block(genes)
        kept, sparsity = sub_blocks[:, :, 0], sub_blocks[:, :, 1]
        self._check_range(kept, sparsity)
        return DistinctChoices.of(self.layout, genes)

    def terms_of(self, choices: DistinctChoices) -> FloatArray:
        """Return what `terms` does, of `choices`.

        Raises:
            PredictorError: a sub-block was never measured alone with a gene changed that is.
        """
        alone = self._alone(choices)
        found: FloatArray = alone[choices.at]
        if self.blocks and len(found):
            together = np.full(self.layout.layers, np.nan)
            together[list(self.blocks)] = list(self.blocks.values())
            gone = choices.removed_layers & ~np.isnan(together)
            pairs = found.reshape(len(found), self.layout.layers, 2)
            parts = pairs[gone]
            total = np.maximum(parts.sum(axis=1), np.finfo(np.float64).tiny)
            pairs[gone] = parts * (together[np.nonzero(gone)[1]] / total)[:, None]
        return found

    def _alone(self, choices: DistinctChoices) -> FloatArray:
        """Return the damage (choices,) of each choice alone."""
        found: FloatArray = self._table[choices.columns, choices.widths]
        # What is removed has no weights that could be 0.
        sparse = (choices.sparsities > 0) & (choices.widths > 0)
        if sparse.any():
            found[sparse] += self._roots.at(choices.columns[sparse], choices.sparsities[sparse])[:, 0] ** POWER
        if np.isnan(found).any():
            first = choices.at[np.isnan(found)[choices.at]][0]
            raise PredictorError(
                self._unmeasured(*(own[first].item() for own in (choices.columns, choices.widths, choices.sparsities)))
            )
        return found

    def _check_range(self, kept: FloatArray, sparsity: FloatArray) -> None:
        if not kept.size:
            return
        dense = np.array(dense_widths(self.layout), dtype=np.float64)
        wrong = ~((kept >= 0) & (kept <= dense) & (sparsity >= 0) & (sparsity < 1))
        if wrong.any():
            row, column = (int(index) for index in np.argwhere(wrong)[0])
            raise PredictorError(
                f"The {_name(column)} must keep between 0 and {dense[column]:g} with a sparsity of at least 0 and "
                f"below 1, but keeps {kept[row, column]:g} with a sparsity of {sparsity[row, column]:g}; "
                "give architectures of the model that the predictor was fitted on."
            )

    def _unmeasured(self, column: int, kept: int, sparsity: float) -> str:
        gene = GENES[2 * (column % 2)] if np.isnan(self._table[column, kept]) else GENES[2 * (column % 2) + 1]
        value = kept if gene == GENES[2 * (column % 2)] else sparsity
        return (
            f"Each sub-block that is pruned must also be measured alone, but the {_name(column)} is asked for with "
            f"{gene} {value:g} and no pair changes its {gene} and nothing else; measure one."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the measured points as plain values for JSON, without the layout."""
        return {
            "widths": [[list(point) for point in knots] for knots in self.widths],
            "sparsities": [[list(point) for point in knots] for knots in self.sparsities],
            "blocks": {str(layer): value for layer, value in self.blocks.items()},
        }

    @classmethod
    def from_dict(cls, layout: Layout, values: Mapping[str, Any]) -> Self:
        """Rebuild a prior from `to_dict`.

        Raises:
            PredictorError: the values are not a prior of this layout.
        """
        try:
            widths, sparsities = (
                tuple(tuple((float(gene), float(value)) for gene, value in knots) for knots in values[key])
                for key in ("widths", "sparsities")
            )
            if len(widths) != 2 * layout.layers or len(sparsities) != 2 * layout.layers:
                raise ValueError(f"{len(widths)} curves")
            blocks = {int(layer): float(value) for layer, value in values["blocks"].items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PredictorError(
                f"A prior must hold the measured widths and sparsities of {2 * layout.layers} sub-blocks, but does not "
                f"({error}); fit the predictor again."
            ) from None
        return cls(layout, widths, sparsities, blocks)


def rounding_floor(layout: Layout, widths: Sequence[dict[float, float]]) -> FloatArray:
    """Take out of measured widths those of one channel less, and return what rounding alone is worth at each layer.

    In bfloat16 any change, however small, makes all later layers round differently: some 0.001 nats of KL on
    SmolLM2-135M, more the more layers follow. An MLP less its least channel shows that and hardly anything else.

    Args:
        layout: the dense model.
        widths: measured value by width for each sub-block (2 * layers); one channel less is removed from it.

    Returns:
        (layers,) nats per token, linear between the layers where it was measured; 0 where it nowhere was.
    """
    found = {}
    for layer in range(layout.layers):
        value = widths[2 * layer + 1].pop(float(layout.mlp_width - 1), None)
        if value is not None:
            found[layer] = value
    if not found:
        return np.zeros(layout.layers)
    return np.interp(np.arange(layout.layers), list(found), list(found.values()))


def _curve(lost: FloatArray, knots: Sequence[tuple[float, float]], end: float) -> FloatArray:
    """Interpolate a damage curve.

    Args:
        lost: (n,) how much is taken away, 0 to `end`.
        knots: (lost, value), by rising loss.
        end: the largest possible loss.

    Returns:
        (n,) damages; not a number where something is lost and nothing was measured.
    """
    if not knots:
        return np.where(lost > 0, np.nan, 0.0)
    return np.asarray(np.interp(lost, *_roots(knots, end)) ** POWER)


def _roots(knots: Sequence[tuple[float, float]], end: float) -> tuple[FloatArray, FloatArray]:
    """Return places and values of the lines whose power the curve is."""
    x = np.array([0.0, *(point for point, _ in knots)])
    y = np.maximum.accumulate(np.maximum([0.0, *(value for _, value in knots)], 0.0)) ** (1 / POWER)
    if x[-1] < end:
        slope = max((y[-1] - y[-2]) / (x[-1] - x[-2]), y[-1] / x[-1])
        x, y = np.append(x, end), np.append(y, y[-1] + slope * (end - x[-1]))
    return x, y


def _name(column: int) -> str:
    return f"{'MLP' if column % 2 else 'attention'} of layer {column // 2}"
