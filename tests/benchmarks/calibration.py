"""Which text a model should be calibrated on: common sources, text of its own, filtered or not, and a mix.

    python -m tests.benchmarks.calibration [--quick] [--seed N] [--device NAME] [--source NAME ...] [--part NAME ...]
                                           [--draws N] [--kept]

SmolLM2-135M; calibration sets of 32 x 512 tokens. Perplexity on 16,384 tokens each of WikiText-2 test and of C4 that no
set is drawn from; accuracy on 200 items each of ARC-Easy, PIQA, OpenBookQA and WinoGrande, zero-shot, the same for all.
Figures are means over draws of the sets with the deviation of a draw; rows are kept in runs/benchmark-calibration and
in the result, each with its device, so that the benchmark goes on where it was stopped, on another machine as well.

| part | sources, settings and draws |
| --- | --- |
| main | the six sources; Wanda and SparseGPT at 60 % and 2:4, 5 draws |
| more | the same at 50 %, under DSnoT and OWL at 60 %, and widths at 80 %, 2 draws |
| ways | of writing and filtering text of one's own: Wanda at 60 %, widths at 80 %, 2 draws |

| figure | meaning |
| --- | --- |
| `perplexity`, `accuracy` | by setting and source, with `_deviation`; `all` is the geometric mean of the texts |
| `winner` | by setting, the source of the lowest geometric mean of perplexities, and of the highest accuracy |
| `self_filtered_less` | accuracy of filtered text of the model's own less that of each common source, paired by draw, |
| | mean over the settings and draws of a part; the standard error is that over draws, in points; the logarithm of |
| | perplexity likewise, of both texts and (`elsewhere`) of the one that is not of the other source's kind |
| `generation` | tokens a second, of a batch and of one sequence at a time, and minutes for 128 x 512 tokens |
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluator import SELF, Calibration, DenseModel, Evaluator, Filters, Writing
from evaluator.generation import CALIBRATION, write_documents
from evaluator.sources import tokenise
from search.calibration_setting import Setting
from search.calibration_study import Row, Study, described, row_file, run_study, summary, winners
from search.environment import device_name
from search.progress import Reporter
from space import Architecture
from tests.benchmarks.record import DATA, RESULTS, ROOT, finish
from tests.benchmarks.search import open_dense
from tests.benchmarks.tasks import TASKS, Item, log_likelihoods, read_items

LENGTH, SEQUENCES, REPORT, ITEMS = 512, 32, 32, 200
C4, WIKIPEDIA = str(DATA / "text" / "c4.jsonl"), str(DATA / "text" / "wikipedia.txt")
WIKITEXT = str(DATA / "text" / "wikitext2.train-first1mb.txt")
FILTERED = Filters(perplexity=0.2)
OWN = ((SELF, 1.0),)
# Common sources, and which text is not of their kind.
COMMON = {"c4": "wikitext2_test", "wikipedia": "c4_held_out", "wikitext2": "c4_held_out"}
SOURCES = {
    "c4": Calibration(((C4, 1.0),)),
    "wikipedia": Calibration(((WIKIPEDIA, 1.0),)),
    "wikitext2": Calibration(((WIKITEXT, 1.0),)),
    "self": Calibration(OWN),
    "self_filtered": Calibration(OWN, filters=FILTERED),
    "mix": Calibration(((C4, 1.0), (WIKIPEDIA, 1.0), (WIKITEXT, 1.0), (SELF, 1.0)), filters=FILTERED),
}
PAPER = Writing(512, (0.6, 0.8), WIKIPEDIA, None, 0.95, 50, 1.1)
PLAIN = Writing(512, (1.0,), WIKIPEDIA)
WAYS = {
    "self_paper": Calibration(OWN, PAPER, FILTERED),
    "self_paper_unfiltered": Calibration(OWN, PAPER),
    "self_paper_64": Calibration(OWN, replace(PAPER, prefix_tokens=64), FILTERED),
    "self_paper_t1": Calibration(
        OWN, replace(PAPER, temperatures=(1.0,), top_p=1.0, top_k=0, repetition_penalty=1.0), FILTERED
    ),
    "self_bos": Calibration(OWN, replace(CALIBRATION, prefix="bos"), FILTERED),
    "self_t08": Calibration(OWN, replace(CALIBRATION, temperatures=(0.8,)), FILTERED),
    "self_512": Calibration(OWN, replace(CALIBRATION, document=512), FILTERED),
    "self_half": Calibration(OWN, filters=Filters(perplexity=0.5)),
    "self_and_c4": Calibration((*OWN, (C4, 1.0)), filters=FILTERED),
}
MAIN = ("wanda:0.6", "sparsegpt:0.6", "wanda:2:4", "sparsegpt:2:4")
MORE = ("wanda:0.5", "sparsegpt:0.5", "dsnot:0.6", "owl-wanda:0.6", "wanda:parameters=0.8")
FEW = ("wanda:0.6", "wanda:parameters=0.8")
PARTS = {"main": (SOURCES, MAIN, 5), "more": (SOURCES, MORE, 2), "ways": (WAYS, FEW, 2)}


def main() -> None:
    """Measure what is missing and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model, in a minute or two, not recorded")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="where the model is, e.g. cuda")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="which; all without")
    parser.add_argument("--source", action="append", choices=[*SOURCES, *WAYS], help="which to measure; all without")
    parser.add_argument("--draws", type=int, default=99, help="at most so many, those that there are first")
    parser.add_argument("--kept", action="store_true", help="measure nothing more: the figures of what is there")
    options = parser.parse_args()
    quick, folder = options.quick, ROOT / "runs" / f"benchmark-calibration{'-quick' if options.quick else ''}"
    dense = open_dense(quick, options.device)
    figures: dict[str, Any] = {}
    details: dict[str, Any] = {"seed": options.seed, "parts": {}}
    for part, (sources, settings, draws) in PARTS.items():
        study, numbers = _study(dense, sources, settings, options.seed, quick), range(2 if quick else draws)
        _restore(dense, study, part, folder, quick)
        if part in (options.part or PARTS) and not options.kept:
            asked = {name: each for name, each in sources.items() if name in (options.source or sources)}
            chosen = replace(study, sources=asked)
            run_study(dense, chosen, numbers[: options.draws], folder, Reporter(), _Tasks(10 if quick else ITEMS))
        rows = _kept(dense, study, numbers, folder)
        if rows:
            figures[part] = figures_of(rows)
            missing = len(sources) * len(settings) * len(numbers) - len(rows)
            details["parts"][part] = {**described(study, numbers), "rows_missing": missing, "rows": rows}
    if not options.source:
        figures["generation"] = _generation(dense, folder, quick, options.kept)
    finish("calibration", figures, details, quick)


def _kept(dense: DenseModel, study: Study, draws: Sequence[int], folder: Path) -> list[Row]:
    """Return the rows that are there."""
    key = study.key(dense)
    cells = [(source, draw, setting) for source in study.sources for setting in study.settings for draw in draws]
    files = [row_file(folder, key, *cell, study.sources[cell[0]]) for cell in cells]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def _restore(dense: DenseModel, study: Study, part: str, folder: Path, quick: bool) -> None:
    """Put the rows of the result where the study looks for them, unless there are some already."""
    file = RESULTS / "calibration.json"
    if quick or not file.exists():
        return
    settings = {str(setting): setting for setting in study.settings}
    for row in json.loads(file.read_text())["parts"].get(part, {"rows": []})["rows"]:
        source = row["source"]
        place = row_file(folder, study.key(dense), source, row["draw"], settings[row["setting"]], study.sources[source])
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(row))


def _study(
    dense: DenseModel, sources: Mapping[str, Calibration], settings: Sequence[str], seed: int, quick: bool
) -> Study:
    """Return a part: C4 has a half to calibrate on and one to report on."""
    length, sequences, report = (64, 4, 4) if quick else (LENGTH, SEQUENCES, REPORT)
    c4 = tokenise(dense, C4)
    c4 = c4[: len(c4) // length * length].view(-1, length)
    test = tokenise(dense, str(DATA / "text" / "wikitext2.test.txt"))[: report * length].view(report, length)
    half = len(c4) // 2
    # Of one document on either side of the middle a part would be in both.
    texts = {"wikitext2_test": test, "c4_held_out": c4[half + 8 : half + 8 + report]}
    return Study(sources, [Setting.parse(each) for each in settings], texts, sequences, length, seed, {C4: c4[:half]})


class _Tasks:
    """Measures the mean accuracy over tasks of what is installed."""

    def __init__(self, count: int) -> None:
        self._items: dict[str, list[Item]] = {task: read_items(task, count, 0) for task in TASKS}

    def __call__(self, judge: Evaluator, architecture: Architecture, draw: int) -> dict[str, Any]:
        own = {task: self._accuracy(judge.dense, items) for task, items in self._items.items()}
        return {"accuracy": float(np.mean(list(own.values()))), "tasks": own}

    def _accuracy(self, dense: DenseModel, items: Sequence[Item]) -> float:
        sums = iter(log_likelihoods(dense, [pair for choices, _ in items for pair in choices]))
        return float(np.mean([np.argmax([next(sums) for _ in choices]) == gold for choices, gold in items]))


def figures_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the figures of one part."""
    table = summary(rows)
    names = ("draws", "perplexity", "perplexity_deviation", "accuracy", "accuracy_deviation")
    found: dict[str, Any] = {
        name: {setting: {source: each[name] for source, each in own.items()} for setting, own in table.items()}
        for name in names
    }
    best = {setting: max(own, key=lambda source: own[source]["accuracy"]) for setting, own in table.items()}
    found["winner"] = {"perplexity": winners(table), "accuracy": best}
    found["self_filtered_less"] = {other: _less(rows, other) for other in COMMON}
    return found


def _less(rows: Sequence[Row], other: str) -> dict[str, list[float]]:
    """Return by how much filtered text of the model's own is better, paired by draw and setting: mean and error."""
    values: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        values.setdefault((row["setting"], row["source"]), {})[row["draw"]] = row
    points: dict[int, list[float]] = {}  # by draw, of all settings: those of one draw share its calibration sets
    logs: dict[int, list[float]] = {}
    elsewhere: dict[int, list[float]] = {}
    apart = COMMON[other]
    for (setting, source), own in values.items():
        theirs = values.get((setting, other), {})
        for draw in own if source == "self_filtered" else ():
            if draw in theirs:
                points.setdefault(draw, []).append(100 * (own[draw]["accuracy"] - theirs[draw]["accuracy"]))
                logs.setdefault(draw, []).append(_log(own[draw]) - _log(theirs[draw]))
                ratio = own[draw]["perplexity"][apart] / theirs[draw]["perplexity"][apart]
                elsewhere.setdefault(draw, []).append(float(np.log(ratio)))
    if len(points) < 2:
        return {}  # nothing to tell an error from
    return {
        "accuracy_points": _mean_and_error(points),
        "log_perplexity": _mean_and_error(logs),
        "log_perplexity_elsewhere": _mean_and_error(elsewhere),
    }


def _log(row: Row) -> float:
    return float(np.mean(np.log(list(row["perplexity"].values()))))


def _mean_and_error(by_draw: Mapping[int, Sequence[float]]) -> list[float]:
    """Return the mean of the draws' means and its standard error over draws."""
    means = [float(np.mean(values)) for values in by_draw.values()]
    return [round(float(np.mean(means)), 4), round(float(np.std(means, ddof=1) / np.sqrt(len(means))), 4)]


def _generation(dense: DenseModel, folder: Path, quick: bool, kept: bool) -> dict[str, Any]:
    """Return the speed of writing in batches and one at a time, on this machine; measured once."""
    file = folder / f"generation-{dense.model.device.type}.json"
    if kept and not file.exists():
        return {}
    if not file.exists():
        documents, alone = (32, 2) if quick else (128, 4)
        speeds = {}
        for name, count in (("one_at_a_time", alone), ("batched", documents)):
            with tempfile.TemporaryDirectory() as cache:
                started = time.perf_counter()
                for first in range(count if name == "one_at_a_time" else 1):
                    size = 1 if name == "one_at_a_time" else count
                    write_documents(dense, size, CALIBRATION.document, CALIBRATION, 0, Path(cache), first=first)
                speeds[name] = count * CALIBRATION.document / (time.perf_counter() - started)
        file.write_text(json.dumps(speeds))
    speeds = json.loads(file.read_text())
    minutes = 128 * 512 / speeds["batched"] / 60
    ratio = speeds["batched"] / speeds["one_at_a_time"]
    return {
        "device": device_name(dense),
        **{k: round(v, 1) for k, v in speeds.items()},
        "speedup": round(ratio, 2),
        "minutes": round(minutes, 2),
    }


if __name__ == "__main__":
    main()
