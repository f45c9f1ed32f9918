"""Baselines: allocations that no measurement chose, which a search has to beat and may start from."""

from collections.abc import Callable, Sequence
from contextlib import suppress

from evaluator import allocation
from evaluator.pruning import Surgeon
from space import (
    Architecture,
    Budget,
    BudgetError,
    Layout,
    SearchSpace,
    evenly_sparse,
    largest,
    uniform_sparsity,
    uniform_widths,
    whole_ends,
)

Rule = Callable[[Surgeon, Sequence[Budget]], Architecture]
SMOOTH = ("uniform", "uniform_whole_ends")  # over depth, which rules that follow scores are not


def fixed_allocations(space: SearchSpace, pattern: tuple[int, int] | None = None) -> dict[str, Architecture]:
    """Return the baselines that need no model: dense, uniform, and uniform with the ends left whole.

    The last is left out where it cannot meet the budget.

    Args:
        space: the search space; where it has sparsities, the baselines are what people use: uniform sparsity.
        pattern: (N, M), where that is the only sparsity; as many sub-blocks as it takes then have it.

    Raises:
        BudgetError: no uniform architecture meets the budgets.
    """
    layout, budgets = space.layout, space.budgets

    def uniform(whole: frozenset[int] = frozenset()) -> Architecture:
        if not _searches_sparsity(space):
            return uniform_widths(layout, budgets, whole)
        if pattern is None:
            return uniform_sparsity(layout, budgets, whole)
        return evenly_sparse(layout, budgets, 1 - pattern[0] / pattern[1], whole)

    found = {"dense": Architecture.dense(layout), "uniform": uniform()}
    with suppress(BudgetError):
        found["uniform_whole_ends"] = uniform(whole_ends(layout))
    return found


def scored_allocations(space: SearchSpace, surgeon: Surgeon) -> dict[str, Architecture]:
    """Return the baselines that a rule derives from what calibration saw, of those that fit the space and budgets.

    Args:
        space: the search space.
        surgeon: of the dense model.
    """
    rules: dict[str, Rule] = {}
    if _searches_sparsity(space):
        if surgeon.criterion.group is None:
            rules |= {"owl": allocation.owl_sparsity, "global_threshold": allocation.global_sparsity}
    else:
        rules["global_threshold"] = allocation.global_threshold
    if all(options[0].width == 0 for options in space.choices):
        rules["block_influence"] = _without_blocks
    found = {}
    for name, rule in rules.items():
        with suppress(BudgetError):
            found[name] = rule(surgeon, space.budgets)
    return found


def _searches_sparsity(space: SearchSpace) -> bool:
    return any(option.sparsity > 0 for options in space.choices for option in options)


def _without_blocks(surgeon: Surgeon, budgets: Sequence[Budget]) -> Architecture:
    """Return the architecture without as many of the least influential blocks as the budgets ask for."""
    layout: Layout = surgeon.layout

    def candidate(share: float) -> Architecture:
        removed = allocation.least_influential(surgeon, round((1 - share) * layout.layers))
        return allocation.without_blocks(layout, removed)

    return largest(layout, budgets, candidate)
