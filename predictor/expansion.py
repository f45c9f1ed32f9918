"""What is known around a measured architecture: a second-order expansion from slopes there and the prior's curves.

| symbol | meaning |
| --- | --- |
| a, y_a | an architecture and its measured damage |
| d_j(c) | first-order change when sub-block j takes choice c in place of its own in a, all else as in a |
| T_j(c) | damage of sub-block j alone under choice c, from the additive prior |

    y(b) ~ y_a + sum over j of d_j(b_j) + abs(T_j(b_j) - T_j(a_j))

The divergence from the dense model is nearly quadratic in what is taken from the sub-blocks. The slopes d hold what
sub-block j does together with all others as they are in a; the second term is what is quadratic in j itself, which is
the same at a and at the dense model. Left out are pairs of sub-blocks that both change. On SmolLM2-135M at 80 % of the
parameters this alone, with nothing fitted, ranks the best quarter of held-out architectures at a Kendall tau of 0.77,
where the additive prior ranks it at 0.55 (docs/predictor.md).

Where no slope is told, a sub-block adds T_j(b_j) - T_j(a_j).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from predictor.dataset import FloatArray, by_sub_block, checked_genes, dense_widths
from predictor.lines import Lines
from predictor.prior import AdditivePrior
from space import Architecture, DistinctChoices, Layout, PredictorError

Knots = tuple[tuple[float, float], ...]  # (gene, change of the damage)

LEAST_SHARE = 0.3  # of the additive prior, below which no expansion goes: far away they fall without end
_CLOSE = 0.02  # distance up to which one expansion is as good as another
_FEW = 4  # architectures for which making a sparse matrix does not pay


@dataclass(frozen=True)
class Expansion:
    """A measured architecture and its slopes.

    Args:
        layout: the dense model.
        architecture: a.
        damage: y_a, in the unit of the slopes (KL in nats per token), above 0.
        widths: told (width, change) of each sub-block, 2 i the attention of layer i and 2 i + 1 its MLP.
        sparsities: told (sparsity, change) of each sub-block.

    Raises:
        PredictorError: the architecture or the slopes are not of the layout, or a number is not finite.
    """

    layout: Layout
    architecture: Architecture
    damage: float
    widths: tuple[Knots, ...]
    sparsities: tuple[Knots, ...]
    genes: FloatArray = field(init=False, repr=False, compare=False)  # (1, layers, genes)

    def __post_init__(self) -> None:
        object.__setattr__(self, "genes", checked_genes(self.layout, [self.architecture]))
        dense = dense_widths(self.layout)
        numbers = [number for own in (*self.widths, *self.sparsities) for knot in own for number in knot]
        if (
            {len(self.widths), len(self.sparsities)} != {len(dense)}
            or not np.isfinite([self.damage, *numbers]).all()
            or self.damage <= 0
        ):
            raise PredictorError(
                f"An expansion must have a damage above 0 and finite slopes of {len(dense)} sub-blocks, but that of "
                f"{self.architecture.fingerprint} has a damage of {self.damage} and slopes of {len(self.widths)}; "
                "take its slopes again."
            )

    def expand(self, prior: AdditivePrior, genes: FloatArray, terms: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the expanded damage of other architectures and how far away they are.

        Args:
            prior: of the same damage.
            genes: (architectures, layers, genes).
            terms: (architectures, 2 * layers), the prior's of them.

        Returns:
            Damages (architectures,), and distances (architectures,): the sum over sub-blocks of what their damages
            alone differ by, over this architecture's damage.
        """
        near, distance = Surroundings([self], prior).expand(prior.choices(genes), terms)
        return near[:, 0], distance[:, 0]

    def parts(self, prior: AdditivePrior, genes: FloatArray, terms: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return what each sub-block changes to first order, and to second.

        Args:
            prior: of the same damage.
            genes: (architectures, layers, genes).
            terms: (architectures, 2 * layers), the prior's of them.

        Returns:
            Two arrays (architectures, 2 * layers); where no slope is told, the first has the prior's whole change.
        """
        at, linear, second, _ = Surroundings([self], prior).parts(prior.choices(genes), terms)
        return linear[at, 0], second[at, 0]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without the layout."""
        return {
            "architecture": self.architecture.to_dict(),
            "damage": self.damage,
            "widths": [[list(knot) for knot in own] for own in self.widths],
            "sparsities": [[list(knot) for knot in own] for own in self.sparsities],
        }

    @classmethod
    def from_dict(cls, layout: Layout, values: Mapping[str, Any]) -> Self:
        """Rebuild an expansion from `to_dict`.

        Raises:
            PredictorError: the values are none of this layout.
        """
        widths, sparsities = (
            tuple(tuple((float(gene), float(change)) for gene, change in own) for own in values[name])
            for name in ("widths", "sparsities")
        )
        return cls(layout, Architecture.from_dict(values["architecture"]), float(values["damage"]), widths, sparsities)


class Surroundings:
    """What expansions together say of architectures, the nearest most.

    Args:
        expansions: E of them, one or more, of one model.
        prior: of the same damage.
    """

    def __init__(self, expansions: Sequence[Expansion], prior: AdditivePrior) -> None:
        genes = np.concatenate([each.genes for each in expansions])
        self._damages = np.array([each.damage for each in expansions])  # (E,)
        self._own = by_sub_block(genes).transpose(1, 0, 2)  # (2 * layers, E, width and sparsity)
        self._terms = prior.terms(genes).T  # (2 * layers, E)
        self._blocks = bool(prior.blocks)
        self._widths, self._sparsities = (
            Lines.through(list(zip(*(getattr(each, name) for each in expansions), strict=True)))
            for name in ("widths", "sparsities")
        )

    def of(self, choices: DistinctChoices, terms: FloatArray) -> FloatArray:
        """Return what is known around architectures.

        Args:
            choices: of the architectures, from `AdditivePrior.choices`.
            terms: (architectures, 2 * layers), the prior's of them.

        Returns:
            (architectures, 2): the logarithm of the expanded damage by the additive one, and the least distance.
        """
        additive = np.maximum(terms.sum(axis=1), np.finfo(np.float64).tiny)
        damage, distance = self.expand(choices, terms)
        weights = 1 / (distance + _CLOSE) ** 2
        told = np.log(np.maximum(damage / additive[:, None], LEAST_SHARE))
        return np.column_stack(((weights * told).sum(axis=1) / weights.sum(axis=1), distance.min(axis=1)))

    def expand(self, choices: DistinctChoices, terms: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return what `Expansion.expand` does, each (architectures, E); arguments as in `of`."""
        at, linear, second, away = self.parts(choices, terms)
        sums = _sums(np.concatenate((linear + second, away), axis=1), at)
        count = len(self._damages)
        return self._damages + sums[:, :count], sums[:, count:] / self._damages

    def parts(
        self, choices: DistinctChoices, terms: FloatArray
    ) -> tuple[NDArray[np.intp], FloatArray, FloatArray, FloatArray]:
        """Return what each choice of a sub-block changes.

        Args:
            choices: of the architectures.
            terms: (architectures, 2 * layers), the prior's of them.

        Returns:
            Which choice (architectures, 2 * layers) each sub-block takes; then of the choices (choices, E) the changes
            to first order and to second, as in `Expansion.parts`, and by how much their damages alone differ.
        """
        at, columns, widths, sparsities = choices.at, choices.columns, choices.widths, choices.sparsities
        if self._blocks:  # together with its whole layer a removed sub-block does another damage than alone
            at = at + len(columns) * np.repeat(choices.removed_layers, 2, axis=1)
            columns, widths = np.concatenate((columns, columns)), np.concatenate((widths, widths))
            sparsities = np.concatenate((sparsities, sparsities))
        damages = np.zeros(len(widths))
        damages[at] = terms
        differ = damages[:, None] - self._terms[columns]
        away = np.abs(differ)
        change = self._changes(columns, widths, sparsities)
        untold = np.isnan(change)
        return at, np.where(untold, differ, change), np.where(untold, 0.0, away), away

    def _changes(self, columns: NDArray[np.intp], widths: NDArray[np.intp], sparsities: FloatArray) -> FloatArray:
        """Return the first-order changes (choices, E) by width and sparsity; not a number where untold."""
        own = self._own[columns]
        change = self._widths.at(columns, widths.astype(np.float64))
        change[widths[:, None] == own[:, :, 0]] = 0.0
        # What is removed has no weights that could be 0.
        sparser = (sparsities[:, None] != own[:, :, 1]) & (widths[:, None] > 0)
        if sparser.any():
            change += np.where(sparser, self._sparsities.at(columns, sparsities), 0.0)
        return change


def _sums(table: FloatArray, at: NDArray[np.intp]) -> FloatArray:
    """Return sums (architectures, values) of rows of a table (choices, values), at (architectures, sub-blocks)."""
    if len(at) <= _FEW:
        return np.asarray(table[at].sum(axis=1))
    # As a product with a sparse matrix, no row is copied.
    starts = np.arange(0, at.size + 1, at.shape[1])
    return np.asarray(csr_array((np.ones(at.size), at.ravel(), starts), shape=(len(at), len(table))) @ table)


def surroundings(
    expansions: Sequence[Expansion], prior: AdditivePrior, genes: FloatArray, terms: FloatArray
) -> FloatArray:
    """Return what expansions together say of architectures, as `Surroundings.of`.

    Args:
        expansions: one or more.
        prior: of the same damage.
        genes: (architectures, layers, genes).
        terms: (architectures, 2 * layers), the prior's of them.
    """
    return Surroundings(expansions, prior).of(prior.choices(genes), terms)
