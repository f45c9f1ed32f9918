"""The vocabulary projection of a dense model: all logits of a few tokens at once, or a few logits of each.

What follows the decoder is short to say and long to compute: with 49,152 words it is a fifth of SmolLM2-135M's
products, and fresh memory for its results costs as much time again. So results go where earlier ones were.
"""

from typing import Any

import torch
from torch import Tensor, nn

from evaluator.checkpoint import DenseModel

_GATHERED_BYTES = 2**23  # rows of the projection copied together at once, to still be in the cache when multiplied


class Head:
    """Turns final hidden states into logits, as the model does.

    Args:
        dense: the model whose output embeddings these are, pruned or not.
    """

    def __init__(self, dense: DenseModel) -> None:
        self._module: Any = dense.model.get_output_embeddings()
        self._plain = type(self._module) is nn.Linear  # not of a quantised kind, whose weights do not say all
        self._cap = getattr(dense.model.config, "final_logit_softcapping", None)  # Gemma's
        self._buffer = torch.empty(0)

    @property
    def device(self) -> torch.device:
        """Where logits are computed."""
        device: torch.device = self._module.weight.device
        return device

    @property
    def weights(self) -> list[Tensor]:
        """What logits depend on beside hidden states."""
        return list(self._module.parameters())

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return logits (tokens, vocabulary) of hidden states (tokens, hidden), good until the next call."""
        module = self._module
        if not self._plain or module.bias is not None or module.weight.dtype != hidden.dtype:
            return self.traced(hidden)
        weight = module.weight
        if len(hidden) > len(self._buffer):
            self._buffer = hidden.new_empty(len(hidden), len(weight))
        return self._capped(torch.mm(hidden, weight.t(), out=self._buffer[: len(hidden)]))

    def traced(self, hidden: Tensor) -> Tensor:
        """Return logits (tokens, vocabulary) in memory of their own, through which gradients flow."""
        return self._capped(self._module(hidden))

    def of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Return the logits (tokens, count) of some words, each token's own.

        Args:
            hidden: (tokens, hidden).
            ids: (tokens, count) int64.
        """
        module = self._module
        if not self._plain:
            return self._capped(module(hidden)).gather(1, ids)
        weight = module.weight
        count = max(1, _GATHERED_BYTES // (ids.shape[1] * weight.shape[1] * weight.element_size()))
        gathered = weight.new_empty(min(count, len(ids)) * ids.shape[1], weight.shape[1])
        found = []
        for states, wanted in zip(hidden.split(count), ids.split(count), strict=True):
            rows = torch.index_select(weight, 0, wanted.flatten(), out=gathered[: wanted.numel()])
            found.append(torch.bmm(rows.view(*wanted.shape, -1), states[:, :, None])[:, :, 0])
        logits = torch.cat(found)
        return self._capped(logits if module.bias is None else logits + module.bias[ids])

    def _capped(self, logits: Tensor) -> Tensor:
        return logits if self._cap is None else self._cap * torch.tanh(logits.float() / self._cap)
