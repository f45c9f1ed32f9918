"""Accuracy on four tasks of what `tests.benchmarks.search` found, against allocations that no search chose.

    python -m tests.benchmarks.tasks [--quick] [--space NAME] [--seed N] [--strategy NAME ...] [--items N]
                                     [--device NAME]

ARC-Easy, PIQA, OpenBookQA and WinoGrande, zero-shot, in the harness' prompts; a sample of the items of each, drawn by
the seed, the same for all. An answer is the choice of the highest log-likelihood: the sum over its tokens, and for
`_by_bytes` that sum by the choice's bytes. WinoGrande's options are in the context, so both are the same there. Tasks
weigh equally in a mean. What is answered is kept in runs/benchmark-tasks, so that the benchmark goes on where it was
stopped.

| figure | meaning |
| --- | --- |
| `accuracy` | mean over the four tasks, with its standard error, by allocation; `_by_bytes` likewise |
| `less` | mean of each searched allocation less that of each that no search chose, with the error of the paired |
| | difference; the third number is the difference by the latter |
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from evaluator import DenseModel
from evaluator.harness.continuations import Continuations
from search.environment import commit
from search.folder import write_json
from search.progress import Reporter
from search.strategies import STRATEGIES
from space import Architecture
from tests.benchmarks.record import DATA, RESULTS, ROOT, finish
from tests.benchmarks.search import SEARCH, Bench, open_dense, prepared

TASKS = ("arc_easy", "piqa", "openbook_qa", "winogrande")
ITEMS = 1000
Item = tuple[list[tuple[str, str]], int]  # contexts with continuations, and which is right


def main() -> None:
    """Answer and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model and few items, in a minute")
    parser.add_argument("--space", default="widths_80")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strategy", action="append", choices=list(STRATEGIES), help="which; all without")
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--device", default="cpu", help="where the model is, e.g. cuda")
    options = parser.parse_args()
    count = 20 if options.quick else options.items
    folder = ROOT / "runs" / "benchmark-tasks" / f"{options.space}-{options.seed}{'-quick' if options.quick else ''}"
    answers: dict[str, dict[str, list[list[bool]]]] = {}
    dense = open_dense(options.quick, options.device)
    with prepared(options.space, options.seed, dense, SEARCH["predictor"], options.quick) as bench:
        for name, architecture in allocations(bench, options).items():
            for task in TASKS:
                file = folder / f"{architecture.fingerprint}-{task}-{count}.json"
                answers.setdefault(name, {})[task] = answered(bench, architecture, task, count, options.seed, file)
        plain = list(bench.baselines)
    details = {
        "seed": options.seed,
        "commit": commit(),
        "items": {task: len(next(iter(answers.values()))[task]) for task in TASKS},
        "by_task": {
            name: {task: np.mean(right, axis=0).round(4).tolist() for task, right in own.items()}
            for name, own in answers.items()
        },
    }
    row = f"{options.space}, seed {options.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / "rows.lock"):  # of calls beside this one
        kept = finished() if not options.quick else {"figures": {}, "rows": {}}
        kept["figures"][row], kept["rows"][row] = figures_of(answers, plain), details
        finish("tasks", kept["figures"], {"rows": kept["rows"]}, options.quick)


def finished() -> dict[str, dict[str, Any]]:
    """Return figures and rows of earlier calls."""
    file = RESULTS / "tasks.json"
    found = json.loads(file.read_text()) if file.exists() else {"figures": {}, "rows": {}}
    return {name: found[name] for name in ("figures", "rows")}


def allocations(bench: Bench, options: argparse.Namespace) -> dict[str, Architecture]:
    """Return the dense model, what no search chose, and what the benchmark `search` kept of each strategy."""
    found = dict(bench.baselines)
    file = RESULTS / "search.json"
    rows = json.loads(file.read_text())["rows"].get(options.space, {}) if file.exists() else {}
    for strategy in options.strategy or STRATEGIES:
        for row in rows.get(strategy, []):
            if row["seed"] == options.seed:
                found[strategy] = Architecture.from_dict(row["winner"])
    layers = bench.judge.dense.layout.layers  # a quick version's model has others than what was searched
    return {name: each for name, each in found.items() if len(each.layers) == layers}


def answered(
    bench: Bench, architecture: Architecture, task: str, count: int, seed: int, file: Path
) -> list[list[bool]]:
    """Return of each item whether it is answered rightly by sums and by bytes."""
    if not file.exists():
        bench.judge.surgeon.install(architecture)
        dense = bench.judge.dense
        items = read_items(task, count, seed)
        with Reporter().stage(f"{architecture.fingerprint} {task}", len(items), "items") as advance:
            pairs = [pair for choices, _ in items for pair in choices]
            sums = iter(log_likelihoods(dense, pairs))
            right = []
            for choices, gold in items:
                own = np.array([next(sums) for _ in choices])
                size = np.array([len(continuation.strip().encode()) for _, continuation in choices])
                right.append([bool(own.argmax() == gold), bool((own / size).argmax() == gold)])
            advance(len(items))
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"right": right})
    kept: list[list[bool]] = json.loads(file.read_text())["right"]
    return kept


def read_items(task: str, count: int, seed: int) -> list[Item]:
    """Return a sample of a task's items in the harness' prompts, the same for a seed."""
    lines = (DATA / "tasks" / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
    chosen = np.random.default_rng(seed).permutation(len(lines))[:count]
    return [item_of(task, json.loads(lines[index])) for index in sorted(chosen.tolist())]


def item_of(task: str, row: dict[str, Any]) -> Item:
    """Return an item as contexts with continuations, and which is right."""
    if "context_options" in row:
        return [(context, f" {row['continuation']}") for context in row["context_options"]], row["gold"]
    ending = "" if task == "openbook_qa" else "\nAnswer:"
    return [(row["query"].rstrip("\n") + ending, f" {choice}") for choice in row["choices"]], row["gold"]


def log_likelihoods(dense: DenseModel, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Return the log-likelihood of each continuation after its context, nats."""
    encoded = [(encode(dense, context), encode(dense, context + continuation)) for context, continuation in pairs]
    apart = [(context, whole[len(context) :]) for context, whole in encoded]
    # What is installed in place has no cache that knows which layers are without attention, so nothing is shared.
    return [found.value for found in Continuations(dense, share=False).score(apart)]


def encode(dense: DenseModel, text: str) -> list[int]:
    """Return a text's token ids, with no special tokens."""
    ids: list[int] = dense.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def figures_of(answers: dict[str, dict[str, list[list[bool]]]], plain: Sequence[str]) -> dict[str, Any]:
    """Return means over tasks and paired differences, each with its standard error."""
    figures: dict[str, Any] = {"less": {}}
    for column, suffix in enumerate(("", "_by_bytes")):
        own = {name: [np.array(each[task], dtype=float)[:, column] for task in TASKS] for name, each in answers.items()}
        figures[f"accuracy{suffix}"] = {name: mean_and_error(each) for name, each in own.items()}
        means = figures[f"accuracy{suffix}"]
        figures["less"] |= {
            f"{name} less {other}{suffix}": [
                *(less := mean_and_error([a - b for a, b in zip(own[name], own[other], strict=True)])),
                round(less[0] / means[other][0], 4),
            ]
            for name in own
            if name not in plain
            for other in plain
        }
    return figures


def mean_and_error(tasks: Sequence[np.ndarray]) -> list[float]:
    """Return the mean of the tasks' means and its standard error over their items."""
    error = np.sqrt(sum(each.var(ddof=1) / len(each) for each in tasks)) / len(tasks)
    return [round(float(np.mean([each.mean() for each in tasks])), 4), round(float(error), 4)]


if __name__ == "__main__":
    main()
