"""DSnoT: swaps between kept and removed weights that bring each row's mean output back, without training.

| symbol | meaning |
| --- | --- |
| W: (out_features, in_features) | a projection's weights |
| m, v, n: (in_features,) | mean, variance and L2 norm of each input feature over the calibration tokens |
| e = sum of W[i, j] m[j] over what row i lost | what the row's mean output is short of |
| sign(e) W[i, j] m[j] / v[j] | worth of a lost weight: the largest comes back |
| abs(W[i, j]) n[j], where sign(e) W[i, j] m[j] < 0 | worth of a kept one: the smallest goes |

A row goes on while the swap leaves the sign of e as it was and brings e nearer to 0.

Source: arXiv 2310.08915, equations 3 to 6.
"""

import torch
from torch import Tensor

CYCLES = 50  # the paper's value


def refine(
    weight: Tensor,
    mask: Tensor,
    mean: Tensor,
    variance: Tensor,
    norms: Tensor,
    cycles: int = CYCLES,
    group: int | None = None,
) -> Tensor:
    """Return a better mask with as many zeros in each row.

    Args:
        weight: (out_features, in_features).
        mask: (out_features, in_features) bool, true where a weight is kept, by any criterion.
        mean: (in_features,).
        variance: (in_features,).
        norms: (in_features,).
        cycles: swaps per row at most.
        group: features of an N:M group, within which a swap then stays; None swaps along the whole row.
    """
    kept = mask.clone()
    shift = weight.float() * mean  # what a weight adds to its row's mean output
    worth = shift / variance.clamp_min(torch.finfo(torch.float32).tiny)
    cost = weight.float().abs() * norms
    error = shift.masked_fill(kept, 0).sum(dim=1)
    sign = error.sign()[:, None]
    fixed = torch.zeros_like(kept)  # swapped weights stay where they are
    rows, places = (torch.arange(size, device=kept.device) for size in kept.shape)
    active = torch.ones(len(kept), dtype=torch.bool, device=kept.device)
    for _ in range(cycles):
        back, gain = _best(sign * worth, ~kept & ~fixed)
        candidates = kept & ~fixed & (sign * shift < 0)
        if group is not None:
            candidates &= places // group == back[:, None] // group
        gone, loss = _best(-cost, candidates)
        after = error - shift[rows, back] + shift[rows, gone]
        better = (after.sign() == sign[:, 0]) & (after.abs() < error.abs())
        active &= better & gain.isfinite() & loss.isfinite()
        if not active.any():
            break
        own = rows[active]
        kept[own, back[active]], kept[own, gone[active]] = True, False
        fixed[own, back[active]] = fixed[own, gone[active]] = True
        error = torch.where(active, after, error)
    return kept


def _best(scores: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's index of the highest allowed score, and that score, minus infinity where none is allowed."""
    values, indices = scores.masked_fill(~allowed, -torch.inf).max(dim=1)
    return indices, values
