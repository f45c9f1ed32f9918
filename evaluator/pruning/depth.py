"""Depth: which whole blocks change the residual stream least.

| symbol | meaning |
| --- | --- |
| x[l]: (tokens, hidden) | the residual stream before block l; x[L] is what the last one leaves |
| 1 - mean cos(x[l], x[l + 1]) | block influence |
| mean arccos(cos(x[l], x[l + n])) / pi | angular distance over n consecutive blocks, 0 to 1 |

Source: ShortGPT, arXiv 2403.03853, equation 2; arXiv 2403.17887, equation 4.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity


def angular_distances(
    decoder: nn.Module, layers: Sequence[nn.Module], batches: Iterable[Tensor], count: int
) -> list[float]:
    """Return the angular distance over `count` consecutive blocks from each block on, (layers - count + 1,).

    Holds the residual stream before every block for one batch at a time.

    Args:
        decoder: turns token ids into hidden states.
        layers: the decoder's layers, dense.
        batches: token ids, each (sequences, sequence_length).
        count: blocks, at most all.
    """
    streams: list[Tensor] = []
    handles = [layer.register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0])) for layer in layers]
    handles.append(layers[-1].register_forward_hook(lambda _, __, output: streams.append(output)))
    totals, tokens = torch.zeros(len(layers) - count + 1, dtype=torch.float64), 0
    try:
        with torch.inference_mode():
            for batch in batches:
                streams.clear()
                decoder(batch, use_cache=False)
                pairs = zip(streams, streams[count:], strict=False)
                totals += batch.numel() * torch.tensor([angular_distance(*pair) for pair in pairs])
                tokens += batch.numel()
    finally:
        for handle in handles:
            handle.remove()
    found: list[float] = (totals / tokens).tolist()
    return found


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
