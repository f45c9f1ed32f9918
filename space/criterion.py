"""A criterion in words: by what channels and KV groups are chosen, weights made zero, and what stays corrected.

The names' meanings and sources are a table in `evaluator.pruning.criteria`, which holds the mathematics.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from space.errors import SettingError

Widths = Literal["magnitude", "wanda", "activation", "flap", "taylor", "fisher", "obs"]
Weights = Literal["magnitude", "wanda", "sparsegpt", "dsnot", "dsnot-sparsegpt"]
Update = Literal["none", "bias", "least_squares"]
_DECIMALS = 4  # of an architecture's sparsities


@dataclass(frozen=True, slots=True)
class Criterion:
    """What to prune by; its text form is part of every measurement's protocol.

    Args:
        widths: what a channel or KV group is worth.
        weights: what a weight is worth, where weights are made zero.
        update: what is done for the channels and heads that went.
        pattern: `N:M`, to keep N of every M neighbouring weights of a row.

    Raises:
        SettingError: a name is unknown or a pattern impossible.
    """

    widths: Widths = "wanda"
    weights: Weights = "wanda"
    update: Update = "least_squares"
    pattern: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("widths", Widths), ("weights", Weights), ("update", Update)):
            if getattr(self, name) not in get_args(allowed):
                raise SettingError(
                    f"criterion.{name} must be one of {', '.join(get_args(allowed))}, but is "
                    f"{getattr(self, name)!r}; choose one."
                )
        if self.pattern is not None:
            self._parse()

    def __str__(self) -> str:
        weights = self.weights if self.pattern is None else f"{self.weights} {self.pattern}"
        return f"widths {self.widths} + {self.update}; weights {weights}"

    @property
    def group(self) -> tuple[int, int] | None:
        """N and M of the pattern."""
        return None if self.pattern is None else self._parse()

    @property
    def sparsity(self) -> float | None:
        """Share of zeros of the pattern."""
        return None if self.group is None else 1 - self.group[0] / self.group[1]

    def _parse(self) -> tuple[int, int]:
        kept, _, group = str(self.pattern).partition(":")
        if not (kept.isdigit() and group.isdigit() and 0 < int(kept) < int(group)):
            raise SettingError(
                f"criterion.pattern must be N:M with 0 < N < M, but is {self.pattern!r}; write for example 2:4."
            )
        share = int(kept) / int(group)
        if abs(share - round(share, _DECIMALS)) > 1e-9:
            raise SettingError(
                f"criterion.pattern must keep a share of at most {_DECIMALS} decimals, as architectures say it, but "
                f"{self.pattern} keeps {share}; write for example 2:4."
            )
        return int(kept), int(group)
