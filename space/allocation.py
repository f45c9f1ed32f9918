"""Allocations that need no search: the baselines that a searched architecture has to beat."""

from collections.abc import Callable, Collection, Sequence

from space.architecture import Architecture, LayerArchitecture
from space.cost import Budget, cost_of
from space.errors import BudgetError
from space.layout import Layout

# LLM-Pruner (arXiv 2305.11627) leaves these layers of a Llama whole.
WHOLE_FIRST, WHOLE_LAST = 4, 2
# Few KV groups make attention a coarse and costly thing to cut, so the MLP gives alone down to this share of its width.
_MLP_ALONE = 0.5
_STEPS = 2**20  # resolution of the bisection, finer than one channel of any MLP in use


def whole_ends(layout: Layout) -> frozenset[int]:
    """Return the layers that LLM-Pruner's setting leaves whole (fewer in models of under 12 layers)."""
    first = min(WHOLE_FIRST, layout.layers // 3)
    last = min(WHOLE_LAST, layout.layers // 6)
    return frozenset((*range(first), *range(layout.layers - last, layout.layers)))


def uniform_widths(layout: Layout, budgets: Sequence[Budget], whole: Collection[int] = ()) -> Architecture:
    """Return the largest architecture within the budgets whose cut layers all have the same widths.

    Widths are exact to one channel, not multiples of a step, so that a baseline is not smaller than the budget allows.

    Args:
        layout: the dense model.
        budgets: upper limits, all of which must hold.
        whole: layers that are not cut.

    Raises:
        BudgetError: the budgets cannot be met while those layers stay whole.
    """

    def candidate(share: float) -> Architecture:
        # The upper half of the scale cuts the MLP alone from dense to half; the lower half cuts both to nothing.
        if share >= _MLP_ALONE:
            cut = LayerArchitecture(layout.kv_groups, round(layout.mlp_width * share))
        else:
            groups = round(layout.kv_groups * share / _MLP_ALONE)
            cut = LayerArchitecture(groups, round(layout.mlp_width * share))
        return _with_whole(layout, cut, whole)

    groups_kept = min(layer.kv_groups for layer in largest(layout, budgets, candidate).layers)

    def filled(share: float) -> Architecture:
        cut = LayerArchitecture(groups_kept, round(layout.mlp_width * share))
        return _with_whole(layout, cut, whole)

    # A KV group is a large step; the MLP takes what the next group would have been too much for.
    return largest(layout, budgets, filled)


def uniform_sparsity(layout: Layout, budgets: Sequence[Budget], whole: Collection[int] = ()) -> Architecture:
    """Return the least sparse architecture within the budgets whose cut layers all have the same sparsity.

    Args:
        layout: the dense model.
        budgets: upper limits, all of which must hold.
        whole: layers that are not made sparse.

    Raises:
        BudgetError: the budgets cannot be met while those layers stay whole.
    """

    def candidate(share: float) -> Architecture:
        sparsity = min(1 - share, 0.9999)
        return _with_whole(layout, LayerArchitecture(layout.kv_groups, layout.mlp_width, sparsity, sparsity), whole)

    return largest(layout, budgets, candidate)


def evenly_sparse(
    layout: Layout, budgets: Sequence[Budget], sparsity: float, whole: Collection[int] = ()
) -> Architecture:
    """Return the architecture within the budgets with the fewest sub-blocks of one sparsity, evenly spread over depth.

    For patterns as 2:4, which leave no other sparsity to choose.

    Args:
        layout: the dense model.
        budgets: upper limits, all of which must hold.
        sparsity: share of zeros per row of a sparse sub-block.
        whole: layers that are not made sparse.

    Raises:
        BudgetError: the budgets cannot be met while those layers stay whole.
    """
    bits = layout.layers.bit_length()
    # By reversed bits, so that the layers of every prefix lie evenly between the others (van der Corput, 1935).
    spread = sorted(range(layout.layers), key=lambda index: f"{index:0{bits}b}"[::-1])
    order = [(index, gene) for index in spread if index not in whole for gene in ("mlp", "attention")]

    def candidate(share: float) -> Architecture:
        architecture = Architecture.dense(layout)
        for index, gene in order[: round((1 - share) * len(order))]:
            architecture = architecture.replace(index, **{f"{gene}_sparsity": sparsity})
        return architecture

    found = largest(layout, budgets, candidate)
    # A sub-block is a large step; what the last one took too much of, a smaller one gets back.
    for index, gene in reversed(order):
        fuller = found.replace(index, **{f"{gene}_sparsity": 0.0})
        found = fuller if _fits(layout, budgets, fuller) else found
    return found


def _with_whole(layout: Layout, cut: LayerArchitecture, whole: Collection[int]) -> Architecture:
    dense = LayerArchitecture(layout.kv_groups, layout.mlp_width)
    return Architecture(tuple(dense if index in whole else cut for index in range(layout.layers)))


def largest(layout: Layout, budgets: Sequence[Budget], candidate: Callable[[float], Architecture]) -> Architecture:
    """Return the largest of a family of architectures within the budgets.

    Args:
        layout: the dense model.
        budgets: upper limits, all of which must hold.
        candidate: from a share between 0 and 1 to an architecture that costs no less for a higher share.

    Raises:
        BudgetError: none of them meets the budgets.
    """

    def fits(step: int) -> bool:
        return _fits(layout, budgets, candidate(step / _STEPS))

    if not fits(0):
        raise BudgetError(
            "A baseline that leaves its first and last layers whole must still meet the budget, but cannot at "
            f"{', '.join(map(str, budgets))}; raise the budget."
        )
    low, high = 0, _STEPS  # `low` fits always, `high` is dense
    if fits(high):
        return candidate(1.0)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return candidate(low / _STEPS)


def _fits(layout: Layout, budgets: Sequence[Budget], architecture: Architecture) -> bool:
    dense = cost_of(layout, Architecture.dense(layout))
    return all(budget.amount_of(layout, architecture) <= budget.limit(dense) for budget in budgets)
