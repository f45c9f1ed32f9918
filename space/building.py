"""Building the search space of a model: which widths and sparsities each sub-block may have."""

import math
from collections.abc import Callable, Sequence

from space.cost import LATENCY, Budget, Cost, attention_cost, mlp_cost
from space.domain import Choice, SearchSpace
from space.errors import SettingError
from space.latency import LatencyTable
from space.layout import Layout

DEFAULT_WIDTH_STEP = 128  # what matrix units and quantisation blocks like
_FEWEST_WIDTHS = 8  # a model too narrow for that many steps of 128 gets a finer step
_ROUNDING = 1e-4  # to which sparsities are kept


def default_width_step(layout: Layout) -> int:
    """Return 128, or for a model narrower than 1,024 channels the power of two that leaves about 8 widths."""
    if layout.mlp_width >= _FEWEST_WIDTHS * DEFAULT_WIDTH_STEP:
        return DEFAULT_WIDTH_STEP
    return int(2 ** math.floor(math.log2(max(1, layout.mlp_width / _FEWEST_WIDTHS))))


def build_space(
    layout: Layout,
    budgets: Sequence[Budget] = (),
    *,
    widths: bool = True,
    width_step: int | None = None,
    removal: bool = True,
    sparsities: Sequence[float] = (0.0,),
    pattern: tuple[int, int] | None = None,
    whole_blocks: bool = False,
    latency: LatencyTable | None = None,
) -> SearchSpace:
    """Build the search space of a model.

    Args:
        layout: the dense model.
        budgets: upper limits, all of which must hold.
        widths: whether MLP widths and KV groups may be reduced.
        width_step: MLP widths are multiples of this many channels; None takes `default_width_step`.
        removal: whether a sub-block may be removed.
        sparsities: allowed shares of zeros per row, 0 included or not.
        pattern: (N, M), where weights are made zero by that pattern alone.
        whole_blocks: whether a layer is removed whole or stays whole, and nothing else is searched.
        latency: timings of the sub-blocks, which a budget on latency needs.

    Raises:
        SettingError: a step or a sparsity is out of range, or does not fit the pattern.
        BudgetError: no architecture meets the budgets, or latency is limited and was not timed.
    """
    if whole_blocks:
        kept = ((Choice(0), Choice(layout.kv_groups)), (Choice(0), Choice(layout.mlp_width)))
        return SearchSpace(layout, kept * layout.layers, tuple(budgets), whole_blocks=True, latency=latency)
    step = default_width_step(layout) if width_step is None else width_step
    if not 1 <= step <= layout.mlp_width:
        raise SettingError(
            f"width_step must be between 1 and the model's MLP width {layout.mlp_width}, but is {step}; "
            f"leave it out to get {default_width_step(layout)}."
        )
    levels = sorted({round(float(value), 4) for value in sparsities})
    if not levels or not all(0 <= value < 1 for value in levels):
        raise SettingError(f"sparsities must be at least 0 and below 1, but are {list(sparsities)}; give [0, 0.5].")
    if pattern is not None:
        _check_pattern(layout, pattern, levels, step if widths else layout.mlp_width)
    mlp = [*range(step, layout.mlp_width, step), layout.mlp_width] if widths else [layout.mlp_width]
    groups = [*range(1, layout.kv_groups + 1)] if widths else [layout.kv_groups]
    removed = [Choice(0)] if removal else []
    attention_choices = removed + [Choice(width, level) for width in groups for level in levels]
    mlp_choices = removed + [Choice(width, level) for width in mlp for level in levels]
    key = budgets[0].metric if budgets else "nonzero_parameters"

    def order(rule: Callable[[Layout, int, float], Cost], choice: Choice) -> tuple[int, int, float]:
        # Where the budget's metric sees no sparsity, the sparser choice still comes first, so that the last one is
        # dense. What is timed rises with the width.
        cost = 0 if key == LATENCY else getattr(rule(layout, choice.width, choice.sparsity), key)
        return cost, choice.width, -choice.sparsity

    attention_choices.sort(key=lambda choice: order(attention_cost, choice))
    mlp_choices.sort(key=lambda choice: order(mlp_cost, choice))
    choices = (tuple(attention_choices), tuple(mlp_choices)) * layout.layers
    return SearchSpace(layout, choices, tuple(budgets), latency=latency)


def _check_pattern(layout: Layout, pattern: tuple[int, int], sparsities: Sequence[float], width_step: int) -> None:
    kept, group = pattern
    if not any(sparsities) or any(value and abs(value - 1 + kept / group) > _ROUNDING for value in sparsities):
        raise SettingError(
            f"The pattern {kept}:{group} must be the one way to make zeros in a search, but its sparsities are "
            f"{', '.join(f'{value:g}' for value in sparsities)}; give a budget on nonzero_parameters and leave "
            "space.sparsities out."
        )
    features = {
        "hidden size": layout.hidden_size,
        "width of a KV group's heads": layout.heads_per_group * layout.head_dim,
        "MLP width": layout.mlp_width,
        "space.width_step": width_step,
    }
    for name, count in features.items():
        if count % group:
            raise SettingError(
                f"The pattern {kept}:{group} must divide the features of every projection, but the {name} is {count}; "
                "choose another."
            )
