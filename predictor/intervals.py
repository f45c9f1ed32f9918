"""Intervals that cover what they say, near the optimum as well as far from it.

A Gaussian process says how the error grows with the distance to what was measured, but not how large it is; and it is
larger, by the same distance, among architectures of much damage than among those of little. So what held-out
measurements missed by, in standard deviations, is looked up among those that were predicted about the same.

Source: localized conformal prediction (arXiv 2106.08460), with cross-validation in place of a split (arXiv 1905.02928).
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from predictor.dataset import FloatArray
from predictor.targets import Target

_WIDTH = 0.5  # of the kernel that says what is about the same, in standard deviations of the predictions
_GRID = 65  # places at which factors are kept; between them they are interpolated


@dataclass(frozen=True)
class Prediction:
    """Predicted values with a 90 % interval, one per architecture, in the unit of the predictor's target."""

    value: FloatArray  # (architectures,)
    lower: FloatArray  # (architectures,)
    upper: FloatArray  # (architectures,)

    def __len__(self) -> int:
        return len(self.value)


@dataclass(frozen=True)
class Intervals:
    """By what a standard deviation is multiplied for half of an interval, by the predicted value.

    Args:
        places: (places,) predicted values, ascending.
        factors: (places,).
    """

    places: FloatArray
    factors: FloatArray

    @classmethod
    def calibrate(cls, predicted: FloatArray, scores: FloatArray, coverage: float, repeats: int = 1) -> Self:
        """Read factors from what was held out.

        Args:
            predicted: (scores,) held-out predictions.
            scores: (scores,) their errors by their standard deviations, at least 0.
            coverage: share of new values that an interval is to contain.
            repeats: how often each pair is among the scores; one pair is one piece of evidence.
        """
        order = np.argsort(scores)
        ordered, spread = scores[order], max(float(predicted.std()), 1e-12)
        places = np.linspace(predicted.min(), predicted.max(), _GRID)
        away = (places[:, None] - predicted[None, order]) / (_WIDTH * spread)
        weights = np.exp(-0.5 * away**2)  # (places, scores)
        evidence = weights.sum(axis=1) ** 2 / (weights**2).sum(axis=1) / repeats
        # As many as are there, and the one to come.
        level = np.minimum(coverage * (evidence + 1) / evidence, 1.0)
        share = np.cumsum(weights, axis=1) / weights.sum(axis=1, keepdims=True)
        row = np.minimum((share < level[:, None] - 1e-9).sum(axis=1), len(ordered) - 1)
        return cls(places, ordered[row])

    def factor(self, predicted: FloatArray) -> FloatArray:
        """Return the factor (n,) for predicted values (n,)."""
        return np.asarray(np.interp(predicted, self.places, self.factors))


def interval_around(target: Target, learned: FloatArray, half: FloatArray) -> Prediction:
    """Return predictions from what was learned (n,) and half of their intervals (n,), both as `Target.learned`."""
    found = [target.values(target.damage_of(each)) for each in (learned, learned - half, learned + half)]
    return Prediction(found[0], np.minimum(found[1], found[2]), np.maximum(found[1], found[2]))
