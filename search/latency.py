"""Latency in a run: sub-blocks are timed before a search that has a budget on it, and the winner when it is over."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from evaluator import DenseModel, Evaluator
from evaluator.latency import measure_latency, visits
from evaluator.timing import Bench, Timing
from search.config import RunConfig
from search.folder import RunFolder
from search.progress import Reporter
from search.session import open_dense
from space import Architecture, LatencyTable, build_space, milliseconds

TOLERATED = 0.1  # mean error of a table's sums, as a share, above which a person is told
_MODELS = 9  # whole models that a table is checked against
_STREAM = 41  # of random numbers


def timed_model(config: RunConfig, files: RunFolder, dense: DenseModel, reporter: Reporter) -> LatencyTable | None:
    """Return the timings of a run's sub-blocks: those in its folder, or where a budget asks for them, new ones.

    Args:
        config: the settings.
        files: where the table is kept.
        dense: the model, with nothing pruned.
        reporter: tells a person how far it is, and how good the table is.

    Raises:
        SettingError: the model cannot be timed so.
        MeasurementError: no time passes between two marks.
        RunFolderError: the table in the folder is damaged.
    """
    table = files.latency()
    if table is None and config.needs_latency:
        table = time_model(config, dense, reporter)
        files.keep_latency(table)
    elif table is not None and (elsewhere := _differing(table, _bench(config, dense))):
        reporter.say(f"The sub-blocks were timed with {elsewhere}; the budget goes by those timings")
    return table


def time_model(config: RunConfig, dense: DenseModel, reporter: Reporter) -> LatencyTable:
    """Time a model's sub-blocks, check the table and tell a person what came out; the arguments are as above."""
    settings, bench = config.latency, _bench(config, dense)
    free = build_space(dense.layout, width_step=config.space.width_step)
    rng = np.random.default_rng([config.seed, _STREAM])
    with reporter.stage("Timing sub-blocks", visits(free, settings.repeats, _MODELS), "models") as advance:
        table = measure_latency(bench, free, settings.repeats, _MODELS, rng, advance)
    for line in told(table):
        reporter.say(line)
    return table


def told(table: LatencyTable) -> Iterator[str]:
    """Say what a table is of and how good it is."""
    check = table.check
    assert check is not None
    yield (
        f"The dense model takes {milliseconds(table.dense)} for {table.conditions}; of {len(check.models)} whole "
        f"models the table is {100 * check.mean_error:.1f} % off (Kendall tau {check.kendall_tau:.2f})"
    )
    if check.mean_error > TOLERATED:
        busy = f"{os.getloadavg()[0]:.1f} processes wanted its {os.cpu_count()} processors"
        yield (
            f"That is more than {100 * TOLERATED:.0f} %, so a budget on latency is kept no better than that; if the "
            f"machine is busy ({busy}), stop, delete latency.json and begin again when it is not"
        )
    if table.layer_spread > TOLERATED:
        yield (
            f"Layers of the same widths differ by {100 * table.layer_spread:.0f} %, and the table has their mean; sums "
            "over all layers are less far off"
        )


def final_timings(
    judge: Evaluator, config: RunConfig, table: LatencyTable, winner: Architecture, reporter: Reporter
) -> dict[str, Any]:
    """Time the winner and the dense model for real and return what best.json says of latency.

    Args:
        judge: whose model it is; the dense one is installed in the end.
        config: the settings.
        table: what the budget went by.
        winner: of the search.
        reporter: tells a person how far it is.
    """
    bench, rounds = Bench(judge.dense, *config.latency.conditions, surgeon=judge.surgeon), 2 * config.latency.repeats
    architectures = {"dense": Architecture.dense(judge.dense.layout), "winner": winner}
    rng = np.random.default_rng([config.seed, _STREAM])
    with reporter.stage("Timing winner and dense model", rounds * len(architectures), "models") as advance:
        timings = bench.time(list(architectures.values()), rounds, rng, advance)
    bench.close()
    return {
        "conditions": asdict(table.conditions),
        "described": str(table.conditions),
        "check": asdict(table.check) if table.check else None,
        **{
            name: timing_record(table, architecture, timing)
            for (name, architecture), timing in zip(architectures.items(), timings, strict=True)
        },
    }


def timing_record(table: LatencyTable, architecture: Architecture, timing: Timing) -> dict[str, float]:
    """Return what a table says of an architecture beside what it took, in milliseconds."""
    expected, measured = table.of(architecture) / 1e6, 1e3 * timing.seconds
    return {
        "table_ms": round(expected, 4),
        "measured_ms": round(measured, 4),
        "standard_error_ms": round(1e3 * timing.standard_error, 4),
        "table_error": round(expected / measured - 1, 4),
    }


def time_architectures(
    files: RunFolder, architectures: Sequence[Architecture], reporter: Reporter
) -> tuple[LatencyTable, list[dict[str, float]]]:
    """Time architectures of a run's model for real, and first its sub-blocks where that was not done yet.

    Args:
        files: the run folder, which gets the table.
        architectures: what to time.
        reporter: tells a person how far it is.

    Returns:
        The table, and of each architecture what `timing_record` says.

    Raises:
        SettingError: the model cannot be timed so.
        RunFolderError: the folder is damaged or was written by another model.
    """
    config = files.config()
    dense = open_dense(config, files)
    files.keep_layout(config.model, dense.weights_hash, dense.layout, dense.dtype)
    table = files.latency()
    if table is None:
        table = time_model(config, dense, reporter)
        files.keep_latency(table)
    bench, rounds = _bench(config, dense), 2 * config.latency.repeats
    rng = np.random.default_rng([config.seed, _STREAM])
    with reporter.stage("Timing whole models", rounds * len(architectures), "models") as advance:
        timings = bench.time(architectures, rounds, rng, advance)
    return table, [timing_record(table, *pair) for pair in zip(architectures, timings, strict=True)]


def _bench(config: RunConfig, dense: DenseModel) -> Bench:
    return Bench(dense, *config.latency.conditions)


def _differing(table: LatencyTable, bench: Bench) -> str:
    """Return what a table was timed with that is not so here."""
    then, now = asdict(table.conditions), asdict(bench.conditions)
    return ", ".join(f"{name} {then[name]} (here {now[name]})" for name in then if then[name] != now[name])
