"""SparseGPT: weights removed column by column, each time with the best correction of the columns still to come.

| symbol | meaning |
| --- | --- |
| W: (out_features, in_features) | a projection's weights |
| X: (tokens, in_features) | its inputs over the calibration set |
| H = X'X + damping mean(diag(X'X)) I | second moments, damped |
| U: upper triangular, inverse(H) = U'U | row j of U is what removing column j does to the columns after it |
| (W[i, j] / U[j, j]) ** 2 | error that removing a weight makes after all corrections |

Source: arXiv 2301.00774, algorithm 1. One difference: the paper takes the same share of each block of columns, over all
rows; here every row has the same number of zeros, as costs count them, and spends them on blocks as its dense weights'
scores, W[i, j] ** 2 / inverse(H)[j, j], suggest. And where the greedy sweep ends worse than plain Wanda, which happens
to rows at 90 % and beyond, the row is Wanda's.
"""

import torch
from torch import Tensor

from evaluator.pruning import wanda
from evaluator.pruning.patterns import pattern_mask
from space.cost import zeros_per_row

DAMPING = 0.01
BLOCK = 128  # columns that are judged together, the paper's value


def prune(
    weight: Tensor,
    second_moments: Tensor,
    sparsity: float = 0.0,
    pattern: tuple[int, int] | None = None,
    damping: float = DAMPING,
) -> Tensor:
    """Return weights with zeros, the others corrected for them.

    Args:
        weight: (out_features, in_features).
        second_moments: (in_features, in_features) X'X, of any scale.
        sparsity: share of zeros per row, the count rounded down; ignored with a pattern.
        pattern: (N, M): N of every M neighbours in a row are kept.
        damping: share of the mean diagonal that is added to the diagonal.

    Returns:
        (out_features, in_features), float32.
    """
    columns = weight.shape[1]
    result = weight.float().clone()
    upper = _upper_factor(second_moments, damping)
    result[:, second_moments.diagonal() == 0] = 0  # never seen, so it cannot be missed
    inverse_diagonal = upper.square().sum(dim=0)  # of inverse(H) = U'U
    planned = _cheapest(result, inverse_diagonal.sqrt(), zeros_per_row(columns, sparsity))
    for first in range(0, columns, BLOCK):
        last = min(first + BLOCK, columns)
        removed = None
        if pattern is None:
            zeros = planned[:, first:last].sum(dim=1, keepdim=True)
            removed = _cheapest(result[:, first:last], upper.diagonal()[first:last], zeros)
        block, errors = _sweep(result[:, first:last], upper[first:last, first:last], removed, pattern)
        result[:, first:last] = block
        result[:, last:] -= errors @ upper[first:last, last:]
    return _better_rows(weight.float(), result, _wanda(weight, second_moments, sparsity, pattern), second_moments)


def _wanda(weight: Tensor, second_moments: Tensor, sparsity: float, pattern: tuple[int, int] | None) -> Tensor:
    scores = wanda.weight_scores(weight, second_moments.diagonal().sqrt())
    return weight.float() * (wanda.row_mask(scores, sparsity) if pattern is None else pattern_mask(scores, *pattern))


def _better_rows(weight: Tensor, first: Tensor, second: Tensor, second_moments: Tensor) -> Tensor:
    errors = [(((weight - each) @ second_moments) * (weight - each)).sum(dim=1) for each in (first, second)]
    return torch.where((errors[0] <= errors[1])[:, None], first, second)


def reconstruction_error(weight: Tensor, pruned: Tensor, second_moments: Tensor) -> float:
    """Return the squared error of a projection's outputs over the calibration set, norm2(X (W - pruned)') ** 2.

    Args:
        weight: (out_features, in_features).
        pruned: (out_features, in_features).
        second_moments: (in_features, in_features) X'X.
    """
    difference = weight.float() - pruned.float()
    return float(((difference @ second_moments) * difference).sum())


def _upper_factor(second_moments: Tensor, damping: float) -> Tensor:
    damped = second_moments.float().clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = diagonal.mean()
    diagonal += damping * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _cheapest(weight: Tensor, diagonal: Tensor, zeros: Tensor | int) -> Tensor:
    """Mark in each row the weights whose removal costs least: (out_features, columns).

    Args:
        weight: (out_features, columns).
        diagonal: (columns,) what a weight's error is divided by.
        zeros: how many, for each row (out_features, 1) or for all.
    """
    ranks = (weight / diagonal).square().argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return ranks < zeros


def _sweep(
    weight: Tensor, upper: Tensor, removed: Tensor | None, pattern: tuple[int, int] | None
) -> tuple[Tensor, Tensor]:
    """Remove column by column within a block; return its weights and the error of each column, both (out, block)."""
    block, errors = weight.clone(), torch.zeros_like(weight)
    mask = torch.zeros_like(weight, dtype=torch.bool) if removed is None else removed
    for column in range(block.shape[1]):
        if pattern is not None and column % pattern[1] == 0:
            kept, group = pattern
            near = slice(column, min(column + group, block.shape[1]))
            mask[:, near] = _cheapest(block[:, near], upper.diagonal()[near], max(0, near.stop - near.start - kept))
        error = torch.where(mask[:, column], block[:, column] / upper[column, column], 0.0)
        errors[:, column] = error
        block[:, column:] -= error[:, None] * upper[column, column:]
        block[:, column] = torch.where(mask[:, column], 0.0, block[:, column])
    return block, errors
