"""Depth: which whole blocks change the residual stream least.

| symbol | meaning |
| --- | --- |
| x[l]: (tokens, hidden) | the residual stream before block l; x[L] is what the last one leaves |
| 1 - mean cos(x[l], x[l + 1]) | block influence |
| mean arccos(cos(x[l], x[l + n])) / pi | angular distance over n consecutive blocks, 0 to 1 |

Source: ShortGPT, arXiv 2403.03853, equation 2; arXiv 2403.17887, equation 4.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


def block_influence(before: Tensor, after: Tensor) -> float:
    """Return the influence of a block.

    Args:
        before: (tokens, hidden) residual stream.
        after: the same tokens behind the block.
    """
    return 1 - float(cosine_similarity(before.double(), after.double(), dim=-1).mean())


def angular_distance(before: Tensor, after: Tensor) -> float:
    """Return the mean angle between the residual stream before and after consecutive blocks, as a share of pi.

    Args:
        before: (tokens, hidden) residual stream.
        after: the same tokens behind the blocks.
    """
    cosine = cosine_similarity(before.double(), after.double(), dim=-1)
    return float(torch.arccos(cosine.clamp(-1, 1)).mean()) / math.pi
