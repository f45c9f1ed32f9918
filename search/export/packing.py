"""Sub-blocks packed into the blocks of a GGUF file, where an attention stands before its MLP.

llama.cpp has no block that keeps its attention alone: an MLP of width 0 loads, and the attention's result is lost.
The residual stream does not know of blocks, so an MLP may as well move to the block of an earlier attention that has
lost its own, as long as the order stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Block:
    """What a block holds: the layers of the model that its sub-blocks come from; None where it has none."""

    attention: int | None
    mlp: int | None


def pack(kept: Sequence[tuple[bool, bool]]) -> list[Block]:
    """Return as few blocks as hold what is left of a model's layers, in order.

    Args:
        kept: whether each layer has its attention, and its MLP.
    """
    blocks: list[Block] = []
    for layer, (attention, mlp) in enumerate(kept):
        if attention:
            blocks.append(Block(layer, None))
        if mlp:
            if blocks and blocks[-1].mlp is None:
                blocks[-1] = Block(blocks[-1].attention, layer)
            else:
                blocks.append(Block(None, layer))
    return blocks
