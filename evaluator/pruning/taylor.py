"""Taylor: what the loss changes when a structure goes, to first order in its weights.

| symbol | meaning |
| --- | --- |
| w, g | a weight and the gradient of the mean loss over the calibration set with respect to it |
| sum of abs(g w) over a structure's weights | first-order score ("taylor"), LLM-Pruner's grouped form |
| sum of (g w) ** 2 over the same, mean over sequences | "fisher": second order, empirical Fisher's diagonal |

A structure's weights are all that leave with it: rows of the gate and up projections and columns of the down
projection for an MLP channel, rows of query, key and value and columns of the output projection for a KV group.

Source: LLM-Pruner, arXiv 2305.11627, equations 3 to 5; Molchanov et al., arXiv 1906.10771.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from evaluator.pruning.statistics import projections
from evaluator.pruning.structures import StructureScores, oriented, totals
from space import Layout

GRADIENTS = ("taylor", "fisher")
Gradients = dict[str, StructureScores]  # by those names


def first_order(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return abs(g w) of every weight, float32."""
    return (weight.float() * gradient.float()).abs()


def fisher(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return (g w) ** 2 of every weight, float32."""
    return (weight.float() * gradient.float()).square()


def gather_gradients(
    model: Any,
    layers: Sequence[nn.Module],
    layout: Layout,
    sequences: Iterable[Tensor],
    progress: Callable[[int], None] = lambda _: None,
) -> list[Gradients]:
    """Return the scores of every layer's structures from the gradients of the loss on the calibration set.

    Unlike statistics of inputs, gradients are of all layers at once: it takes the memory of one more copy of the
    layers in their own dtype and one in float32.

    Args:
        model: the causal model of transformers, dense.
        layers: its decoder layers.
        layout: its sizes.
        sequences: token ids, (1, sequence_length) each.
        progress: told 1 after each sequence.
    """
    paths = projections(layout.record)
    parameters: list[Tensor] = [layer.get_parameter(f"{path}.weight") for layer in layers for path in paths]
    means = [torch.zeros_like(each, dtype=torch.float32) for each in parameters]
    fishers: list[StructureScores | None] = [None] * len(layers)

    def scores(index: int, rule: Callable[[Tensor, Tensor], Tensor], gradients: Sequence[Tensor]) -> StructureScores:
        own = slice(index * len(paths), (index + 1) * len(paths))
        pairs = zip(paths, parameters[own], gradients[own], strict=True)
        return totals({path: oriented(rule(weight.detach(), each), layout) for path, weight, each in pairs}, layout)

    count = 0
    for each in parameters:
        each.requires_grad_(True)
    try:
        for tokens in sequences:
            with torch.enable_grad():
                logits = model(tokens, use_cache=False).logits[0, :-1].float()
                gradients = torch.autograd.grad(cross_entropy(logits, tokens[0, 1:]), parameters)
            for mean, gradient in zip(means, gradients, strict=True):
                mean += gradient
            for index, sofar in enumerate(fishers):
                found = scores(index, fisher, gradients)
                fishers[index] = (
                    found
                    if sofar is None
                    else StructureScores(sofar.channels + found.channels, sofar.groups + found.groups)
                )
            count += 1
            progress(1)
    finally:
        for each in parameters:
            each.requires_grad_(False)
    result = []
    for index, total in enumerate(fishers):
        assert total is not None, "there must be a sequence to take gradients on"
        result.append(
            {
                "taylor": scores(index, first_order, [mean / count for mean in means]),
                "fisher": StructureScores(total.channels / count, total.groups / count),
            }
        )
    return result
