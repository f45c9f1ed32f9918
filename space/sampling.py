"""Drawing architectures that land on the budget, in bulk and from a seed."""

import numpy as np
from numpy.typing import NDArray

from space.domain import Indices, SearchSpace


def land(
    space: SearchSpace, indices: Indices, rng: np.random.Generator, held: NDArray[np.bool_] | None = None
) -> Indices:
    """Move architectures onto the budget: cut random steps until they fit, then give back random steps that still fit.

    Args:
        space: the search space with its budgets.
        indices: (architectures, columns), not changed.
        rng: where the randomness comes from.
        held: (architectures, columns), true where a choice must stay as it is; None holds nothing.

    Returns:
        (architectures, columns), each within every budget, and none with room for one more step in any column that
        was tried in the last pass. Where what is held is over a budget by itself, the result is over it as well.
    """
    result = indices.copy()
    cost = space.budget_costs(result)  # (architectures, budgets)
    tables = [space.column_costs(column) for column in range(space.columns)]
    free = np.ones(result.shape, dtype=bool) if held is None else ~held
    _cut(space, result, cost, tables, rng, free)
    _fill(space, result, cost, tables, rng, free)
    return result


def _cut(
    space: SearchSpace,
    result: Indices,
    cost: np.ndarray,
    tables: list[np.ndarray],
    rng: np.random.Generator,
    free: NDArray[np.bool_],
) -> None:
    over = np.flatnonzero((cost > space.limits).any(axis=1))
    while over.size:
        # A random column of those that can still be cut, the same chance for each.
        open_ = (result[over] > 0) & free[over]
        weight = rng.random((over.size, space.columns)) * open_
        possible = open_.any(axis=1)
        over, weight = over[possible], weight[possible]
        columns = weight.argmax(axis=1)
        for column in np.unique(columns):
            rows = over[columns == column]
            before = result[rows, column]
            result[rows, column] = before - 1
            cost[rows] += tables[column][before - 1] - tables[column][before]
        over = over[(cost[over] > space.limits).any(axis=1)]


def _fill(
    space: SearchSpace,
    result: Indices,
    cost: np.ndarray,
    tables: list[np.ndarray],
    rng: np.random.Generator,
    free: NDArray[np.bool_],
) -> None:
    sizes = space.sizes
    changed = True
    while changed:
        changed = False
        for column in rng.permutation(space.columns):
            rows = np.flatnonzero((result[:, column] < sizes[column] - 1) & free[:, column])
            before = result[rows, column]
            after = cost[rows] + tables[column][before + 1] - tables[column][before]
            fits = (after <= space.limits).all(axis=1)
            rows, after = rows[fits], after[fits]
            if rows.size:
                result[rows, column] += 1
                cost[rows] = after
                changed = True


def sample(space: SearchSpace, count: int, rng: np.random.Generator) -> Indices:
    """Draw architectures on the budget, stratified over how the cut is shared out.

    Two traits are stratified as a Latin hypercube, so that few samples still cover both: how much of the attention is
    kept, and how unevenly the layers are cut. Within a stratum each sub-block's kept share is a beta draw.

    Args:
        space: the search space with its budgets.
        count: architectures to draw.
        rng: where the randomness comes from.

    Returns:
        (count, columns), each within the budgets.
    """
    strata = (np.arange(count) + rng.random(count)) / max(count, 1)
    attention_kept = 0.3 + 0.65 * rng.permutation(strata)[:, None]
    # Concentration of the beta draw: 60 is nearly even over the layers, 1 nearly all or nothing.
    concentration = 60.0 ** rng.permutation(strata)[:, None]
    mlp_kept = np.full_like(attention_kept, 0.8)
    mean = np.where(np.arange(space.columns) % 2 == 0, attention_kept, mlp_kept)
    kept = rng.beta(concentration * mean, concentration * (1 - mean))
    top = space.sizes - 1
    return land(space, np.rint(kept * top).astype(np.int16), rng)
