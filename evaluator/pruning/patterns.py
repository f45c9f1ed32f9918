"""N:M patterns: N of every M neighbouring weights of a row are kept, which sparse matrix units can skip.

Source: arXiv 2104.08378; 2:4 is what NVIDIA's sparse tensor cores run.
"""

import torch
from torch import Tensor


def pattern_mask(scores: Tensor, kept: int, group: int) -> Tensor:
    """Mark the weights that stay: in every group of a row the `kept` with the highest scores.

    Args:
        scores: (out_features, in_features), of any criterion.
        kept: N.
        group: M; where in_features is no multiple of it, the last group is smaller and keeps N of what it has.

    Returns:
        (out_features, in_features), bool.
    """
    rows, columns = scores.shape
    groups = -(-columns // group)
    padded = scores.new_full((rows, groups * group), -torch.inf)
    padded[:, :columns] = scores
    highest = padded.view(rows, groups, group).topk(kept, dim=2).indices
    mask = torch.zeros(rows, groups, group, dtype=torch.bool, device=scores.device).scatter_(2, highest, True)
    return mask.view(rows, -1)[:, :columns]
