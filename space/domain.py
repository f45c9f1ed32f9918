"""The set of allowed architectures, as integer vectors that numpy can search in bulk.

An architecture of L layers is a vector of 2 L indices: column 2 i chooses the attention of layer i, column 2 i + 1 its
MLP. Choices of a column are sorted from cheapest to dense. All costs are sums over columns, so the cost of a million
architectures is one table look-up per column.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from space.architecture import GENES, Architecture, LayerArchitecture
from space.cost import LATENCY, METRICS, Budget, cost_of, fixed_cost, remembered_costs
from space.errors import ArchitectureError, BudgetError
from space.latency import LatencyTable, milliseconds
from space.layout import Layout

Indices = NDArray[np.int16]  # (architectures, 2 * layers)
_ROWS = 4096  # looked up at once, so that memory stays bounded


@dataclass(frozen=True, slots=True, order=True)
class Choice:
    """What is kept of one sub-block: KV groups or MLP channels, and the sparsity of its rows."""

    width: int
    sparsity: float = 0.0


@dataclass(frozen=True)
class SearchSpace:
    """Allowed choices per sub-block, and the budgets that an architecture must meet.

    Args:
        layout: the dense model.
        choices: one tuple per column, from cheapest to dense.
        budgets: upper limits, all of which must hold.
        whole_blocks: whether a layer's attention and MLP go together, the first choice of both or the last.
        latency: timings of the sub-blocks, which make latency a metric; a budget on it needs them.

    Raises:
        BudgetError: even the cheapest architecture is over a budget, or latency is limited and was not timed.
    """

    layout: Layout
    choices: tuple[tuple[Choice, ...], ...]
    budgets: tuple[Budget, ...] = ()
    whole_blocks: bool = False
    latency: LatencyTable | None = field(default=None, repr=False, compare=False)
    limits: NDArray[np.float64] = field(init=False, repr=False, compare=False)  # (budgets,)
    _tables: tuple[NDArray[np.float64], ...] = field(init=False, repr=False, compare=False)
    # Columns one after the other: costs (metrics, choices), widths and sparsities (choices, 2), and where each begins.
    _flat: NDArray[np.float64] = field(init=False, repr=False, compare=False)
    _flat_genes: NDArray[np.float64] = field(init=False, repr=False, compare=False)
    _starts: NDArray[np.intp] = field(init=False, repr=False, compare=False)  # (columns,)
    # Of each column's choices, by width and sparsity.
    _positions: tuple[dict[tuple[int, float], int], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "budgets", tuple(budget.timed_by(self.latency) for budget in self.budgets))
        tables = tuple(
            np.array([self.choice_cost(column, *_kept(choice)) for choice in options], dtype=np.float64)
            for column, options in enumerate(self.choices)
        )
        dense = cost_of(self.layout, Architecture.dense(self.layout))
        limits = np.array([budget.limit(dense) for budget in self.budgets], dtype=np.float64)
        positions = tuple({_kept(choice): index for index, choice in enumerate(options)} for options in self.choices)
        kept = [_kept(choice) for options in self.choices for choice in options]
        sizes = [len(options) for options in self.choices]
        object.__setattr__(self, "_tables", tables)
        object.__setattr__(self, "_flat", np.concatenate(tables).T.copy())
        object.__setattr__(self, "_flat_genes", np.array(kept, dtype=np.float64))
        object.__setattr__(self, "_starts", np.cumsum([0, *sizes[:-1]], dtype=np.intp))
        object.__setattr__(self, "_positions", positions)
        object.__setattr__(self, "limits", limits)
        self._check_budgets()

    @property
    def metrics(self) -> tuple[str, ...]:
        """What costs are told in: the closed forms, and latency where sub-blocks were timed."""
        return METRICS if self.latency is None else (*METRICS, LATENCY)

    def choice_cost(self, column: int, width: int, sparsity: float) -> tuple[int, ...]:
        """Return what a sub-block costs, in the order of `metrics`, whether the space allows it or not."""
        cost = remembered_costs(self.layout)[column % 2](width, sparsity)
        if self.latency is None:
            return cost
        timed = self.latency.of_attention if column % 2 == 0 else self.latency.of_mlp
        return *cost, timed(width)

    @property
    def fixed_cost(self) -> tuple[int, ...]:
        """What every architecture costs, in the order of `metrics`."""
        cost = fixed_cost(self.layout).values()
        return cost if self.latency is None else (*cost, self.latency.fixed)

    def amounts(self, architecture: Architecture) -> dict[str, int]:
        """Return what an architecture costs by metric, whether its widths are choices of the space or not.

        Raises:
            ArchitectureError: it does not fit the layout.
        """
        cost = cost_of(self.layout, architecture).to_dict()
        return cost if self.latency is None else {**cost, LATENCY: self.latency.of(architecture)}

    def _check_budgets(self) -> None:
        dense = self.amounts(Architecture.dense(self.layout))
        cheapest = self.costs(np.zeros((1, self.columns), dtype=np.int16))[0]
        for budget, limit in zip(self.budgets, self.limits, strict=True):
            least = cheapest[self.metrics.index(budget.metric)]
            if least > limit:
                share = least / dense[budget.metric]
                has, allows = (
                    milliseconds(value) if budget.metric == LATENCY else f"{value:,.0f}" for value in (least, limit)
                )
                raise BudgetError(
                    f"A budget must be met by some architecture of the search space, but the smallest has "
                    f"{budget.metric} {has} ({share:.3f} of the dense model) and {budget} allows {allows}; "
                    "raise the budget or allow smaller widths or higher sparsities."
                )
        empty = all(options[0].width == 0 for options in self.choices) and any(self.sizes > 1)
        if self.budgets and empty and not self._keeps_anything():
            told = " and ".join(map(str, self.budgets))
            raise BudgetError(
                f"A budget must leave a model something of its layers, but {told} allows none of any; raise it."
            )

    def _keeps_anything(self) -> bool:
        """Return whether some architecture within the budgets keeps a sub-block."""
        least = self.budget_costs(np.zeros((1, self.columns), dtype=np.int16))[0]
        for unit in self.units:
            tables = [self.column_costs(column) for column in unit]
            more = tables[0][1:] if len(unit) == 1 else sum(table[-1:] for table in tables)
            if (least - sum(table[0] for table in tables) + more <= self.limits).all(axis=1).any():
                return True
        return False

    @property
    def columns(self) -> int:
        """Number of sub-blocks, 2 per layer."""
        return len(self.choices)

    @property
    def sizes(self) -> NDArray[np.int16]:
        """Number of choices of each column."""
        return np.array([len(options) for options in self.choices], dtype=np.int16)

    @property
    def size_log10(self) -> float:
        """Decimal logarithm of the number of architectures, budgets aside."""
        free = self.choices[::2] if self.whole_blocks else self.choices
        return float(sum(math.log10(len(options)) for options in free))

    @property
    def units(self) -> list[list[int]]:
        """The columns that change together."""
        size = 2 if self.whole_blocks else 1
        return [list(range(first, first + size)) for first in range(0, self.columns, size)]

    def costs(self, indices: Indices) -> NDArray[np.float64]:
        """Return the costs (architectures, metrics in the order of `metrics`) of encoded architectures."""
        found = np.empty((len(indices), len(self._flat)), dtype=np.float64)
        for first in range(0, len(indices), _ROWS):
            at = indices[first : first + _ROWS] + self._starts
            # Costs are whole numbers, so the order of a sum does not matter.
            for metric, (own, fixed) in enumerate(zip(self._flat, self.fixed_cost, strict=True)):
                found[first : first + _ROWS, metric] = np.take(own, at).sum(axis=1) + fixed
        return found

    def column_costs(self, column: int) -> NDArray[np.float64]:
        """Return the costs (choices, budgets) of one column, in the budgets' metrics only."""
        return self._tables[column][:, self._budgeted]

    @property
    def fixed_budget_costs(self) -> NDArray[np.float64]:
        """What every architecture costs (budgets,), in the budgets' metrics only."""
        return np.array(self.fixed_cost, dtype=np.float64)[self._budgeted]

    @property
    def _budgeted(self) -> list[int]:
        return [self.metrics.index(budget.metric) for budget in self.budgets]

    def budget_costs(self, indices: Indices) -> NDArray[np.float64]:
        """Return the costs (architectures, budgets) in the budgets' metrics only."""
        return self.costs(indices)[:, self._budgeted]

    def within(self, indices: Indices) -> NDArray[np.bool_]:
        """Return which architectures meet every budget, and in a space of whole blocks have no half of one."""
        inside = np.asarray((self.budget_costs(indices) <= self.limits).all(axis=1))
        return inside & (indices[:, 0::2] == indices[:, 1::2]).all(axis=1) if self.whole_blocks else inside

    def genes(self, indices: Indices) -> NDArray[np.float64]:
        """Return the genes (architectures, layers, genes in the order of `GENES`) of encoded architectures."""
        genes = np.empty((len(indices), self.columns, 2), dtype=np.float64)
        for first in range(0, len(indices), _ROWS):
            np.take(
                self._flat_genes,
                indices[first : first + _ROWS] + self._starts,
                axis=0,
                out=genes[first : first + _ROWS],
            )
        return genes.reshape(len(indices), self.layout.layers, len(GENES))

    def position(self, column: int, width: int, sparsity: float) -> int:
        """Return the index of a choice of a column, -1 where it has none of that."""
        return self._positions[column].get((width, sparsity), -1)

    def allows(self, architecture: Architecture) -> bool:
        """Return whether an architecture is in the space and meets every budget."""
        try:
            return bool(self.within(self.encode([architecture]))[0])
        except ArchitectureError:
            return False

    def decode(self, indices: Indices) -> list[Architecture]:
        """Turn encoded architectures into records."""
        return [
            Architecture(
                tuple(
                    self._layer(self.choices[2 * i][row[2 * i]], self.choices[2 * i + 1][row[2 * i + 1]])
                    for i in range(self.layout.layers)
                )
            )
            for row in indices
        ]

    @staticmethod
    def _layer(attention: Choice, mlp: Choice) -> LayerArchitecture:
        return LayerArchitecture(attention.width, mlp.width, attention.sparsity, mlp.sparsity)

    def encode(self, architectures: Iterable[Architecture]) -> Indices:
        """Turn records into index vectors.

        Raises:
            ArchitectureError: a gene has a value that the space does not allow.
        """
        rows = []
        attention, mlp = self._positions[0::2], self._positions[1::2]
        for architecture in architectures:
            architecture.check(self.layout)
            row = []
            for layer, groups, widths in zip(architecture.layers, attention, mlp, strict=True):
                row.append(groups.get((layer.kv_groups, layer.attention_sparsity), -1))
                row.append(widths.get((layer.mlp_width, layer.mlp_sparsity), -1))
            if -1 in row:
                raise ArchitectureError(self._refusal(architecture, row.index(-1)))
            rows.append(row)
        return np.array(rows, dtype=np.int16).reshape(-1, self.columns)

    def _refusal(self, architecture: Architecture, column: int) -> str:
        layer = column // 2
        own = architecture.layers[layer]
        choice = (
            Choice(own.mlp_width, own.mlp_sparsity) if column % 2 else Choice(own.kv_groups, own.attention_sparsity)
        )
        gene = "kv_groups" if column % 2 == 0 else "mlp_width"
        widths = sorted({option.width for option in self.choices[column]})
        nearest = sorted(sorted(widths, key=lambda width: abs(width - choice.width))[:2])
        if choice.width in widths:
            sparsities = sorted({o.sparsity for o in self.choices[column] if o.width == choice.width})
            levels = ", ".join(f"{value:g}" for value in sparsities)
            return (
                f"The sparsity of the {'attention' if column % 2 == 0 else 'MLP'} in layer {layer} must be one of "
                f"{levels}, but is {choice.sparsity:g}; change it or allow more levels."
            )
        return (
            f"{gene} must be one of the search space's values in layer {layer}, but is {choice.width}; "
            f"the nearest are {' and '.join(map(str, nearest))}."
        )


def _kept(choice: Choice) -> tuple[int, float]:
    return choice.width, choice.sparsity
