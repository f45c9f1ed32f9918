"""What other choices of each sub-block would change to first order, from one backward pass at an architecture.

| symbol | meaning |
| --- | --- |
| a | an architecture as it is installed, every projection in the shape of the dense one: what left is 0 |
| G | gradient of the mean KL to the dense model with respect to the weights W_a of a sub-block's projections |
| W_c | weights of the same projections under another choice c of width or sparsity |
| slope of c | sum of G (W_c - W_a), in nats per token |

Unlike at the dense model, where the divergence is least and its gradient 0, the slopes at a pruned one know what all
other sub-blocks do there: what the damage of each alone leaves out. A column of a projection that is 0 keeps the rows
that feed it dense, so G tells what a structure would do that came back. (Where a norm follows a sub-block, as in
Gemma's, nothing is told of its removal.) It takes a forward and a backward pass, the
cost of three forward passes, for all choices of all sub-blocks at once.

Source: first-order Taylor expansion, as pruning criteria take it at the dense model (arXiv 1906.10771).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evaluator.accuracy import Reference, divergence
from evaluator.checkpoint import DenseModel
from evaluator.pruning import Surgeon
from evaluator.pruning.structures import oriented
from space import Architecture, Choice

FORWARD_PASSES = 3  # that one costs: a backward pass is two
Points = tuple[tuple[float, float], ...]  # (gene, change of KL)


@dataclass(frozen=True)
class Slopes:
    """First-order changes of the KL around an architecture, nats per token.

    Args:
        architecture: around which.
        kl: its own, as measured.
        widths: by sub-block, 2 i the attention of layer i and 2 i + 1 its MLP: (width, change) at its own sparsity.
        sparsities: the same by sparsity, at its own width; of a removed sub-block, at full width. What is not told is
            left out.
    """

    architecture: Architecture
    kl: float
    widths: tuple[Points, ...]
    sparsities: tuple[Points, ...]


@dataclass(frozen=True)
class _Weights:
    """A sub-block's projections in the shape of the dense ones, by path."""

    weights: dict[str, Tensor]  # (out_features, in_features)
    biases: dict[str, Tensor]  # (out_features,) of the projection that reads its structures, where it has one


def slopes(
    dense: DenseModel,
    surgeon: Surgeon,
    reference: Reference,
    architecture: Architecture,
    choices: Sequence[Sequence[Choice]],
    progress: Callable[[int], None] = lambda _: None,
) -> Slopes:
    """Return the slopes at an architecture; the dense model is installed afterwards.

    Takes the memory of a float32 copy of the projections whose weights the choices change, and the activations of one
    sequence.

    Args:
        dense: the model.
        surgeon: of its weights.
        reference: the dense model's predictions on the text.
        architecture: around which.
        choices: by sub-block, those to tell the change of.
        progress: told 1 after each sequence.
    """
    surgeon.restore()
    blocks = _Blocks(surgeon, any(choice.sparsity for own in choices for choice in own))
    own = [blocks.weights(column, *blocks.genes(architecture, column)) for column in range(len(choices))]
    with blocks.placed(own) as parameters:
        kl, gradients = _gradients(dense, reference, parameters, progress)
    widths, sparsities = [], []
    for column, options in enumerate(choices):
        told = options if not blocks.normed_behind(column) else [choice for choice in options if choice.width]
        width, sparsity = blocks.genes(architecture, column)
        start = own[column]
        full = width or max(choice.width for choice in options)
        origin = start if width else blocks.weights(column, full, sparsity)

        def change(other: int, level: float, since: _Weights, column: int = column) -> float:
            return blocks.change(gradients, column, since, blocks.weights(column, other, level))

        known = width or told is options
        own_widths = sorted({choice.width for choice in told}) if known else []
        widths.append(tuple((float(w), change(w, sparsity, start)) for w in own_widths))
        levels = sorted({choice.sparsity for choice in options})
        several = len(levels) > 1
        sparsities.append(tuple((level, change(full, level, origin)) for level in levels) if several else ())
    return Slopes(architecture, kl, tuple(widths), tuple(sparsities))


class _Blocks:
    """Sub-blocks of a model in the shape of the dense ones, 2 i the attention of layer i and 2 i + 1 its MLP."""

    def __init__(self, surgeon: Surgeon, sparse: bool) -> None:
        self.surgeon = surgeon
        self._sparse = sparse  # whether weights that write structures change as well

    def genes(self, architecture: Architecture, column: int) -> tuple[int, float]:
        """Return the width and the sparsity of a sub-block."""
        layer = architecture.layers[column // 2]
        if column % 2:
            return layer.mlp_width, layer.mlp_sparsity
        return layer.kv_groups, layer.attention_sparsity

    def normed_behind(self, column: int) -> bool:
        """Return whether a sub-block's output is normed, so that its size tells nothing of the way to or from 0."""
        family = self.surgeon.family
        return len(family.mlp_norms if column % 2 else family.attention_norms) > 1

    def reader(self, column: int) -> str:
        """Return the path of the projection that reads a sub-block's structures."""
        family = self.surgeon.family
        return family.down if column % 2 else family.output

    def weights(self, column: int, width: int, sparsity: float) -> _Weights:
        """Return a sub-block's weights under a choice."""
        reader, index = self.reader(column), column // 2
        if not width:
            whole = self.weights(column, self._dense_width(column), 0.0)
            gone = {path: torch.zeros_like(bias) for path, bias in whole.biases.items()}
            return _Weights({**whole.weights, reader: torch.zeros_like(whole.weights[reader])}, gone)
        found = self.surgeon.parts(index, "channels" if column % 2 else "groups", width, sparsity)
        weights, biases = {}, {}
        for path, part in found.items():
            dense = self.surgeon.dense_weight(index, path)
            if path != reader and not self._sparse:
                continue
            weight = part.level["weight"].to(dense.device)
            if part.places is not None:
                # Rows of what left feed columns that are 0: what they hold changes nothing.
                weight = (torch.zeros_like(dense) if path == reader else dense.clone()).index_copy(
                    part.dimension, part.places.to(dense.device), weight
                )
            weights[path] = weight
        if "bias" in found[reader].level:
            biases[reader] = found[reader].level["bias"].to(weights[reader].device)
        elif self.surgeon.criterion.update == "bias":
            biases[reader] = weights[reader].new_zeros(len(weights[reader]))
        return _Weights(weights, biases)

    def _dense_width(self, column: int) -> int:
        layout = self.surgeon.layout
        return layout.mlp_width if column % 2 else layout.kv_groups

    @contextlib.contextmanager
    def placed(self, own: Sequence[_Weights]) -> Iterator[dict[tuple[int, str, str], Tensor]]:
        """Put weights into the dense model for a while, as parameters that take gradients.

        Yields them by sub-block, path and `weight` or `bias`.
        """
        before: list[tuple[Any, Tensor, nn.Parameter | None]] = []
        parameters: dict[tuple[int, str, str], Tensor] = {}
        try:
            for column, block in enumerate(own):
                for path, weight in block.weights.items():
                    module: Any = self.surgeon.projection(column // 2, path)
                    before.append((module, module.weight.data, module.bias))
                    module.weight.data = oriented(weight, self.surgeon.layout)
                    parameters[column, path, "weight"] = module.weight.requires_grad_(True)
                    if path in block.biases:
                        module.bias = nn.Parameter(block.biases[path])
                        parameters[column, path, "bias"] = module.bias
            yield parameters
        finally:
            for module, weight, bias in before:
                module.weight.requires_grad_(False)
                module.weight.data, module.bias = weight, bias

    def change(
        self, gradients: dict[tuple[int, str, str], Tensor], column: int, before: _Weights, after: _Weights
    ) -> float:
        """Return the first-order change of the KL from one choice of a sub-block to another."""
        total = 0.0
        for path, weight in after.weights.items():
            gradient = oriented(gradients[column, path, "weight"], self.surgeon.layout)
            total += float((gradient * (weight.float() - before.weights[path].float())).sum(dtype=torch.float64))
        for path, bias in after.biases.items():
            total += float((gradients[column, path, "bias"] * (bias.float() - before.biases[path].float())).sum())
        return total


def _gradients(
    dense: DenseModel,
    reference: Reference,
    parameters: dict[tuple[int, str, str], Tensor],
    progress: Callable[[int], None],
) -> tuple[float, dict[tuple[int, str, str], Tensor]]:
    """Return the mean KL of what is installed and its gradients, float32, sequence by sequence."""
    total = {key: torch.zeros_like(each, dtype=torch.float32) for key, each in parameters.items()}
    kl, predicted = 0.0, reference.tokens.shape[1] - 1
    for number, tokens in enumerate(reference.tokens):
        rows = slice(number * predicted, (number + 1) * predicted)
        with torch.enable_grad():
            logits = dense.model(tokens[None].to(dense.model.device), use_cache=False).logits[0, :-1].float()
            ids, logprobs, rest = (each[rows] for each in (reference.ids, reference.logprobs, reference.rest))
            pruned = logits.gather(1, ids.long()) - logits.logsumexp(dim=-1, keepdim=True)
            loss = divergence(logprobs, rest, pruned).sum() / reference.predicted
            found = torch.autograd.grad(loss, list(parameters.values()))
        kl += float(loss.detach())
        for key, gradient in zip(parameters, found, strict=True):
            total[key] += gradient
        progress(1)
    return kl, total
