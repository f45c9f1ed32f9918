"""Exact closed-form cost of an architecture, the budgets on it, and both without a model in memory.

Latency is no closed form: a budget on it knows a table of timings.

Notation as in `space.layout`. `parameters`, `nonzero_parameters` and `flops_per_token` count the decoder layers alone,
as pruning papers do: embeddings, vocabulary projection and final norm cannot be pruned here, and counting them would
make a small model's cut look smaller than it is. `weight_bytes` and `kv_cache_bytes_per_token` are what a machine has
to hold, so the former counts the whole model.
"""

import functools
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Self

from space.architecture import Architecture
from space.errors import BudgetError
from space.latency import LatencyTable
from space.layout import Layout

METRICS = (
    "parameters",
    "nonzero_parameters",
    "weight_bytes",
    "kv_cache_bytes_per_token",
    "flops_per_token",
)
_values = attrgetter(*METRICS)
LATENCY = "latency"  # nanoseconds, by a table of timings
BUDGET_METRICS = (*METRICS, LATENCY)
# FLOPs of attention grow with the context; 512 is the sequence length that measurements use by default.
FLOPS_CONTEXT = 512
# Bytes per weight and per cached value: models are stored and run in bf16.
BYTES_PER_VALUE = 2
_SUFFIXES = {"k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
_TIMES = {"ns": 1.0, "us": 1e3, "ms": 1e6, "s": 1e9}


@dataclass(frozen=True, slots=True)
class Cost:
    """What an architecture costs."""

    parameters: int  # decoder layers
    nonzero_parameters: int  # decoder layers, positions that a mask leaves
    weight_bytes: int  # whole model
    kv_cache_bytes_per_token: int
    flops_per_token: int  # decoder layers, one token that attends to FLOPS_CONTEXT tokens

    def to_dict(self) -> dict[str, int]:
        """Return plain values for JSON."""
        return dict(zip(METRICS, self.values(), strict=True))

    def values(self) -> tuple[int, ...]:
        """Return the five numbers in the order of `METRICS`."""
        return _values(self)


def zeros_per_row(in_features: int, sparsity: float) -> int:
    """Return how many weights of a row of `in_features` a sparsity sets to zero (rounded down)."""
    return int(in_features * sparsity + 1e-9)


def attention_cost(layout: Layout, kv_groups: int, sparsity: float = 0.0) -> Cost:
    """Return the cost of one layer's attention with its norm, for kept KV groups and a sparsity of its rows."""
    if kv_groups == 0:
        return Cost(0, 0, 0, 0, 0)
    hidden, kv_size = layout.hidden_size, kv_groups * layout.head_dim
    query_size = kv_size * layout.heads_per_group
    matrices = [(hidden, query_size), (hidden, kv_size), (hidden, kv_size), (query_size, hidden)]
    output_bias = layout.output_bias or layout.adds_attention_bias(kv_groups)
    vectors = layout.qkv_bias * (query_size + 2 * kv_size) + output_bias * hidden
    vectors += layout.attention_norms * layout.norm_vectors * hidden + layout.head_norms * layout.head_dim
    return _sub_block(matrices, vectors, sparsity, 2 * kv_size, 4 * FLOPS_CONTEXT * query_size)


def mlp_cost(layout: Layout, mlp_width: int, sparsity: float = 0.0) -> Cost:
    """Return the cost of one layer's MLP with its norm, for kept channels and a sparsity of its rows."""
    if mlp_width == 0:
        return Cost(0, 0, 0, 0, 0)
    hidden, ups = layout.hidden_size, 2 if layout.gated_mlp else 1
    matrices = [(hidden, mlp_width)] * ups + [(mlp_width, hidden)]
    down_bias = layout.mlp_bias or layout.adds_mlp_bias(mlp_width)
    vectors = layout.mlp_bias * ups * mlp_width + down_bias * hidden
    vectors += layout.mlp_norms * layout.norm_vectors * hidden
    return _sub_block(matrices, vectors, sparsity, 0, 0)


def _sub_block(
    matrices: list[tuple[int, int]], vectors: int, sparsity: float, kv_values: int, attention_flops: int
) -> Cost:
    weights = sum(rows * columns for columns, rows in matrices)
    zeros = sum(rows * zeros_per_row(columns, sparsity) for columns, rows in matrices)
    parameters = weights + vectors
    return Cost(
        parameters=parameters,
        nonzero_parameters=parameters - zeros,
        weight_bytes=BYTES_PER_VALUE * parameters,
        kv_cache_bytes_per_token=BYTES_PER_VALUE * kv_values,
        flops_per_token=2 * weights + attention_flops,
    )


def fixed_cost(layout: Layout) -> Cost:
    """Return the cost of what is never pruned: token and position embeddings, vocabulary projection, final norm."""
    tables = 1 if layout.tied_embeddings else 2
    rows = tables * layout.vocabulary + layout.positions + layout.norm_vectors
    parameters = rows * layout.hidden_size
    return Cost(0, 0, BYTES_PER_VALUE * parameters, 0, 0)


_Rule = Callable[[int, float], tuple[int, ...]]  # (width, sparsity) -> a sub-block's cost, as `Cost.values`


@functools.lru_cache(maxsize=16)
def remembered_costs(layout: Layout) -> tuple[_Rule, _Rule]:
    """Return the costs of a layout's attention and of its MLP, each computed once.

    All layers share them, and whoever asks for many architectures asks for few choices.
    """

    def remembered(rule: Callable[[Layout, int, float], Cost]) -> _Rule:
        return functools.lru_cache(1 << 14, typed=True)(lambda width, sparsity: rule(layout, width, sparsity).values())

    return remembered(attention_cost), remembered(mlp_cost)


def cost_of(layout: Layout, architecture: Architecture) -> Cost:
    """Return the exact cost of an architecture.

    Raises:
        ArchitectureError: the architecture does not fit the layout.
    """
    architecture.check(layout)
    attention, mlp = remembered_costs(layout)
    parts = [attention(layer.kv_groups, layer.attention_sparsity) for layer in architecture.layers]
    parts += [mlp(layer.mlp_width, layer.mlp_sparsity) for layer in architecture.layers]
    return Cost(*map(sum, zip(fixed_cost(layout).values(), *parts, strict=True)))


@dataclass(frozen=True, slots=True)
class Budget:
    """An upper limit on one metric: a fraction of the dense model's (at most 1) or an absolute amount.

    Args:
        metric: one of `BUDGET_METRICS`.
        amount: a fraction up to 1, else the metric's unit; latency is in nanoseconds.
        table: what latency is told by; None for other metrics, and until sub-blocks were timed.
    """

    metric: str
    amount: float
    table: LatencyTable | None = field(default=None, repr=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a budget such as `parameters=0.8`, `weight_bytes=200M`, `flops_per_token=75%` or `latency=150ms`.

        Raises:
            BudgetError: the metric is unknown or the amount is not a positive number.
        """
        metric, _, amount = text.replace(" ", "").partition("=")
        if metric not in BUDGET_METRICS:
            raise BudgetError(
                f"A budget must be METRIC=AMOUNT with a metric of {', '.join(BUDGET_METRICS)}, but is {text!r}; "
                "write for example parameters=0.8."
            )
        value, highest = _number(amount, _TIMES if metric == LATENCY else _SUFFIXES)
        if not 0 < value <= highest:
            raise BudgetError(_REFUSALS[metric == LATENCY].format(text.partition("=")[2]))
        return cls(metric, value)

    def timed_by(self, table: LatencyTable | None) -> Self:
        """Return the budget with a table to tell latency by, where it is one on latency.

        Raises:
            BudgetError: it is, but there is no table.
        """
        if self.metric != LATENCY:
            return self
        if table is None and self.table is None:
            raise BudgetError(
                f"A budget on latency must have a table of timings, but {self} has none here; time the sub-blocks "
                "with `secateur latency RUN`, or begin a run with this budget, which does."
            )
        return replace(self, table=table or self.table)

    def amount_of(self, layout: Layout, architecture: Architecture) -> float:
        """Return what an architecture costs in the budget's metric.

        Raises:
            ArchitectureError: the architecture does not fit the layout.
            BudgetError: the metric is latency, and there is no table.
        """
        if self.metric != LATENCY:
            return float(getattr(cost_of(layout, architecture), self.metric))
        architecture.check(layout)
        return float(self._known_table.of(architecture))

    def limit(self, dense: Cost) -> float:
        """Return the absolute limit, given the dense model's cost."""
        return self.limit_from(
            float(self._known_table.dense if self.metric == LATENCY else getattr(dense, self.metric))
        )

    def limit_from(self, dense: float) -> float:
        """Return the absolute limit, given what the dense model costs in this metric."""
        # Costs are whole numbers, and a share of one may come out a hair below another: 0.7 of 23,040 is not 16,128.
        return float(math.floor(self.amount * dense * (1 + _ROUNDING))) if self.amount <= 1 else self.amount

    @property
    def _known_table(self) -> LatencyTable:
        table = self.timed_by(None).table
        assert table is not None
        return table

    def __str__(self) -> str:
        if self.metric == LATENCY and self.amount > 1:
            return f"{self.metric}={self.amount / _TIMES['ms']:g}ms"
        return f"{self.metric}={self.amount:g}"


_ROUNDING = 1e-12  # relative, of products
_REFUSALS = (
    "A budget's amount must be a positive number, a percentage up to 100 or a number with K, M, G or T, but is {!r}; "
    "write for example parameters=0.8 (a fraction) or parameters=85M.",
    "A budget on latency must be a fraction up to 1, a percentage up to 100 or a time with us, ms or s, but is {!r}; "
    "write for example latency=0.8 (a fraction) or latency=150ms.",
)


def _number(amount: str, units: Mapping[str, float]) -> tuple[float, float]:
    """Return an amount, not a number where it is none, and the highest that it may be."""
    highest = 1.0 if units is _TIMES else sys.float_info.max
    scale = 1.0
    if amount.endswith("%"):
        amount, scale, highest = amount[:-1], 0.01, 1.0
    elif unit := next((unit for unit in units if amount.lower().endswith(unit)), None):
        amount, scale, highest = amount[: -len(unit)], units[unit], sys.float_info.max
    try:
        return float(amount) * scale, highest
    except ValueError:
        return math.nan, highest
