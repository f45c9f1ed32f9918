"""A criterion: by what channels and KV groups are chosen, weights made zero, and what stays corrected for what goes.

| widths | a channel or KV group is worth | source |
| --- | --- | --- |
| magnitude | the L2 norm of its weights | - |
| wanda | the L2 norm of its weights times its inputs' norm, in the projection that reads it | arXiv 2306.11695 |
| activation | the L2 norm of what comes out of it | arXiv 2407.14679 |
| flap | how much its activation fluctuates, times the norm of its weights | arXiv 2312.11983 |
| taylor, fisher | what the loss changes without it, by the gradient | arXiv 2305.11627 |
| obs | what its projection's outputs lose after the best correction of the others | arXiv 2302.04089 |

| weights | a weight is worth | source |
| --- | --- | --- |
| magnitude | its absolute value | - |
| wanda | that times its input's norm | arXiv 2306.11695 |
| sparsegpt | what its row's output loses after the best correction of the others, which is made | arXiv 2301.00774 |
| dsnot, dsnot-sparsegpt | as Wanda or SparseGPT, in attention swapped for each row's mean output | arXiv 2310.08915 |

| update | what is done for the channels and heads that went | source |
| --- | --- | --- |
| none | nothing | - |
| bias | their mean output becomes a bias | arXiv 2312.11983 |
| least_squares | the columns that stay are solved for the dense outputs | arXiv 2302.04089, 2412.18110 |
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from evaluator.pruning import activation, dsnot, flap, least_squares, magnitude, sparsegpt, wanda
from evaluator.pruning.patterns import pattern_mask
from evaluator.pruning.statistics import InputStatistics, LayerStatistics, Moments
from evaluator.pruning.structures import StructureScores
from space import Criterion, Layout, SettingError


def moments_for(criterion: Criterion) -> Moments:
    """Return which second moments a criterion needs."""
    if "sparsegpt" in criterion.weights:
        return "all"
    return "structures" if criterion.widths == "obs" or criterion.update == "least_squares" else "none"


def needs_gradients(criterion: Criterion) -> bool:
    """Return whether a criterion needs gradients of the loss."""
    return criterion.widths in ("taylor", "fisher")


def structure_scores(
    criterion: Criterion, weights: Mapping[str, Tensor], statistics: LayerStatistics, layout: Layout
) -> StructureScores:
    """Score a layer's channels and KV groups.

    Args:
        weights: (out_features, in_features) of every projection, by its path.
        statistics: of the layer.
        layout: the model's sizes.
    """
    if criterion.widths == "magnitude":
        return magnitude.structure_scores(weights, layout)
    if needs_gradients(criterion):
        return statistics.gradients[criterion.widths]
    family = layout.record
    return StructureScores(
        _scores(criterion, weights[family.down], statistics.inputs[family.down], layout.mlp_width),
        _scores(criterion, weights[family.output], statistics.inputs[family.output], layout.kv_groups),
    )


def _scores(criterion: Criterion, weight: Tensor, inputs: InputStatistics, structures: int) -> Tensor:
    if criterion.widths == "wanda":
        return wanda.group_scores(weight, inputs.norms, structures)
    if criterion.widths == "activation":
        return activation.structure_scores(inputs.norms, structures)
    if criterion.widths == "flap":
        return flap.structure_scores(weight, inputs.variance, structures)
    # Corrected after every half a percent of the structures: one by one takes eight times as long for no gain.
    order = least_squares.removal_order(
        weight, inputs.moments, weight.shape[1] // structures, at_once=max(1, structures // 192)
    )
    return torch.empty(structures, device=weight.device).scatter_(
        0, order, torch.arange(structures, dtype=torch.float32, device=weight.device)
    )


def narrow(
    criterion: Criterion, weight: Tensor, inputs: InputStatistics | None, kept: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return a projection's weights for the input features that stay, and the bias for those that go.

    Args:
        weight: (out_features, in_features), dense.
        inputs: of the projection; not needed without an update.
        kept: feature indices, ascending.

    Returns:
        (out_features, kept) in the dtype of `weight`, and None or (out_features,) to add to its bias.
    """
    narrowed = weight.index_select(1, kept)
    if criterion.update == "none":
        return narrowed, None
    assert inputs is not None, "an update needs to know the inputs"
    if criterion.update == "least_squares":
        return least_squares.resolve(weight, inputs.moments, kept).to(weight.dtype), None
    removed = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    removed[kept] = False
    return narrowed, flap.compensation(weight, inputs.mean, removed.nonzero().flatten()).to(weight.dtype)


def thin(
    criterion: Criterion, weight: Tensor, inputs: InputStatistics, sparsity: float, attention: bool = True
) -> Tensor:
    """Return a projection's weights with zeros, in their dtype.

    Args:
        weight: (out_features, in_features), of the features that stay.
        inputs: of the same features.
        sparsity: share of zeros per row, the count rounded down; with a pattern, M - N of every M.
        attention: whether the projection is one of attention, where alone DSnoT swaps: the default of its authors' code
            (docs/criteria.md has what swapping in MLPs as well gives).

    Raises:
        SettingError: the pattern has another sparsity, or does not divide the features.
    """
    pattern = _fitting(criterion, weight.shape[1], sparsity)
    if criterion.weights == "sparsegpt":
        return sparsegpt.prune(weight, inputs.moments, sparsity, pattern).to(weight.dtype)
    if criterion.weights == "dsnot-sparsegpt":
        # As its authors do: SparseGPT says which weights, and those that stay keep their dense values.
        mask = sparsegpt.prune(weight, inputs.moments, sparsity, pattern) != 0
    else:
        by_size = criterion.weights == "magnitude"
        scores = magnitude.weight_scores(weight) if by_size else wanda.weight_scores(weight, inputs.norms)
        mask = wanda.row_mask(scores, sparsity) if pattern is None else pattern_mask(scores, *pattern)
    if criterion.weights.startswith("dsnot") and attention:
        group = None if pattern is None else pattern[1]
        mask = dsnot.refine(weight, mask, inputs.mean, inputs.variance, inputs.norms, group=group)
    return weight * mask


def _fitting(criterion: Criterion, features: int, sparsity: float) -> tuple[int, int] | None:
    if criterion.group is None:
        return None
    kept, group = criterion.group
    if abs(sparsity - (1 - kept / group)) > 1e-6 or features % group:
        raise SettingError(
            f"criterion.pattern {criterion.pattern} must meet a sparsity of {1 - kept / group:g} on a multiple of "
            f"{group} features, but met {sparsity:g} on {features}; allow that sparsity only, and widths of such "
            "multiples."
        )
    return kept, group
