"""Taylor: what the loss changes when a structure goes, to first order in its weights.

| symbol | meaning |
| --- | --- |
| w, g | a weight and the gradient of the mean loss over the calibration set with respect to it |
| sum of abs(g w) over a structure's weights | first-order score, LLM-Pruner's grouped form |
| sum of (g w) ** 2 over the same | Fisher score: the second order with the empirical Fisher's diagonal |

A structure's weights are all that leave with it: rows of the gate and up projections and columns of the down
projection for an MLP channel, rows of query, key and value and columns of the output projection for a KV group.

Source: LLM-Pruner, arXiv 2305.11627, equations 3 to 5; Molchanov et al., arXiv 1906.10771.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def first_order(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return abs(g w) of every weight, float32."""
    return (weight.float() * gradient.float()).abs()


def fisher(weight: Tensor, squared_gradient: Tensor) -> Tensor:
    """Return g ** 2 w ** 2 of every weight, float32, for squared gradients averaged over the calibration set."""
    return weight.float().square() * squared_gradient.float()


def structure_scores(readers: Sequence[Tensor], writers: Sequence[Tensor], structures: int) -> Tensor:
    """Add up weight scores over structures.

    Args:
        readers: scores of projections whose columns belong to the structures, (out_features, in_features).
        writers: scores of projections whose rows do, (out_features, in_features).
        structures: how many; each has adjacent columns or rows.

    Returns:
        (structures,), float32.
    """
    parts = [scores.sum(dim=0).view(structures, -1).sum(dim=1) for scores in readers]
    parts += [scores.sum(dim=1).view(structures, -1).sum(dim=1) for scores in writers]
    return torch.stack(parts).sum(dim=0)
