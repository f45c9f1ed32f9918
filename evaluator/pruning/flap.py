"""FLAP: a channel is worth how much it fluctuates, since a constant can be had for a bias.

| symbol | meaning |
| --- | --- |
| W: (out_features, in_features) | the projection that reads the channels |
| m, v: (in_features,) | mean and variance of each input feature over the calibration tokens |
| v[j] norm2(W[:, j]) ** 2 | score of a channel, "weighted input feature variance" |
| sum of W[:, j] m[j] over the removed j | bias that stands in for them |

Source: arXiv 2312.11983, equations 4 to 6.
"""

from torch import Tensor


def structure_scores(weight: Tensor, variance: Tensor, structures: int) -> Tensor:
    """Score MLP channels or KV groups.

    Args:
        weight: (out_features, in_features); the features of one structure are adjacent.
        variance: (in_features,).
        structures: how many.

    Returns:
        (structures,), float32.
    """
    return (variance * weight.float().square().sum(dim=0)).view(structures, -1).sum(dim=1)


def compensation(weight: Tensor, mean: Tensor, removed: Tensor) -> Tensor:
    """Return the bias (out_features,), float32, that stands in for removed input features.

    Args:
        weight: (out_features, in_features), dense.
        mean: (in_features,).
        removed: indices.
    """
    return weight.float()[:, removed] @ mean[removed]
