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
        was tried in the last pass. Where what is held is over a budget by itself, the result is over it as well. In a
        space of whole blocks a layer whose two columns differ follows that which is held, or one at random.
    """
    tables = [space.column_costs(column) for column in range(space.columns)]
    free = np.ones(indices.shape, dtype=bool) if held is None else ~held
    if not space.whole_blocks:
        return _landed(indices, tables, space, rng, free)
    first = rng.random((len(indices), space.columns // 2)) < 0.5
    first = np.where(free[:, 0::2] == free[:, 1::2], first, free[:, 1::2])
    layers = np.where(first, indices[:, 0::2], indices[:, 1::2]).astype(np.int16)
    both = [attention + mlp for attention, mlp in zip(tables[0::2], tables[1::2], strict=True)]
    return np.repeat(_landed(layers, both, space, rng, free[:, 0::2] & free[:, 1::2]), 2, axis=1)


def _landed(
    indices: Indices,
    tables: list[NDArray[np.float64]],
    space: SearchSpace,
    rng: np.random.Generator,
    free: NDArray[np.bool_],
) -> Indices:
    """Return rows within the budgets, whose columns cost what the tables (choices, budgets) say."""
    result = indices.copy()
    # What costs the same in every architecture is no column's.
    cost = np.tile(space.fixed_budget_costs, (len(result), 1))
    for column, table in enumerate(tables):
        cost += table[result[:, column]]
    _cut(space.limits, result, cost, tables, rng, free)
    _fill(space.limits, result, cost, tables, rng, free)
    return result


def _cut(
    limits: NDArray[np.float64],
    result: Indices,
    cost: NDArray[np.float64],
    tables: list[NDArray[np.float64]],
    rng: np.random.Generator,
    free: NDArray[np.bool_],
) -> None:
    over = np.flatnonzero((cost > limits).any(axis=1))
    while over.size:
        # A random column of those that can still be cut, the same chance for each.
        open_ = (result[over] > 0) & free[over]
        weight = rng.random(open_.shape) * open_
        possible = open_.any(axis=1)
        over, weight = over[possible], weight[possible]
        columns = weight.argmax(axis=1)
        for column in np.unique(columns):
            rows = over[columns == column]
            before = result[rows, column]
            result[rows, column] = before - 1
            cost[rows] += tables[column][before - 1] - tables[column][before]
        over = over[(cost[over] > limits).any(axis=1)]


def _fill(
    limits: NDArray[np.float64],
    result: Indices,
    cost: NDArray[np.float64],
    tables: list[NDArray[np.float64]],
    rng: np.random.Generator,
    free: NDArray[np.bool_],
) -> None:
    changed = True
    while changed:
        changed = False
        for column in rng.permutation(len(tables)):
            rows = np.flatnonzero((result[:, column] < len(tables[column]) - 1) & free[:, column])
            before = result[rows, column]
            after = cost[rows] + tables[column][before + 1] - tables[column][before]
            fits = (after <= limits).all(axis=1)
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
