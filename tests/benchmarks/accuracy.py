"""Accuracy in tasks: ours against the harness' own code, in what time, and the first paper's table reproduced.

    python -m tests.benchmarks.accuracy [--quick] [--part table|harness|speed ...] [--row NAME ...] [--device NAME]
                                        [--kept]

SmolLM2-135M; tasks by lm-eval over local files. What is finished is kept in the result, and what was answered in
runs/benchmark-accuracy, so that the benchmark goes on where it was stopped.

| part | what |
| --- | --- |
| `table` | at 80 % of the decoder's parameters: perplexity on 16,384 tokens of WikiText-2 test, all items of the |
| | preset commonsense (zero-shot), 4,000 items of MMLU (five-shot), drawn by the seed over all subjects |
| `harness` | the dense model in float32, 200 items of a task: our answers against the harness' own task over the same |
| | rows, answered by its own class for transformers models |
| `speed` | the dense model, 200 items of each task of the preset and 40 of MMLU, with and without sharing what is |
| | common |

| row of the table | widths | scores, update |
| --- | --- | --- |
| `uniform` | the same everywhere | Wanda, sliced only |
| `taylor` | whole first 4 and last 2 layers, as LLM-Pruner | first-order Taylor, sliced only |
| `owl` | by OWL's outliers | Wanda, sliced only |
| `uniform_update`, `whole_ends_update`, `owl_update` | as above | Wanda, least squares |
| `ours` | what `tests.benchmarks.search` found by the predictor, on training text and C4 | Wanda, least squares |

| figure | meaning |
| --- | --- |
| `table` | perplexity, mean accuracy of the preset and accuracy in MMLU, each with its standard error |
| `flips` | share of items, against the dense model, that went from right to wrong or back: of the preset, of MMLU, |
| | and of each task |
| `ours_less` | ours less each other row: change of perplexity, points of accuracy, each with its standard error and p |
| `harness` | by task, largest difference of a log-likelihood, items answered differently, difference of accuracies |
| `half_preset_seconds`, `sharing_speedup` | of the three slowest tasks; and of all six, times as fast as without |
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from filelock import FileLock

from evaluator import DenseModel, allocation
from evaluator.harness.answers import Score
from evaluator.harness.continuations import Continuations
from evaluator.harness.evaluation import answer, sample_of, set_exams
from evaluator.harness.model import HarnessModel
from evaluator.harness.tasks import PRESETS, Asked, quiet_harness
from search.environment import commit, device_name
from search.progress import Reporter
from space import Architecture, Criterion
from tests.benchmarks.accuracy_figures import figures_of
from tests.benchmarks.record import DATA, RESULTS, ROOT, finish
from tests.benchmarks.search import SEARCH, Bench, finished, open_dense, prepared
from tests.evaluator.own_tasks import own_task

SEED, MMLU_ITEMS, ITEMS = 0, 4000, 200
MMLU_TIMED = 40  # items: without sharing each repeats its examples four times
ROWS = ("dense", "uniform", "ours", "taylor", "owl", "uniform_update", "whole_ends_update", "owl_update")
SLICED = {"uniform": "wanda", "taylor": "taylor", "owl": "wanda"}  # rows without an update, and their scores
PARTS = ("table", "harness", "speed")


def main() -> None:
    """Measure what is missing and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model and few items, in a minute")
    parser.add_argument("--part", action="append", choices=PARTS, help="which; all without")
    parser.add_argument("--row", action="append", choices=ROWS, help="of the table; all without")
    parser.add_argument("--device", default="cpu", help="where the model is, e.g. cuda")
    parser.add_argument("--kept", action="store_true", help="measure nothing more: the figures of what is there")
    options = parser.parse_args()
    name = "quick" if options.quick else "full"
    kept = _Kept(options.quick, ROOT / "runs" / "benchmark-accuracy" / name)
    parts = () if options.kept else options.part or PARTS
    dense = open_dense(options.quick, options.device) if parts else None
    if dense is not None and "harness" in parts:
        for task in ("arc_easy", "piqa", "openbookqa", "winogrande", "boolq", "copa"):
            kept.row(f"harness {task}", lambda task=task: compared(dense, task, options.quick))
    if dense is not None and "speed" in parts:
        kept.row("speed", lambda: timed(dense, kept.folder, options.quick))
    if dense is not None and "table" in parts:
        for row in options.row or ROWS:
            kept.row(f"table {row}", lambda row=row: measured(dense, row, kept.folder, options.quick))
    kept.finish()


class _Kept:
    """The rows so far."""

    def __init__(self, quick: bool, folder: Path) -> None:
        self.quick, self.folder = quick, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, Any] = self._read()

    def _read(self) -> dict[str, Any]:
        file = RESULTS / "accuracy.json"
        found: dict[str, Any] = {} if self.quick or not file.exists() else json.loads(file.read_text())["rows"]
        return found

    def row(self, name: str, make: Callable[[], dict[str, Any]]) -> None:
        """Add a row, unless there is one; all are kept at once."""
        if name in self.rows:
            return
        found = {**make(), "commit": commit()}
        with FileLock(self.folder / "rows.lock"):  # of calls beside this one
            self.rows = {**self.rows, **self._read(), name: found}
            if not self.quick:
                self.finish()

    def finish(self) -> None:
        """Keep the rows and print the figures."""
        finish("accuracy", figures_of(self.rows), {"seed": SEED, "rows": self.rows}, self.quick)


def measured(dense: DenseModel, row: str, folder: Path, quick: bool) -> dict[str, Any]:
    """Return a row of the table."""
    mmlu, every = (20, 20) if quick else (MMLU_ITEMS, None)
    exams = set_exams(PRESETS["commonsense"], DATA / "tasks", every, SEED)
    exams += set_exams([Asked("mmlu", 5)], DATA / "tasks", mmlu, SEED)
    with prepared("widths_80", SEED, dense, SEARCH["predictor"], quick) as bench, _pruning(bench, row):
        architecture = _architecture(bench, row, quick)
        [text] = bench.judge.measure([architecture], "report", "report")
        model = dense if row == "dense" else bench.judge.model_of(architecture)
        with Reporter().stage(f"{row}: asking", sum(exam.requests for exam in exams), "requests") as advance:
            scores = answer(model, exams, folder / "answers", advance)
        parameters = sum(weight.numel() for layer in model.layers for weight in layer.parameters())
    return {
        "architecture": architecture.to_dict(),
        "fingerprint": architecture.fingerprint,
        "criterion": str(_criterion(row)),
        "decoder_parameters": parameters,
        "weights_hash": model.weights_hash,
        "dtype": model.dtype,
        "device": device_name(dense),
        "text": {**text.to_dict(), "nll_blocks": [round(each, 5) for each in text.nll_blocks]},
        "tasks": [score.to_dict() for score in scores],
        "right": {score.task: "".join(str(int(value)) for value in score.values) for score in scores},
        "items": {score.task: _items(score) for score in scores},
    }


def _items(score: Score) -> str:
    """Return what identifies the items that were answered, for comparing rows."""
    return hashlib.sha256(json.dumps(score.items).encode()).hexdigest()[:16]


def _criterion(row: str) -> Criterion:
    return Criterion(SLICED[row], "wanda", "none") if row in SLICED else Criterion()


@contextmanager
def _pruning(bench: Bench, row: str) -> Iterator[None]:
    if row not in SLICED:
        yield
        return
    with bench.judge.pruning_by(_criterion(row)):
        yield


def _architecture(bench: Bench, row: str, quick: bool) -> Architecture:
    """Return what a row keeps of each layer."""
    budgets = bench.config.budgets
    if row.startswith("owl"):
        return allocation.owl_widths(bench.judge.surgeon, budgets)
    if row in ("taylor", "whole_ends_update"):
        return bench.baselines["uniform_whole_ends"]
    if row != "ours":
        return bench.baselines[row.removesuffix("_update")]
    rows = {} if quick else finished().get("widths_80", {})
    found = [each["winner"] for each in rows.get("predictor", []) if each["seed"] == SEED]
    return Architecture.from_dict(found[0]) if found else bench.baselines["uniform_whole_ends"]


def compared(dense: DenseModel, task: str, quick: bool) -> dict[str, Any]:
    """Return how far our answers are from those of the harness' own task and class, in float32."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    count = 10 if quick else ITEMS
    own = replace(dense, model=dense.model.float())
    [exam] = set_exams([Asked(task)], DATA / "tasks", count, SEED)
    [paper] = exam.papers
    with TemporaryDirectory() as scratch:
        theirs = own_task(task, DATA / "tasks", Path(scratch))
        [score] = answer(own, [exam], Path(scratch) / "answers")
        with quiet_harness():
            model = HFLM(pretrained=own.model, tokenizer=own.tokenizer, batch_size=8, max_length=own.longest_sequence)
            found = evaluate(
                model,
                {"tasks": {task: theirs}, "groups": {}},
                samples={task: sample_of(paper.items, paper.of) or []},
                bootstrap_iters=0,
            )
    dense.model.to(getattr(torch, dense.dtype))
    rows = sorted(found["samples"][task], key=lambda each: each["doc_id"])
    [part] = score.parts
    pairs = [
        (mine, their)
        for own_item, row in zip(part.loglikelihoods, rows, strict=True)
        for mine, (their, _) in zip(own_item, row["filtered_resps"], strict=True)
    ]
    return {
        "items": len(rows),
        "largest_loglikelihood_difference": max(abs(mine - their) for mine, their in pairs),
        "answered_differently": sum(
            row[metric] != value
            for metric, values in part.scores.items()
            for row, value in zip(rows, values, strict=True)
        ),
        "accuracy": score.accuracy.value,
        "accuracy_of_the_harness": found["results"][task]["acc,none"],
        "standard_error": score.accuracy.standard_error,
    }


def timed(dense: DenseModel, folder: Path, quick: bool) -> dict[str, Any]:
    """Return seconds of each task, fresh, with and without sharing what is common."""
    exams = set_exams(PRESETS["commonsense"], DATA / "tasks", 10 if quick else ITEMS, SEED)
    exams += set_exams([Asked("mmlu", 5)], DATA / "tasks", 10 if quick else MMLU_TIMED, SEED)
    asking = HarnessModel(dense)
    found: dict[str, Any] = {}
    for exam in exams:
        pairs = []
        for paper in exam.papers:
            with quiet_harness():
                paper.task.set_fewshot_seed(seed=1234)
                paper.task.build_all_requests(samples=sample_of(paper.items, paper.of))
            pairs += [asking.encoded(*instance.args) for instance in paper.task.instances]
        seconds, tokens = {}, {}
        for share in (True, False):
            scorer = Continuations(dense, share=share)
            scorer.score(pairs[:8])  # what is slow once
            before, started = scorer.tokens, time.perf_counter()
            scorer.score(pairs)
            seconds[share], tokens[share] = time.perf_counter() - started, scorer.tokens - before
        found[exam.asked.task] = {
            "items": sum(len(paper.items) for paper in exam.papers),
            "seconds": round(seconds[True], 2),
            "seconds_without": round(seconds[False], 2),
            "tokens": tokens[True],
            "tokens_without": tokens[False],
        }
        print(f"{exam.asked.task}: {found[exam.asked.task]}", flush=True)
    return {"tasks": found, "device": device_name(dense), "threads": torch.get_num_threads()}


if __name__ == "__main__":
    main()
