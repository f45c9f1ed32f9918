"""Activation: a structure is worth what comes out of it, weights aside.

Source: Minitron, arXiv 2407.14679, section 2.2: mean over tokens of the channel's absolute activation, L2 norm over a
head's features.
"""

from torch import Tensor


def structure_scores(norms: Tensor, structures: int) -> Tensor:
    """Score MLP channels or KV groups by the L2 norm of their activations over the calibration set.

    Args:
        norms: (in_features,) L2 norm over tokens of each feature that the down or output projection reads.
        structures: how many; the features of one are adjacent.

    Returns:
        (structures,), float32.
    """
    scores: Tensor = norms.float().view(structures, -1).norm(dim=1)
    return scores
