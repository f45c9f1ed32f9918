"""Magnitude: a weight is worth its absolute value, a channel or KV group the L2 norm of all weights that leave with it.

The oldest criterion and the baseline of all others: it knows nothing of the inputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def weight_scores(weight: Tensor) -> Tensor:
    """Score every weight of (out_features, in_features), float32."""
    return weight.float().abs()


def structure_scores(readers: Sequence[Tensor], writers: Sequence[Tensor], structures: int) -> Tensor:
    """Score channels or KV groups.

    Args:
        readers: projections whose columns belong to the structures, (out_features, structures * columns of each).
        writers: projections whose rows do, (structures * rows of each, in_features).
        structures: how many.

    Returns:
        (structures,), float32.
    """
    parts = [weight.float().square().sum(dim=0).view(structures, -1).sum(dim=1) for weight in readers]
    parts += [weight.float().square().sum(dim=1).view(structures, -1).sum(dim=1) for weight in writers]
    return torch.stack(parts).sum(dim=0).sqrt()
