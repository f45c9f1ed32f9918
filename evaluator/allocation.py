"""Allocations that look at the model but need no search: baselines, and starting points of one.

`space.allocation` holds those that need no model.

| allocation | rule | source |
| --- | --- | --- |
| global threshold | one threshold over all layers, scores in units of their layer's mean | 2312.11983 |
| OWL | layers with more outliers are made less sparse, or left wider | 2310.05175 |
| block influence | remove the blocks that turn the residual stream least | 2403.03853 |
| consecutive blocks | remove the n consecutive blocks over which it turns least | 2403.17887 |
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluator.pruning import Surgeon, owl, wanda
from space import Architecture, Budget, LayerArchitecture, Layout, largest

_QUANTILES = 4096  # of a sub-block's weight scores, to turn a threshold into a sparsity


def global_threshold(surgeon: Surgeon, budgets: Sequence[Budget]) -> Architecture:
    """Return the largest architecture within the budgets that keeps what scores above one threshold over all layers.

    Scores are those of the surgeon's criterion for channels and KV groups; layers differ in the size of their
    activations a hundredfold, so each sub-block's are divided by their mean.

    Args:
        surgeon: of the dense model.
        budgets: upper limits, all of which must hold.

    Raises:
        BudgetError: the budgets cannot be met.
    """
    channels, groups = (
        [_relative(getattr(scores, name)) for scores in surgeon.scores] for name in ("channels", "groups")
    )
    everything = np.sort(np.concatenate([*channels, *groups]))

    def candidate(share: float) -> Architecture:
        threshold = np.quantile(everything, 1 - share)
        return Architecture(
            tuple(
                LayerArchitecture(int((own_groups >= threshold).sum()), int((own_channels >= threshold).sum()))
                for own_groups, own_channels in zip(groups, channels, strict=True)
            )
        )

    return largest(surgeon.layout, budgets, candidate)


def global_sparsity(surgeon: Surgeon, budgets: Sequence[Budget]) -> Architecture:
    """Return the least sparse architecture within the budgets whose weights all score above one threshold.

    Within a sub-block each row has the same number of zeros, as everywhere here, so the threshold decides on
    sparsities alone. Scores are Wanda's, in units of their sub-block's mean.

    Args:
        surgeon: of the dense model.
        budgets: upper limits, all of which must hold.

    Raises:
        BudgetError: the budgets cannot be met.
    """
    tables = [
        {name: _quantiles(surgeon, index, name) for name in ("attention", "mlp")}
        for index in range(surgeon.layout.layers)
    ]
    everything = np.sort(np.concatenate([table for own in tables for table in own.values()]))

    def candidate(share: float) -> Architecture:
        threshold = np.quantile(everything, 1 - share)

        def sparsity(table: NDArray[np.float64]) -> float:
            return min(float((table < threshold).mean()), 0.99)

        return _sparse(surgeon.layout, [(sparsity(own["attention"]), sparsity(own["mlp"])) for own in tables])

    return largest(surgeon.layout, budgets, candidate)


def owl_sparsity(
    surgeon: Surgeon, budgets: Sequence[Budget], multiple: float = owl.OUTLIER, spread: float = owl.SPREAD
) -> Architecture:
    """Return the least sparse architecture within the budgets whose layers' sparsities are OWL's.

    Args:
        surgeon: of the dense model.
        budgets: upper limits, all of which must hold.
        multiple: of the mean score above which a weight is an outlier.
        spread: half the largest difference between two layers' sparsities.

    Raises:
        BudgetError: the budgets cannot be met.
    """
    shares = _outliers(surgeon, multiple)

    def candidate(share: float) -> Architecture:
        sparsities = owl.layer_sparsities(shares, min(1 - share, 0.99), spread)
        return _sparse(surgeon.layout, [(each, each) for each in sparsities.tolist()])

    return largest(surgeon.layout, budgets, candidate)


def owl_widths(
    surgeon: Surgeon, budgets: Sequence[Budget], multiple: float = owl.OUTLIER, spread: float = owl.SPREAD
) -> Architecture:
    """Return the largest architecture within the budgets whose MLPs keep what OWL's sparsities would leave of weights.

    Attention stays whole, as in uniform widths: a KV group of few is too large a step to follow a layer's share.

    Args:
        surgeon: of the dense model.
        budgets: upper limits, all of which must hold.
        multiple: of the mean score above which a weight is an outlier.
        spread: half the largest difference between two layers' shares.

    Raises:
        BudgetError: the budgets cannot be met.
    """
    layout, shares = surgeon.layout, _outliers(surgeon, multiple)

    def candidate(share: float) -> Architecture:
        kept = 1 - owl.layer_sparsities(shares, 1 - share, spread)
        widths = np.rint(kept * layout.mlp_width).astype(int).tolist()
        return Architecture(tuple(LayerArchitecture(layout.kv_groups, width) for width in widths))

    return largest(layout, budgets, candidate)


def _outliers(surgeon: Surgeon, multiple: float) -> list[float]:
    """Return each layer's share of weights whose scores are above a multiple of their mean."""
    return [
        owl.outlier_share(_weight_scores(surgeon, index, "attention") + _weight_scores(surgeon, index, "mlp"), multiple)
        for index in range(surgeon.layout.layers)
    ]


def without_blocks(layout: Layout, blocks: Sequence[int]) -> Architecture:
    """Return the dense architecture without some of its blocks."""
    architecture = Architecture.dense(layout)
    for index in blocks:
        architecture = architecture.replace(index, kv_groups=0, mlp_width=0)
    return architecture


def least_influential(surgeon: Surgeon, count: int) -> list[int]:
    """Return the blocks that turn the residual stream least, each looked at alone."""
    influence = [surgeon.statistics[index].influence for index in range(surgeon.layout.layers)]
    return sorted(np.argsort(influence, kind="stable")[:count].tolist())


def least_turning(distances: Sequence[float], count: int) -> list[int]:
    """Return the consecutive blocks over which the residual stream turns least.

    Args:
        distances: angular distance over `count` blocks from each block on, from `evaluator.pruning.depth`.
        count: blocks.
    """
    first = int(np.argmin(distances))
    return list(range(first, first + count))


def _sparse(layout: Layout, sparsities: Sequence[tuple[float, float]]) -> Architecture:
    layers = (LayerArchitecture(layout.kv_groups, layout.mlp_width, *own) for own in sparsities)
    return Architecture(tuple(layers))


def _relative(scores: Tensor) -> NDArray[np.float64]:
    values: NDArray[np.float64] = scores.double().cpu().numpy()
    return np.asarray(values / values.mean())


def _weight_scores(surgeon: Surgeon, index: int, sub_block: Literal["attention", "mlp"]) -> list[Tensor]:
    family = surgeon.family
    paths = {
        "attention": (family.query, family.key, family.value, family.output),
        "mlp": (family.gate, family.up, family.down),
    }[sub_block]
    inputs = surgeon.statistics[index].inputs
    return [
        wanda.weight_scores(surgeon.dense_weight(index, path), inputs[path].norms)
        for path in dict.fromkeys(path for path in paths if path is not None)
    ]


def _quantiles(surgeon: Surgeon, index: int, sub_block: Literal["attention", "mlp"]) -> NDArray[np.float64]:
    """Return evenly spaced quantiles of a sub-block's weight scores, ascending, in units of their mean."""
    scores = torch.cat([each.flatten() for each in _weight_scores(surgeon, index, sub_block)])
    ordered = (scores / scores.mean()).sort().values
    places = torch.linspace(0, len(ordered) - 1, _QUANTILES).long()
    values: NDArray[np.float64] = ordered[places].double().cpu().numpy()
    return values
