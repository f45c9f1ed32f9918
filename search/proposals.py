"""Proposing whole architectures on the budget: mutation, crossover and screening by a score, in bulk."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from space import Architecture, Indices, SearchSpace, land, sample

Score = Callable[[Indices], NDArray[np.float64]]  # (n, columns) -> (n,), lower is better

_MOST_SWAPS = 6  # sub-blocks that a mutation lowers, and about as many that landing raises in return
_AVERAGED = (4, 8, 16, 32)  # the best measured of which a random half is averaged
TOWARDS_ANCHOR = (0.0, 0.25, 0.5)
_PROFILE_KNOTS = 3  # between the ends
_BISECTIONS = 12
_ROUNDING_LAYERS = 6
# Kept shares at which each sub-block is measured alone: dense where good architectures live, since the predictor
# interpolates between them.
PRIOR_LEVELS = (0.0, 1 / 3, 2 / 3, 5 / 6, 11 / 12)
PRIOR_SPARSITIES = (0.5, 0.7, 0.9)  # the same of zeros, whose damage is a smooth curve


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
            if space.whole_blocks:
                children[active, columns ^ 1] = children[active, columns]
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


def blend(space: SearchSpace, parents: Indices, rng: np.random.Generator) -> Indices:
    """Take the weighted mean of random pairs of parents in every sub-block, and land it on the budget.

    Costs are nearly linear in what is kept, so a mean of two on the budget is on it; the damage bends upwards, so it
    is often the better of the three.

    Args:
        space: the search space.
        parents: (n, columns), not changed.
        rng: where the randomness comes from.

    Returns:
        (n, columns), within the budgets.
    """
    weight = rng.uniform(0.25, 0.75, (len(parents), 1))
    mean = weight * parents + (1 - weight) * parents[rng.permutation(len(parents))]
    # Rounded at random, so that a step is as likely as the mean is near to it.
    return land(space, np.floor(mean + rng.random(mean.shape)).astype(np.int16), rng)


def averages(space: SearchSpace, best: Indices, anchors: Indices, count: int, rng: np.random.Generator) -> Indices:
    """Return means of the best measured architectures, drawn more or less towards smooth ones.

    The best of many measured on one text owes part of its rank to that text: what the best have in common, and what
    they share with an allocation that no measurement chose, holds on others (see tests/benchmarks/transfer).

    Args:
        space: the search space.
        best: (n, columns), best measured first.
        anchors: (m, columns), architectures that are smooth over depth.
        count: means wanted.
        rng: where the randomness comes from.

    Returns:
        (count, columns), within the budgets.
    """
    rows = []
    for _ in range(count):
        first = best[: rng.choice(_AVERAGED)]
        mean = first[rng.permutation(len(first))[: max(1, (len(first) + 1) // 2)]].mean(axis=0)
        weight = rng.choice(TOWARDS_ANCHOR) if len(anchors) else 0.0
        if weight:
            mean = (1 - weight) * mean + weight * anchors[rng.integers(len(anchors))]
        rows.append(rounded(space, mean))
    return land(space, np.array(rows, dtype=np.int16).reshape(-1, space.columns), rng)


def rounded(space: SearchSpace, mean: NDArray[np.float64]) -> Indices:
    """Round (columns,) down, then up where most was lost and as far as the budgets allow."""
    row = np.floor(mean).astype(np.int16)
    lost = np.array([(row - mean)[unit].mean() for unit in space.units])
    for index in np.argsort(lost, kind="stable"):
        if lost[index] < 0:
            raised = row.copy()
            raised[space.units[index]] += 1
            row = raised if space.within(raised[None])[0] else row
    return row


def offspring(
    space: SearchSpace, parents: Indices, count: int, rng: np.random.Generator, fresh: bool = True
) -> Indices:
    """Return new architectures: mutated parents, parents mixed by layers or by their means, and a few from nowhere.

    Args:
        space: the search space.
        parents: (n, columns), best first.
        count: architectures wanted.
        rng: where the randomness comes from.
        fresh: whether there are some from nowhere.

    Returns:
        (count, columns), within the budgets.
    """
    new = max(1, count // 16) if fresh else 0
    mixed = count // 5 if len(parents) > 1 else 0
    # Better parents have more children: the square pushes draws towards the front.
    picked = (rng.random(count - new) ** 2 * len(parents)).astype(int)
    chosen = parents[picked]
    return np.concatenate(
        [
            cross(space, chosen[:mixed], rng),
            blend(space, chosen[mixed : 2 * mixed], rng),
            mutate(space, chosen[2 * mixed :], rng),
            sample(space, new, rng),
        ]
    )


def profiles(space: SearchSpace, count: int, rng: np.random.Generator) -> Indices:
    """Return architectures whose kept share changes smoothly with depth, on the budget.

    Good architectures are smooth before they are fine-tuned: damage in early layers is amplified by all that follow,
    which measuring sub-blocks one at a time cannot show. Each profile is piecewise linear through a few random knots,
    raised or lowered as a whole until it fits; half of them leave the attention whole.

    Args:
        space: the search space.
        count: profiles wanted.
        rng: where the randomness comes from.

    Returns:
        (count, columns), within the budgets.
    """
    depth = np.linspace(0, 1, space.columns // 2)
    drawn = []
    for index in range(count):
        knots = np.concatenate([[0.0], np.sort(rng.random(_PROFILE_KNOTS)), [1.0]])
        shapes = [np.interp(depth, knots, rng.random(len(knots))) for _ in range(2)]
        attention = np.ones_like(depth) if index % 2 else 1 - 0.5 * shapes[0]
        drawn.append(_fitted(space, attention, shapes[1]))
    return land(space, np.array(drawn, dtype=np.int16), rng)


def _fitted(space: SearchSpace, attention: NDArray[np.float64], mlp: NDArray[np.float64]) -> NDArray[np.int16]:
    """Return the largest architecture of a profile within the budgets; shares are cut off at whole and at nothing."""
    low, high = -1.0, 2.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        fits = bool(space.within(_row(space, attention, mlp, middle)[None])[0])
        low, high = (middle, high) if fits else (low, middle)
    return _row(space, attention, mlp, low)


def _row(
    space: SearchSpace, attention: NDArray[np.float64], mlp: NDArray[np.float64], level: float
) -> NDArray[np.int16]:
    # Attention is cut by its own shape alone while the level is in its usual range, and with the MLP below it.
    kept = np.stack([attention + min(level, 0.0), mlp + level], axis=1).clip(0, 1).reshape(-1)
    return np.asarray(np.rint(kept * (space.sizes - 1)), dtype=np.int16)


def nearest(space: SearchSpace, architecture: Architecture, rng: np.random.Generator) -> Indices:
    """Return the architecture of the space nearest to one that may lie between its widths, on the budget.

    Args:
        space: the search space.
        architecture: any architecture of the model.
        rng: where the randomness comes from.

    Returns:
        (1, columns), within the budgets.
    """
    row = []
    for column, options in enumerate(space.choices):
        layer = architecture.layers[column // 2]
        mine = (layer.mlp_width, layer.mlp_sparsity) if column % 2 else (layer.kv_groups, layer.attention_sparsity)
        row.append(min(range(len(options)), key=lambda i: _distance(options[i].width, options[i].sparsity, mine)))
    return land(space, np.array([row], dtype=np.int16), rng)


def _distance(width: int, sparsity: float, wanted: tuple[int, float]) -> tuple[float, float]:
    return abs(width - wanted[0]), abs(sparsity - wanted[1])


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


def rounding_architectures(space: SearchSpace) -> list[Architecture]:
    """Return the dense model less one MLP channel, at a few layers: what rounding alone is worth (see `predictor`).

    None in a space without widths, where no prior knows what a narrower MLP is worth; sparsities keep their rounding.
    """
    whole = space.layout.mlp_width
    if all(option.width in (0, whole) for option in space.choices[1]):
        return []
    dense = Architecture.dense(space.layout)
    layers = np.linspace(0, space.layout.layers - 1, min(space.layout.layers, _ROUNDING_LAYERS)).astype(int)
    return [dense.replace(int(layer), mlp_width=whole - 1) for layer in layers]


def prior_architectures(
    space: SearchSpace,
    levels: Sequence[float] | None = PRIOR_LEVELS,
    sparsities: Sequence[float] | None = PRIOR_SPARSITIES,
) -> list[Architecture]:
    """Return the dense model with one sub-block changed at a time, or one block removed in a space of whole blocks.

    This is what the additive prior is measured on.

    Args:
        space: the search space.
        levels: kept shares that are taken where there are more widths than that; None takes every width.
        sparsities: those next to which are taken where there are more than that; None takes every one.
    """
    dense = Architecture.dense(space.layout)
    if space.whole_blocks:
        return [dense.replace(layer, kv_groups=0, mlp_width=0) for layer in range(space.layout.layers)]
    found: list[Architecture] = []
    for column, options in enumerate(space.choices):
        layer, is_mlp = divmod(column, 2)
        width, sparsity = ("mlp_width", "mlp_sparsity") if is_mlp else ("kv_groups", "attention_sparsity")
        whole = space.layout.mlp_width if is_mlp else space.layout.kv_groups
        widths = sorted({option.width for option in options if option.width < whole})
        if levels is not None and len(widths) > len(levels):
            widths = sorted({min(widths, key=lambda w: abs(w - share * whole)) for share in levels})
        zeros = sorted({option.sparsity for option in options if option.sparsity > 0})
        if sparsities is not None and len(zeros) > len(sparsities):
            zeros = sorted({min(zeros, key=lambda z: abs(z - share)) for share in sparsities})
        found += [dense.replace(layer, **{width: value}) for value in widths]
        found += [dense.replace(layer, **{sparsity: share}) for share in zeros]
    return found
