"""Straight lines between what was told, many functions at once: `np.interp` without a call for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from predictor.dataset import FloatArray

Knots = Sequence[tuple[float, float]]  # (place, value)


@dataclass(frozen=True)
class Lines:
    """Functions of one number, several values each, by straight lines between knots.

    Args:
        places: (functions, knots), ascending; infinity where a function has no more, as at least its last one.
        values: (functions, knots, values), not a number outside of what was told of a value.
    """

    places: FloatArray
    values: FloatArray

    @classmethod
    def through(cls, told: Sequence[Sequence[Knots]]) -> Self:
        """Draw lines through what was told.

        Args:
            told: by function, the knots of each of its values, in any order.
        """
        count = len(told[0]) if told else 0
        grids = [sorted({place for knots in own for place, _ in knots}) for own in told]
        most = max(map(len, grids), default=0) + 1
        places, values = np.full((len(told), most), np.inf), np.zeros((len(told), most, count))
        for function, (grid, own) in enumerate(zip(grids, told, strict=True)):
            places[function, : len(grid)] = grid
            for value, knots in enumerate(own):
                values[function, : len(grid), value] = line(grid, knots)
        return cls(places, values)

    def at(self, functions: NDArray[np.intp], asked: FloatArray) -> FloatArray:
        """Return the values (n, values) of functions (n,) at places (n,); not a number outside of what was told."""
        places = self.places[functions]
        before = (places <= asked[:, None]).sum(axis=1) - 1  # the knot at or before each
        rows, left = np.arange(len(asked)), np.maximum(before, 0)
        start, end = places[rows, left], places[rows, np.minimum(left + 1, places.shape[1] - 1)]
        low, high = self.values[functions, left], self.values[functions, np.minimum(left + 1, places.shape[1] - 1)]
        with np.errstate(invalid="ignore"):  # beyond the last knot, which is answered below
            found = (high - low) / (end - start)[:, None] * (asked - start)[:, None] + low
        exact = asked == start
        found[exact] = low[exact]
        found[(before < 0) | (np.isinf(end) & ~exact)] = np.nan
        return np.asarray(found)


def line(asked: Sequence[float], knots: Knots) -> FloatArray:
    """Return values (n,) by straight lines between knots, and not a number outside of them."""
    if not knots:
        return np.full(len(asked), np.nan)
    told, values = zip(*sorted(knots), strict=True)
    return np.asarray(np.interp(asked, told, values, left=np.nan, right=np.nan))
