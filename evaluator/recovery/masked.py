"""Training models with zeros so that the zeros stay: low-rank additions to the other weights alone.

An addition of low rank has no zeros of its own: merged into a sparse weight, it would make it a dense one. So here the
sum of both is what a projection computes with, zeros left out, in training as in the end.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_SPARSE = 0.02  # share of a projection's weights that are zero, from which on it is taken for a sparse one


class MaskedAddition(nn.Module):
    """A weight with a low-rank addition wherever it is not zero.

    Args:
        weight: (rows, columns).
        rank: of the addition.
        scale: by which it is multiplied.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.first = nn.Parameter(torch.empty(rank, columns, device=weight.device))
        self.second = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        nn.init.kaiming_uniform_(self.first, a=math.sqrt(5))  # as LoRA begins
        self._scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        """Return the sum (rows, columns) in the weight's dtype."""
        return weight + (self._scale * (self.second @ self.first) * weight.ne(0)).to(weight.dtype)


def is_sparse(weight: Tensor) -> bool:
    """Return whether a weight was made sparse."""
    return float(weight.eq(0).float().mean()) > _SPARSE


def add_masked(modules: list[nn.Module], rank: int, scale: float, seed: int) -> None:
    """Give projections additions that leave their zeros alone; nothing else of them takes gradients.

    Args:
        modules: with a `weight`.
        rank: of the additions.
        scale: by which they are multiplied.
        seed: of their start.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in modules:
            weight = module.weight
            assert isinstance(weight, Tensor)
            parametrize.register_parametrization(module, "weight", MaskedAddition(weight, rank, scale))


def take_out(modules: list[nn.Module], keep: bool) -> None:
    """Give projections plain weights again.

    Args:
        modules: that `add_masked` gave additions.
        keep: whether these become part of the weights.
    """
    for module in modules:
        weight = module.weight
        assert isinstance(weight, Tensor)
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
        if keep:  # in memory of its own: what was there may be the dense model's as well
            module.weight.data = weight.detach()
