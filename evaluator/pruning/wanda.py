"""Wanda: weights scored by magnitude times input norm, and its sums over channels and KV groups.

| symbol | meaning |
| --- | --- |
| W: (out_features, in_features) | a projection's weights |
| n: (in_features,) | L2 norm of each input feature over the calibration tokens |
| abs(W[i, j]) * n[j] | score of a weight, compared within its output row |

Source: arXiv 2306.11695, equation 1. The channel form scores what a removed input feature takes from the outputs of
the down projection (MLP channels) or the output projection (heads of a KV group).
"""

import torch
from torch import Tensor

from space.cost import zeros_per_row


def weight_scores(weight: Tensor, norms: Tensor) -> Tensor:
    """Score every weight.

    Args:
        weight: (out_features, in_features).
        norms: (in_features,).

    Returns:
        (out_features, in_features), float32.
    """
    return weight.float().abs() * norms


def row_mask(scores: Tensor, sparsity: float) -> Tensor:
    """Mark the weights that stay: in each row all but the share `sparsity` with the lowest scores.

    Args:
        scores: (out_features, in_features).
        sparsity: share of zeros per row; the count is rounded down, as `space.cost.zeros_per_row` counts it.

    Returns:
        (out_features, in_features), bool.
    """
    zeros = zeros_per_row(scores.shape[1], sparsity)
    mask = torch.ones_like(scores, dtype=torch.bool)
    if zeros:
        lowest = scores.topk(zeros, dim=1, largest=False, sorted=False).indices
        mask.scatter_(1, lowest, False)
    return mask


def channel_scores(weight: Tensor, norms: Tensor) -> Tensor:
    """Score every input feature by the L2 norm of its weights times its input norm.

    Args:
        weight: (out_features, in_features) of the projection that reads the channels.
        norms: (in_features,).

    Returns:
        (in_features,), float32.
    """
    scores: Tensor = weight.float().norm(dim=0) * norms
    return scores


def group_scores(weight: Tensor, norms: Tensor, groups: int) -> Tensor:
    """Score every KV group by the root of the summed squared scores of its heads' features.

    Args:
        weight: (hidden, query_size) of the output projection; query heads of one group are adjacent.
        norms: (query_size,).
        groups: number of KV groups.

    Returns:
        (groups,), float32.
    """
    scores: Tensor = channel_scores(weight, norms).view(groups, -1).norm(dim=1)
    return scores


def kept(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` highest scores in ascending order; ties go to the lower index."""
    return scores.sort(descending=True, stable=True).indices[:count].sort().values
