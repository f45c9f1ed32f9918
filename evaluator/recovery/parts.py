"""The mean loss of many tokens whose logits are never there at once: gradients are taken part by part, going forward.

Over 49,152 words the logits of 1,024 tokens are 200 MB, of which a loss and its gradient make some ten copies, each in
fresh memory: a third of the time of a step. After Liger Kernel's fused linear cross-entropy (arXiv 2410.10989).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

# Of the logits of a part in float32. From 32 MiB on, glibc gives memory back to the system every time.
_PART_BYTES = 24 * 2**20
_FEWEST_TOKENS = 32  # of a part: for fewer the head's weights are read too often

PartLoss = Callable[[Tensor, slice], Tensor]


def mean_loss(loss_of: PartLoss, hidden: Tensor, weights: Sequence[Tensor], vocabulary: int) -> Tensor:
    """Return the mean over tokens of a loss, with gradients where they are enabled.

    Args:
        loss_of: the sum of the loss over a part of the tokens, of their hidden states and their places.
        hidden: (tokens, hidden) final hidden states.
        weights: of the vocabulary projection, which take gradients or not.
        vocabulary: words that there are logits of.
    """
    parts = list(_parts(len(hidden), vocabulary))
    if torch.is_grad_enabled():
        found: Tensor = _MeanLoss.apply(loss_of, parts, hidden, *weights)  # type: ignore[no-untyped-call]  # torch has no types for it
        return found
    return torch.stack([loss_of(hidden[part], part) for part in parts]).sum() / len(hidden)


def _parts(tokens: int, vocabulary: int) -> Iterator[slice]:
    size = max(_FEWEST_TOKENS, _PART_BYTES // (4 * vocabulary))
    return (slice(first, first + size) for first in range(0, tokens, size))


class _MeanLoss(torch.autograd.Function):
    """The mean of a loss over tokens, whose gradients are known when it is."""

    @staticmethod
    def forward(ctx: Any, loss_of: PartLoss, parts: Sequence[slice], hidden: Tensor, *weights: Tensor) -> Tensor:
        """Return the mean, and keep the gradients of its sum."""
        taking = [weight for weight in weights if weight.requires_grad]
        total = torch.zeros((), device=hidden.device)
        of_hidden, of_weights = torch.empty_like(hidden), [torch.zeros_like(weight) for weight in taking]
        for part in parts:
            with torch.enable_grad():
                own = hidden[part].detach().requires_grad_()
                loss = loss_of(own, part)
                of_hidden[part], *more = torch.autograd.grad(loss, [own, *taking])
            for whole, gradient in zip(of_weights, more, strict=True):
                whole += gradient
            total += loss.detach().to(total.device)
        ctx.save_for_backward(of_hidden, *of_weights)
        ctx.taking = [weight.requires_grad for weight in weights]
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Return the gradients of hidden states and of those weights that take one."""
        [outer] = gradients
        of_hidden, *of_weights = ctx.saved_tensors
        scale, found = outer / len(of_hidden), iter(of_weights)
        return None, None, of_hidden * scale, *(next(found) * scale if takes else None for takes in ctx.taking)
