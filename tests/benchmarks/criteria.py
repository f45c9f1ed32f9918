"""How good each criterion is on a real model, nothing searched, and how long its levels take to prepare.

    python -m tests.benchmarks.criteria [--quick] [--seed N]

SmolLM2-135M, calibrated on WikiText-2 training text and measured on WikiText-2 test: sparsities at 50, 60, 70 % and
2:4, widths at 80 % of the decoder's parameters with and without an update, uniform and with whole ends, and 3 and 6 of
30 blocks removed. Everything measured is kept in runs/benchmark-criteria, so that what was stopped goes on.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from evaluator import (
    DenseModel,
    Evaluator,
    Measurement,
    PairStore,
    SplitSizes,
    Texts,
    allocation,
    open_model,
    prepare_texts,
)
from evaluator.accuracy import BATCH_TOKENS
from evaluator.pruning import Levels, Surgeon, iterate_batches
from evaluator.pruning.depth import angular_distances
from space import (
    Architecture,
    Budget,
    Criterion,
    LayerArchitecture,
    Layout,
    Update,
    Weights,
    Widths,
    cost_of,
    uniform_widths,
    whole_ends,
)
from tests.benchmarks.record import DATA, ROOT, arguments, finish

SPARSITIES = (0.5, 0.6, 0.7)
WEIGHTS: tuple[Weights, ...] = get_args(Weights)
WIDTHS: tuple[Widths, ...] = get_args(Widths)
UPDATES: tuple[Update, ...] = ("none", "least_squares", "bias")  # the last is FLAP's own
BLOCKS = (3, 6)
# Holds what any criterion here needs, so that calibrating is done once.
EVERYTHING = Criterion(widths="taylor", weights="sparsegpt")


@dataclass(frozen=True)
class Group:
    """Rows of the table that share a criterion."""

    kind: str  # sparsity, widths or depth
    name: str
    criterion: Criterion
    levels: Callable[[], dict[str, Architecture]]  # called while the criterion is the evaluator's


def main() -> None:
    """Measure all groups, time the preparation, and print perplexities."""
    options = arguments(__doc__ or "")
    quick = options.quick
    folder = ROOT / "runs" / ("benchmark-criteria-quick" if quick else "benchmark-criteria")
    dense = open_model(str(DATA / "models" / "stories260K") if quick else "smollm2-135m")
    texts = _texts(dense, folder, quick, options.seed)
    judge = Evaluator(dense, texts, PairStore(folder / "pairs.db"), criterion=EVERYTHING, folder=folder)
    rows = []
    for group in _groups(judge):
        with judge.pruning_by(group.criterion):
            for level, architecture in group.levels().items():
                [measured] = judge.measure([architecture], "report", group.kind)
                rows.append(_row(group, level, architecture, measured))
                print(f"{group.kind:9} {group.name:28} {level:12} {measured.perplexity:,.1f}", flush=True)
    figures = {"perplexity": _table(rows), "prepare_seconds": _prepare_seconds(dense, texts, folder)}
    details = {"seed": options.seed, "texts": texts.sources, "protocol": judge.describe()["report"], "rows": rows}
    finish("criteria", figures, details, quick)


def _texts(dense: DenseModel, folder: Path, quick: bool, seed: int) -> Texts:
    texts = DATA / "text"
    if quick:
        sizes = SplitSizes(calibrate=16, search=1, validate=1, report=4, sequence_length=256)
        source, report = texts / "tinystories.txt", None
    else:
        sizes = SplitSizes(calibrate=128, search=1, validate=1, report=32)
        source, report = texts / "wikitext2.train-first1mb.txt", str(texts / "wikitext2.test.txt")
    folder.mkdir(parents=True, exist_ok=True)
    return prepare_texts(dense, str(source), sizes, seed, folder / "texts", report)


def _groups(judge: Evaluator) -> Iterator[Group]:
    layout = judge.dense.layout
    yield Group("dense", "dense", Criterion(), lambda: {"": Architecture.dense(layout)})
    for weights in WEIGHTS:
        criterion = Criterion(weights=weights)
        uniform = {f"{sparsity:.0%}": _uniform(layout, sparsity) for sparsity in SPARSITIES}
        yield Group("sparsity", weights, criterion, uniform.copy)
        yield Group("sparsity", weights, replace(criterion, pattern="2:4"), lambda: {"2:4": _uniform(layout, 0.5)})
    for weights in ("wanda", "sparsegpt"):
        for name, rule in (("OWL", allocation.owl_sparsity), ("global threshold", allocation.global_sparsity)):
            yield Group("sparsity", f"{weights}, {name}", Criterion(weights=weights), partial(_uneven, judge, rule))
    for widths in WIDTHS:
        updates: tuple[Update, ...] = (
            ("none", "least_squares", "bias") if widths == "flap" else ("none", "least_squares")
        )
        for update in updates:
            name = widths if update == "none" else f"{widths} + {update.replace('_', ' ')}"
            criterion = Criterion(widths=widths, update=update)
            yield Group("widths", name, criterion, partial(_shapes, judge, everywhere=update != "none"))
    for name in ("block influence", "angular distance"):
        yield Group("depth", name, Criterion(), partial(_depths, judge, name))


def _uniform(layout: Layout, sparsity: float) -> Architecture:
    return Architecture((LayerArchitecture(layout.kv_groups, layout.mlp_width, sparsity, sparsity),) * layout.layers)


def _uneven(judge: Evaluator, rule: Callable[..., Architecture]) -> dict[str, Architecture]:
    """Return allocations with as many zeros as uniform sparsity has."""
    layout, found = judge.dense.layout, {}
    for sparsity in SPARSITIES:
        weights = cost_of(layout, _uniform(layout, sparsity)).nonzero_parameters
        found[f"{sparsity:.0%}"] = rule(judge.surgeon, [Budget("nonzero_parameters", weights)])
    return found


def _shapes(judge: Evaluator, everywhere: bool) -> dict[str, Architecture]:
    layout, budgets = judge.surgeon.layout, [Budget("parameters", 0.8)]
    found = {
        "uniform": uniform_widths(layout, budgets),
        "whole ends": uniform_widths(layout, budgets, whole_ends(layout)),
    }
    return found | ({"global": allocation.global_threshold(judge.surgeon, budgets)} if everywhere else {})


def _depths(judge: Evaluator, name: str) -> dict[str, Architecture]:
    layout, found = judge.dense.layout, {}
    for count in BLOCKS if layout.layers >= 12 else (1,):
        if name == "block influence":
            blocks = allocation.least_influential(judge.surgeon, count)
        else:
            judge.surgeon.restore()
            batches = iterate_batches(judge.texts.tokens["calibrate"], BATCH_TOKENS)
            distances = angular_distances(judge.dense.decoder, list(judge.dense.layers), batches, count)
            blocks = allocation.least_turning(distances, count)
        found[f"{count} of {layout.layers}"] = allocation.without_blocks(layout, blocks)
    return found


def _row(group: Group, level: str, architecture: Architecture, measured: Measurement) -> dict[str, Any]:
    named = {"kind": group.kind, "name": group.name, "level": level, "criterion": str(group.criterion)}
    return {**named, "architecture": architecture.to_dict(), **measured.to_dict()}


def _table(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    table: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        table.setdefault(row["kind"], {}).setdefault(row["name"], {})[row["level"]] = float(f"{row['perplexity']:.4g}")
    return table


def _prepare_seconds(dense: DenseModel, texts: Texts, folder: Path) -> dict[str, float]:
    """Return the seconds from a dense model to all levels of a search, calibration included, kept from run to run."""
    kept = folder / "prepare.json"
    seconds: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}
    layout = dense.layout
    step = max(1, layout.mlp_width // 12)
    widths = [LayerArchitecture(layout.kv_groups, width) for width in range(step, layout.mlp_width, step)]
    widths += [LayerArchitecture(groups, layout.mlp_width) for groups in range(1, layout.kv_groups)]
    sparse = [LayerArchitecture(layout.kv_groups, layout.mlp_width, s, s) for s in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)]
    for name, criterion, levels in (
        ("wanda, widths", Criterion(update="none"), widths),
        ("wanda + least squares, widths", Criterion(), widths),
        ("wanda, sparsities", Criterion(update="none"), sparse),
        ("sparsegpt, sparsities", Criterion(weights="sparsegpt", update="none"), sparse),
    ):
        if name in seconds:
            continue
        started = time.perf_counter()
        judge = Evaluator(dense, texts, PairStore(folder / "pairs.db"), criterion=criterion)
        surgeon = Surgeon(dense.layers, layout, judge.surgeon.statistics, criterion, Levels(folder / "timed", 2**28))
        surgeon.prepare([Architecture((level,) * layout.layers) for level in levels])
        seconds[name] = round(time.perf_counter() - started, 1)
        kept.write_text(json.dumps(seconds))
        print(f"prepared {name}: {seconds[name]} s", flush=True)
    return seconds


if __name__ == "__main__":
    main()
