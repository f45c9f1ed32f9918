"""A setting that calibration sets are compared under: a criterion at a level."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, cast, get_args

from evaluator import DenseModel, Evaluator, allocation
from space import (
    Architecture,
    Budget,
    Criterion,
    LayerArchitecture,
    SettingError,
    Weights,
    Widths,
    cost_of,
    uniform_widths,
    whole_ends,
)


@dataclass(frozen=True, slots=True)
class Setting:
    """A criterion at a level.

    Args:
        criterion: what to prune by.
        level: `0.6`, a share of zeros; `2:4`, a pattern; or `parameters=0.8`, widths within a budget, ends whole.
        owl: whether layers have sparsities by their outliers instead of one for all.
    """

    criterion: str
    level: str
    owl: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read CRITERION:LEVEL, as in `wanda:0.6`, `sparsegpt:2:4`, `owl-wanda:0.7` or `wanda:parameters=0.8`.

        Raises:
            SettingError: it cannot be read.
        """
        name, colon, level = text.partition(":")
        owl, criterion = name.startswith("owl-"), name.removeprefix("owl-")
        found = cls(criterion, level, owl)
        if not colon or not level:
            raise SettingError(f"A setting must be CRITERION:LEVEL, but is {text!r}; write for example wanda:0.6.")
        found.pruning()
        if owl and not found._is_share:
            raise SettingError(f"OWL allots shares of zeros, but {text!r} has none; write for example owl-wanda:0.6.")
        return found

    def __str__(self) -> str:
        return f"{'owl-' if self.owl else ''}{self.criterion}:{self.level}"

    @property
    def _is_share(self) -> bool:
        return ":" not in self.level and "=" not in self.level

    def pruning(self) -> Criterion:
        """Return the criterion to prune by.

        Raises:
            SettingError: it is unknown, or takes gradients, or the level cannot be read.
        """
        if "=" in self.level:
            Budget.parse(self.level)
            known = [name for name in get_args(Widths) if name not in ("taylor", "fisher")]
            if self.criterion not in known:
                raise self._unknown(known)
            return Criterion(widths=cast(Widths, self.criterion))
        if self.criterion not in get_args(Weights):
            raise self._unknown(get_args(Weights))
        if ":" in self.level:
            return Criterion(weights=cast(Weights, self.criterion), pattern=self.level)
        try:
            share = float(self.level)
        except ValueError:
            share = 0.0
        if not 0 < share < 1:
            raise SettingError(
                f"A level must be a share of zeros, N:M or a budget, but is {self.level!r}; write for example 0.6."
            )
        return Criterion(weights=cast(Weights, self.criterion))

    def _unknown(self, known: Sequence[str]) -> SettingError:
        return SettingError(
            f"A criterion at {self.level} must be one of {', '.join(known)}, but is {self.criterion!r}; choose one."
        )

    def check(self, dense: DenseModel) -> None:
        """Check that a model can be pruned so.

        Raises:
            BudgetError: the budget cannot be met.
        """
        if "=" in self.level:
            layout = dense.layout.pruned_by(self.pruning())
            uniform_widths(layout, [Budget.parse(self.level)], whole_ends(layout))

    def architecture(self, judge: Evaluator) -> Architecture:
        """Return what to measure; under OWL it depends on the calibration set."""
        layout, criterion = judge.surgeon.layout, self.pruning()
        if "=" in self.level:
            return uniform_widths(layout, [Budget.parse(self.level)], whole_ends(layout))
        share = criterion.sparsity or float(self.level)
        even = Architecture((LayerArchitecture(layout.kv_groups, layout.mlp_width, share, share),) * layout.layers)
        if not self.owl:
            return even
        return allocation.owl_sparsity(
            judge.surgeon, [Budget("nonzero_parameters", cost_of(layout, even).nonzero_parameters)]
        )
