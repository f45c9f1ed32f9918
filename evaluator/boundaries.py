"""Hidden states between layers of the dense model, from which a measurement starts at the first layer that changes.

Where one layer is changed, that is half of the work.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from evaluator.checkpoint import DenseModel
from evaluator.kernels import Kernels, running_by
from evaluator.memory import PREFIX_SHARE, allowance
from evaluator.pruning import passed_over


def boundaries(dense: DenseModel, tokens: Tensor, kernels: Kernels) -> dict[int, Tensor]:
    """Return hidden states (sequences, sequence_length, hidden) before layers, evenly spaced, as memory allows.

    Args:
        dense: with nothing installed.
        tokens: (sequences, sequence_length) token ids, of one batch: those of several would have to be replayed batch
            by batch.
        kernels: by which steps the decoder runs.
    """
    layout = dense.layout
    size = tokens.numel() * layout.hidden_size * dense.model.dtype.itemsize
    count = min(layout.layers - 1, allowance(PREFIX_SHARE, dense.weights_bytes) // size)
    wanted = [round(layout.layers * place / (count + 1)) for place in range(1, count + 1)]
    found: dict[int, Tensor] = {}

    def keep(index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found[index] = inputs[0]

        return hook

    handles = [dense.layers[index].register_forward_pre_hook(keep(index)) for index in wanted]
    try:
        with torch.inference_mode(), running_by(kernels, dense.decoder):
            dense.decoder(tokens.to(dense.model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextlib.contextmanager
def replayed(layers: nn.ModuleList, first: int, hidden: Tensor) -> Iterator[None]:
    """Let layer `first` start from stored hidden states, and those before it do nothing."""
    handle = layers[first].register_forward_pre_hook(lambda _, inputs: (hidden, *inputs[1:]))
    try:
        with passed_over(list(layers[:first])):
            yield
    finally:
        handle.remove()
