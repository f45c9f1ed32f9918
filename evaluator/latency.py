"""A table of what sub-blocks take, timed inside of whole models, and how its sums agree with models timed whole.

Random architectures are installed one after the other in which every layer keeps another choice, and each of their
passes is marked before each sub-block's first norm and behind its residual addition. So a pass tells of every layer,
and a sub-block is timed with the processor's caches as a model leaves them.

    span[p, j] = load[p] * time[choice of j in p]    for pass p, sub-block j

What else a machine does slows whole passes, so both factors are estimated in turn, each as a trimmed mean of what the
other leaves, since single sub-blocks are interrupted as well. Last, the table is scaled to the median of passes that
nothing marked.

Against least squares on the totals of as many whole models (16 pruned SmolLM2-135M, tried on 12 others and the dense
one), which puts sub-blocks into caches just as well, this errs by 3 instead of 7 % in prefill and 8 % in decode.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.stats import kendalltau, spearmanr, trim_mean
from torch import nn

from evaluator.timing import Bench, Mark, Timing, timing_of
from space import (
    Architecture,
    Budget,
    LatencyTable,
    LayerArchitecture,
    SearchSpace,
    TableCheck,
    WholeModel,
    sample,
)

_FEWEST_WIDTHS, _MOST_WIDTHS = 6, 12  # of MLPs that are timed; between them the table is a line
_SAMPLES = 12  # of each choice in each round
_FEWEST_DESIGNS = 6
_TRIMMED = 0.1  # of a choice's spans, at either end
_TURNS = 8  # of estimating loads and times; both have settled long before
_CHECKED = (0.3, 0.95)  # of the dense decoder's parameters, between which whole models are checked
_NANO = 1e9


@dataclass(frozen=True)
class _Pass:
    """One marked pass of a design."""

    choices: NDArray[np.intp]  # (layers, 2): which of the KV groups and of the widths
    spans: NDArray[np.float64]  # (layers, 2) seconds
    rest: float  # seconds outside of the layers


def measure_latency(
    bench: Bench,
    space: SearchSpace,
    rounds: int,
    models: int,
    rng: np.random.Generator,
    progress: Callable[[int], None] = lambda _: None,
) -> LatencyTable:
    """Time sub-blocks into a table, and check it against whole models that it is not made from.

    Args:
        bench: what times; the dense model is installed in the end.
        space: whose widths matter, and of which whole models are drawn; its budgets do not count.
        rounds: visits of each model.
        models: that the table is checked against, the dense one among them; at least 2.
        rng: where the randomness comes from.
        progress: told 1 after each visit, of `visits` in all.

    Raises:
        MeasurementError: no time passes between marks.
    """
    started, layout = time.perf_counter(), space.layout
    options = [0, *range(1, layout.kv_groups + 1)], [0, *timed_widths(space)]
    designs = _designs(layout.layers, [len(own) for own in options], rng)
    asked = [_designed(options, design) for design in designs]
    whole = [Architecture.dense(layout), *_spread(space, models - 1, rng)]
    marked: list[_Pass] = []
    everyone = [*asked, *whole]
    taken: list[list[float]] = [[] for _ in everyone]
    for _ in range(rounds):
        # Those that the table is made from and those that it is checked against meet the same disturbances.
        for number in rng.permutation(len(taken)).tolist():
            with bench.installed(everyone[number]) as (model, run):
                taken[number] += [bench.seconds(run) for _ in range(bench.passes)]
                if number < len(asked):
                    marked += [_marked_pass(bench, model, run, designs[number]) for _ in range(bench.passes)]
            progress(1)
    bench.close()
    unmarked = [timing_of(each) for each in taken]
    table = _table(bench, options, marked, list(zip(designs, unmarked[: len(asked)], strict=True)))
    check = _check(table, whole, unmarked[len(asked) :])
    return replace(table, check=check, seconds=round(time.perf_counter() - started, 1))


def visits(space: SearchSpace, rounds: int, models: int) -> int:
    """Return how many visits `measure_latency` makes."""
    layout = space.layout
    return rounds * (_design_count(layout.layers, 1 + max(layout.kv_groups, len(timed_widths(space)))) + models)


def timed_widths(space: SearchSpace) -> list[int]:
    """Return which MLP widths to time: those of the space, or as many evenly spaced where they are too many or few."""
    dense = space.layout.mlp_width
    kept = sorted({dense, *(choice.width for choice in space.choices[1])} - {0})
    if len(kept) < _FEWEST_WIDTHS:
        steps = min(_FEWEST_WIDTHS, dense)
        return sorted({*kept, *(dense * step // steps for step in range(1, steps + 1))})
    places = np.linspace(0, len(kept) - 1, min(len(kept), _MOST_WIDTHS))
    return [kept[place] for place in np.rint(places).astype(int).tolist()]


def _designed(options: Sequence[Sequence[int]], design: NDArray[np.intp]) -> Architecture:
    return Architecture(tuple(LayerArchitecture(options[0][a], options[1][m]) for a, m in design.tolist()))


def _table(
    bench: Bench,
    options: Sequence[Sequence[int]],
    marked: Sequence[_Pass],
    unmarked: Sequence[tuple[NDArray[np.intp], Timing]],
) -> LatencyTable:
    times, rest, loads = _fitted(marked, [len(own) for own in options])
    scale = float(np.median([timing.seconds / _total(times, rest, design) for design, timing in unmarked]))
    attention, mlp = ([_nanoseconds(value * scale) for value in own] for own in times)
    layers = bench.dense.layout.layers
    return LatencyTable(
        conditions=bench.conditions,
        layers=layers,
        # What is left of a removed sub-block is a part of every architecture.
        fixed=_nanoseconds(rest * scale) + layers * (attention[0] + mlp[0]),
        attention=tuple(zip(options[0], (value - attention[0] for value in attention), strict=True)),
        mlp=tuple(zip(options[1], (value - mlp[0] for value in mlp), strict=True)),
        layer_spread=_layer_spread(marked, times, loads),
        seconds=0.0,
    )


def _check(table: LatencyTable, architectures: Sequence[Architecture], timings: Sequence[Timing]) -> TableCheck:
    """Compare whole models with the table's sums."""
    models = tuple(
        WholeModel(
            fingerprint=architecture.fingerprint,
            table=table.of(architecture),
            measured=_nanoseconds(timing.seconds),
            standard_error=_nanoseconds(timing.standard_error),
        )
        for architecture, timing in zip(architectures, timings, strict=True)
    )
    told, measured = ([getattr(model, name) for model in models] for name in ("table", "measured"))
    errors = [abs(model.error) for model in models]
    return TableCheck(
        models=models,
        mean_error=float(np.mean(errors)),
        largest_error=max(errors),
        kendall_tau=float(kendalltau(told, measured).statistic),
        spearman=float(spearmanr(told, measured).statistic),
    )


def _spread(space: SearchSpace, count: int, rng: np.random.Generator) -> list[Architecture]:
    """Return random architectures of a space whose parameters lie evenly between few and nearly the dense model's."""
    found = []
    for share in np.linspace(*_CHECKED, count).tolist():
        there = replace(space, budgets=(Budget("parameters", share),))
        found += there.decode(sample(there, 1, rng))
    return found


def _design_count(layers: int, options: int) -> int:
    return max(_FEWEST_DESIGNS, math.ceil(_SAMPLES * options / layers))


def _designs(layers: int, options: Sequence[int], rng: np.random.Generator) -> NDArray[np.intp]:
    """Return designs (designs, layers, 2) in which every choice is as frequent as any other of its half.

    The upper half of the choices is drawn twice as often: models are mostly cut by less than a half.
    """
    count = _design_count(layers, max(options))
    columns = []
    for own in options:
        cycle = np.concatenate([np.arange(own), np.arange(own // 2, own)])
        drawn = np.resize(cycle, count * layers)
        columns.append(rng.permutation(drawn).reshape(count, layers))
    return np.stack(columns, axis=-1)


def _marked_pass(bench: Bench, model: nn.Module, run: Callable[[], None], design: NDArray[np.intp]) -> _Pass:
    """Run a pass with marks before each layer, between its sub-blocks and behind it."""
    marks: list[Mark] = []

    def mark(*_: object) -> None:
        marks.append(bench.mark())

    family, handles = bench.dense.layout.record, []
    layers = model.get_submodule(family.layers)
    assert isinstance(layers, nn.ModuleList)
    for layer in layers:
        between = layer.get_submodule(family.mlp_norms[0])
        handles += [module.register_forward_pre_hook(mark) for module in (layer, between)]
        handles.append(layer.register_forward_hook(mark))
    try:
        mark()
        run()
        mark()
    finally:
        for handle in handles:
            handle.remove()
    spans = bench.between(marks)
    inside = np.stack([spans[1::3], spans[2::3]], axis=1)  # behind each layer, the next one is yet to begin
    return _Pass(design, inside, float(spans.sum() - inside.sum()))


def _fitted(
    passes: Sequence[_Pass], options: Sequence[int]
) -> tuple[list[NDArray[np.float64]], float, NDArray[np.float64]]:
    """Return by sub-block the seconds (choices,) that each choice takes, never less for more, those of the rest, and
    the loads (passes,)."""
    loads = np.ones(len(passes))
    choices = np.stack([each.choices for each in passes])  # (passes, layers, 2)
    spans = np.stack([each.spans for each in passes])
    for _ in range(_TURNS):
        times = []
        for part, count in enumerate(options):
            own, values = choices[..., part], spans[..., part] / loads[:, None]
            means = [float(trim_mean(values[own == choice], _TRIMMED)) for choice in range(count)]
            weights = np.bincount(own.reshape(-1), minlength=count)
            times.append(np.asarray(isotonic_regression(means, weights=weights).x))
        loads = np.array([_load(each, times) for each in passes])
        loads /= np.median(loads)
    rest = float(trim_mean([each.rest for each in passes] / loads, _TRIMMED))
    return times, rest, loads


def _load(marked: _Pass, times: Sequence[NDArray[np.float64]]) -> float:
    """Return how many times as long as it should a pass took; an interruption of a few sub-blocks does not count."""
    expected = np.stack([own[marked.choices[:, part]] for part, own in enumerate(times)], axis=1)
    kept = (marked.choices > 0) & (expected > 0)
    return float(trim_mean(marked.spans[kept] / expected[kept], _TRIMMED)) if kept.any() else 1.0


def _total(times: Sequence[NDArray[np.float64]], rest: float, design: NDArray[np.intp]) -> float:
    return rest + float(sum(own[design[:, part]].sum() for part, own in enumerate(times)))


def _layer_spread(passes: Sequence[_Pass], times: Sequence[NDArray[np.float64]], loads: NDArray[np.float64]) -> float:
    """Return how much layers differ: the deviation over layers of what they take as multiples of the table's."""
    taken = sum(each.spans.sum(axis=1) / load for each, load in zip(passes, loads, strict=True))
    expected = sum(times[0][each.choices[:, 0]] + times[1][each.choices[:, 1]] for each in passes)
    by_layer = np.asarray(taken / expected)
    return float(by_layer.std() / by_layer.mean())


def _nanoseconds(seconds: float) -> int:
    return round(seconds * _NANO)
