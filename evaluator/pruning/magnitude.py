"""Magnitude: a weight is worth its absolute value, a channel or KV group the L2 norm of all weights that leave with it.

The oldest criterion and the baseline of all others: it knows nothing of the inputs.
"""

from collections.abc import Mapping

from torch import Tensor

from evaluator.pruning.structures import StructureScores, totals
from space import Layout


def weight_scores(weight: Tensor) -> Tensor:
    """Score every weight of (out_features, in_features), float32."""
    return weight.float().abs()


def structure_scores(weights: Mapping[str, Tensor], layout: Layout) -> StructureScores:
    """Score channels and KV groups.

    Args:
        weights: (out_features, in_features) of every projection of a layer, by its path.
        layout: the model's sizes.
    """
    squared = totals({path: weight.float().square() for path, weight in weights.items()}, layout)
    return StructureScores(squared.channels.sqrt(), squared.groups.sqrt())
