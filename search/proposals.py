"""Proposing whole architectures on the budget: mutation, crossover and screening by a score, in bulk."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from space import Architecture, Indices, SearchSpace, land, sample

Score = Callable[[Indices], NDArray[np.float64]]  # (n, columns) -> (n,), lower is better

_MOST_SWAPS = 6  # sub-blocks that a mutation lowers, and about as many that landing raises in return
PRIOR_LEVELS = (0.0, 0.25, 0.5, 2 / 3, 5 / 6)  # kept shares at which each sub-block is measured alone


def mutate(space: SearchSpace, parents: Indices, rng: np.random.Generator, most_swaps: int = _MOST_SWAPS) -> Indices:
    """Move some of the cut of each parent to other sub-blocks.

    A few random columns go down by one or two choices and a few go up; landing then restores the budget.

    Args:
        space: the search space.
        parents: (n, columns), not changed.
        rng: where the randomness comes from.
        most_swaps: columns moved each way at most.

    Returns:
        (n, columns), within the budgets.
    """
    children = parents.copy()
    rows = np.arange(len(children))
    sizes = space.sizes
    swaps = 1 + (rng.random(len(children)) ** 2 * most_swaps).astype(int)  # small moves more often
    for turn in range(most_swaps):
        active = rows[swaps > turn]
        for direction in (-1, 1):
            columns = rng.integers(space.columns, size=active.size)
            steps = direction * rng.integers(1, 3, size=active.size)
            moved = children[active, columns] + steps
            children[active, columns] = np.clip(moved, 0, sizes[columns] - 1)
    return land(space, children, rng)


def cross(space: SearchSpace, parents: Indices, rng: np.random.Generator) -> Indices:
    """Mix random pairs of parents layer by layer and land the children on the budget.

    Args:
        space: the search space.
        parents: (n, columns), not changed.
        rng: where the randomness comes from.

    Returns:
        (n, columns), within the budgets.
    """
    others = parents[rng.permutation(len(parents))]
    layers = space.columns // 2
    from_other = np.repeat(rng.random((len(parents), layers)) < 0.5, 2, axis=1)
    return land(space, np.where(from_other, others, parents).astype(np.int16), rng)


def offspring(space: SearchSpace, parents: Indices, count: int, rng: np.random.Generator) -> Indices:
    """Return new architectures: mutated parents, mixed parents and a few from nowhere.

    Args:
        space: the search space.
        parents: (n, columns), best first.
        count: architectures wanted.
        rng: where the randomness comes from.

    Returns:
        (count, columns), within the budgets.
    """
    fresh = max(1, count // 16)
    mixed = count // 4 if len(parents) > 1 else 0
    # Better parents have more children: the square pushes draws towards the front.
    picked = (rng.random(count - fresh) ** 2 * len(parents)).astype(int)
    chosen = parents[picked]
    return np.concatenate(
        [
            cross(space, chosen[:mixed], rng) if mixed else chosen[:0],
            mutate(space, chosen[mixed:], rng),
            sample(space, fresh, rng),
        ]
    )


def evolve(
    space: SearchSpace, score: Score, rng: np.random.Generator, generations: int = 60, population: int = 512
) -> Indices:
    """Return the best architectures of an evolution on a score that costs next to nothing.

    Args:
        space: the search space.
        score: (n, columns) -> (n,), lower is better.
        rng: where the randomness comes from.
        generations: of `population` offspring each.
        population: offspring per generation; an eighth of it survives.

    Returns:
        (population / 8, columns), best first, no two equal.
    """
    survivors = sample(space, population, rng)
    for _ in range(generations):
        pool = np.unique(np.concatenate([survivors, offspring(space, survivors, population, rng)]), axis=0)
        survivors = pool[np.argsort(score(pool), kind="stable")[: max(2, population // 8)]]
    return survivors


def prior_architectures(space: SearchSpace) -> list[Architecture]:
    """Return the dense model with one sub-block changed at a time: what the additive prior is measured on."""
    dense = Architecture.dense(space.layout)
    found: list[Architecture] = []
    for column, options in enumerate(space.choices):
        layer, is_mlp = divmod(column, 2)
        width, sparsity = ("mlp_width", "mlp_sparsity") if is_mlp else ("kv_groups", "attention_sparsity")
        whole = space.layout.mlp_width if is_mlp else space.layout.kv_groups
        widths = sorted({option.width for option in options if option.width < whole})
        if len(widths) > len(PRIOR_LEVELS):
            widths = sorted({min(widths, key=lambda w: abs(w - share * whole)) for share in PRIOR_LEVELS})
        levels = sorted({option.sparsity for option in options if option.sparsity > 0})
        found += [dense.replace(layer, **{width: value}) for value in widths]
        found += [dense.replace(layer, **{sparsity: level}) for level in levels]
    return found
