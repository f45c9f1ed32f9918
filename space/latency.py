"""What sub-blocks were timed to take on a machine: a table whose sums are the latency of any architecture.

    latency = fixed + sum over layers of attention[KV groups] + mlp[width]

All are whole nanoseconds, so that sums are exact in whatever order they are taken. `fixed` is what stays where every
sub-block is removed (embeddings, final norm, the head at the last position, and what is left of a removed sub-block),
so a removed sub-block costs nothing. Masks are dense: sparsity changes no latency. `evaluator.latency` measures.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

import numpy as np

from space.architecture import Architecture
from space.errors import MeasurementError

Phase = Literal["prefill", "decode"]
Timings = tuple[tuple[int, int], ...]  # (width, nanoseconds), ascending, from removed to dense


@dataclass(frozen=True, slots=True)
class Conditions:
    """What was timed, and on what."""

    phase: Phase  # prefill: all tokens at once; decode: one more token of each sequence, the others in the KV cache
    batch: int  # sequences
    sequence_length: int  # tokens
    device: str
    processor: str
    threads: int
    dtype: str
    torch: str
    transformers: str

    def __str__(self) -> str:
        tokens = "a token after" if self.phase == "decode" else "a prefill of"
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        where = f"{threads} of {self.processor}" if self.device == "cpu" else self.processor
        return f"{tokens} {self.batch} x {self.sequence_length} tokens in {self.dtype} on {where}"


@dataclass(frozen=True, slots=True)
class WholeModel:
    """A whole model that was timed, beside what the table says of it."""

    fingerprint: str
    table: int  # nanoseconds
    measured: int  # nanoseconds, median
    standard_error: int  # nanoseconds

    @property
    def error(self) -> float:
        """What the table errs by, as a share of what was measured."""
        return self.table / self.measured - 1


@dataclass(frozen=True, slots=True)
class TableCheck:
    """How the table's sums agree with whole models that it was not made from."""

    models: tuple[WholeModel, ...]
    mean_error: float  # of the errors' sizes, shares of what was measured
    largest_error: float
    kendall_tau: float
    spearman: float

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a check from plain values."""
        models = tuple(WholeModel(**model) for model in values["models"])
        return cls(**{**values, "models": models})


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Timings of sub-blocks, in whole nanoseconds.

    Args:
        conditions: what was timed, and on what.
        layers: of the model; they share shapes, so one table serves all.
        fixed: what no architecture is without.
        attention: by KV groups, with norm and residual.
        mlp: by width, with norm and residual; widths between are interpolated.
        layer_spread: how far a layer's timings lie from the table's, as a share, in the layer that differs most.
        seconds: that timing took.
        check: against whole models; None where none were timed.
    """

    conditions: Conditions
    layers: int
    fixed: int
    attention: Timings
    mlp: Timings
    layer_spread: float
    seconds: float
    check: TableCheck | None = None

    def __post_init__(self) -> None:
        for timings in (self.attention, self.mlp):
            widths, values = zip(*timings, strict=True)
            rising = all(np.diff(widths) > 0) and all(np.diff(values) >= 0)
            if len(timings) < 2 or timings[0] != (0, 0) or not rising or values[-1] <= 0:
                raise MeasurementError(
                    "Timings must rise with the width from (0, 0), a removed sub-block, on, but are "
                    f"{list(timings)}; time the sub-blocks again."
                )

    def of_attention(self, kv_groups: int) -> int:
        """Return what the attention of one layer takes, in nanoseconds."""
        return _interpolated(self.attention)(kv_groups)

    def of_mlp(self, mlp_width: int) -> int:
        """Return what the MLP of one layer takes, in nanoseconds."""
        return _interpolated(self.mlp)(mlp_width)

    def of(self, architecture: Architecture) -> int:
        """Return what an architecture takes, in nanoseconds."""
        attention, mlp = _interpolated(self.attention), _interpolated(self.mlp)
        return self.fixed + sum([attention(layer.kv_groups) + mlp(layer.mlp_width) for layer in architecture.layers])

    @property
    def dense(self) -> int:
        """What the dense model takes, in nanoseconds."""
        return self.fixed + self.layers * (self.attention[-1][1] + self.mlp[-1][1])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a table from `to_dict`.

        Raises:
            MeasurementError: a field is missing, unknown or damaged.
        """
        names = {field.name for field in fields(cls)}
        try:
            if set(values) != names:
                raise ValueError(f"differing fields {', '.join(sorted(names ^ set(values)))}")
            check = None if values["check"] is None else TableCheck.from_dict(values["check"])
            timings = {name: _read(values[name]) for name in ("attention", "mlp")}
            return cls(**{**values, **timings, "conditions": Conditions(**values["conditions"]), "check": check})
        except (TypeError, ValueError, KeyError) as error:
            if isinstance(error, MeasurementError):
                raise
            raise MeasurementError(
                f"A table of timings must have the fields of this version, but has not ({error}); "
                "time the sub-blocks again with this version."
            ) from None


def milliseconds(nanoseconds: float) -> str:
    """Return a time for people, as `238 ms`."""
    return f"{nanoseconds / 1e6:,.3g} ms" if nanoseconds < 1e9 else f"{nanoseconds / 1e6:,.0f} ms"


@functools.lru_cache(maxsize=16)
def _interpolated(timings: Timings) -> Callable[[int], int]:
    """Return the timing of a width, computed once for each."""
    widths, values = zip(*timings, strict=True)
    return functools.lru_cache(1 << 14)(lambda width: round(float(np.interp(width, widths, values))))


def _read(timings: Sequence[Sequence[int]]) -> Timings:
    return tuple((int(width), int(value)) for width, value in timings)
