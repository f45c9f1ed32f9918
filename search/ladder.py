"""The range of costs that a search with several objectives covers, as a ladder of budgets.

A search against costs looks for the lowest KL at every cost from the budgets down to a floor. It does so on rungs:
search spaces like the full one, with more limits. Where nothing is searched against, the full space is the one rung,
and everything that goes by rungs is a search of that space.

Costs are shares of the dense model's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from space import Architecture, Budget, SearchSpace, SettingError, sample

_BETWEEN = 4  # rungs besides the corners of the range
_MARKS = 128  # budgets at which a proposal is compared with what is known
_BEYOND = 1 / (1 + _BETWEEN)  # by which the reference lies beyond the range, in shares of it
_DRAWN = 256  # samples that tell how much of a cost the budgets allow


@dataclass(frozen=True)
class Ladder:
    """The budgets from which and down to which a space is searched, in some of its costs.

    Args:
        space: the search space with its budgets, which hold on every rung.
        against: metrics, at most three.
        down_to: share of the dense model's cost in each of them; None takes the middle between the smallest
            architecture and the dense one.

    Raises:
        SettingError: a metric is the same for all architectures, or no architecture is as cheap as `down_to` or all
            are that the budgets allow.

    Source: for how far the reference lies beyond the range, Ishibuchi et al., How to specify a reference point in
    hypervolume calculation for fair performance comparison (2018).
    """

    space: SearchSpace
    against: tuple[str, ...] = ()
    down_to: float | None = None
    top: NDArray[np.float64] = field(init=False, repr=False, compare=False)  # (metrics,)
    floor: NDArray[np.float64] = field(init=False, repr=False, compare=False)  # (metrics,)
    _priced: SearchSpace = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        dense = tuple(Budget(metric, 1.0) for metric in self.against)
        object.__setattr__(self, "_priced", replace(self.space, budgets=dense))
        drawn = self._shares(sample(self.space, _DRAWN, np.random.default_rng(0))) if self.against else np.zeros((1, 0))
        object.__setattr__(self, "top", drawn.max(axis=0))
        least = self._shares(np.zeros((1, self.space.columns), dtype=np.int16))[0]
        floor = (1 + least) / 2 if self.down_to is None else np.full(len(self.against), self.down_to)
        object.__setattr__(self, "floor", floor)
        for metric, smallest, lowest, highest in zip(self.against, least, floor, self.top, strict=True):
            if smallest == 1:
                raise SettingError(
                    f"search.against must be costs that the space can change, but every architecture has the same "
                    f"{metric}; leave it out."
                )
            if not smallest <= lowest < highest:
                raise SettingError(
                    f"search.down_to must lie between the smallest {metric} of the space and the largest that the "
                    f"budgets allow, {smallest:.3f} and {highest:.3f} of the dense model's, but is {lowest:.3f}; give "
                    "another."
                )

    def shares(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        """Return the costs (architectures, metrics) of architectures of the space."""
        return self._shares(self.space.encode(architectures))

    def _shares(self, rows: NDArray[np.int16]) -> NDArray[np.float64]:
        shares: NDArray[np.float64] = self._priced.budget_costs(rows) / self._priced.limits
        return shares

    @property
    def reference(self) -> NDArray[np.float64]:
        """The costs (metrics,) of the hypervolume's reference point: a little more than the budgets allow."""
        reference: NDArray[np.float64] = self.top + _BEYOND * (self.top - self.floor)
        return reference

    @property
    def marks(self) -> NDArray[np.float64]:
        """Budgets (marks, metrics) spread evenly over the range up to the reference; one without metrics."""
        if not self.against:
            return np.zeros((1, 0))
        from scipy.stats import qmc  # late: it takes a second, and settings are read without

        drawn = qmc.Halton(len(self.against), scramble=False).random(_MARKS)
        marks: NDArray[np.float64] = self.floor + (self.reference - self.floor) * drawn
        return marks

    def corners(self, space: SearchSpace | None = None) -> list[SearchSpace]:
        """Return the rungs at the ends of the range, every metric free or at its floor; the first limits none.

        Args:
            space: the full space or a part of it.
        """
        ends = product(*((np.inf, lowest) for lowest in self.floor))
        return [self.rung(np.array(each), space) for each in ends]

    def rungs(self, space: SearchSpace | None = None, rng: np.random.Generator | None = None) -> list[SearchSpace]:
        """Return the corners, and rungs between them that are spread over the range.

        Args:
            space: the full space or a part of it.
            rng: where between the corners they lie; None takes the same ones each time.
        """
        if not self.against:
            return [space or self.space]
        first, *others = self.corners(space)
        drawn = np.random.default_rng(0) if rng is None else rng
        offsets = drawn.random((_BETWEEN, len(self.against))) if rng is not None else 0.5
        strata = np.stack([drawn.permutation(_BETWEEN) for _ in self.against], axis=1)
        between = self.top - (self.top - self.floor) * (strata + offsets) / _BETWEEN
        return [first, *(self.rung(each, space) for each in between), *others]

    def rung(self, shares: NDArray[np.float64], space: SearchSpace | None = None) -> SearchSpace:
        """Return a space with the costs limited as well.

        Args:
            shares: (metrics,) of the dense model's; infinite ones limit nothing.
            space: the full space or a part of it.
        """
        space = space or self.space
        limits = zip(self.against, shares.tolist(), strict=True)
        extra = tuple(Budget(metric, share) for metric, share in limits if share < np.inf)
        return replace(space, budgets=(*space.budgets, *extra))
