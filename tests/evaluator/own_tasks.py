"""The harness' own tasks, by its own definitions and its own model class, over local rows in the form of the hub's."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

LETTERS = ["A", "B", "C", "D", "E"]
SPLITS = ("train", "validation", "test", "dev")  # a definition names what it wants; all are the same here, but MMLU's


def arc_easy(row: dict[str, Any]) -> dict[str, Any]:
    """As allenai/ai2_arc has it."""
    labels = LETTERS[: len(row["choices"])]
    return {
        "question": row["query"].removeprefix("Question: "),
        "choices": {"text": row["choices"], "label": labels},
        "answerKey": labels[row["gold"]],
    }


def piqa(row: dict[str, Any]) -> dict[str, Any]:
    """As baber/piqa has it."""
    goal = row["query"].removeprefix("Question: ").removesuffix("\n")
    return {"goal": goal, "sol1": row["choices"][0], "sol2": row["choices"][1], "label": row["gold"]}


def openbookqa(row: dict[str, Any]) -> dict[str, Any]:
    """As allenai/openbookqa has it."""
    labels = LETTERS[: len(row["choices"])]
    return {
        "question_stem": row["query"],
        "choices": {"text": row["choices"], "label": labels},
        "answerKey": labels[row["gold"]],
    }


def winogrande(row: dict[str, Any]) -> dict[str, Any]:
    """As allenai/winogrande has it."""
    one, other = row["context_options"]
    common = os.path.commonprefix([one, other])  # noqa: RUF071  of strings, not of paths
    return {
        "sentence": f"{common}_ {row['continuation']}",
        "option1": one.removeprefix(common),
        "option2": other.removeprefix(common),
        "answer": str(row["gold"] + 1),
    }


def boolq(row: dict[str, Any]) -> dict[str, Any]:
    """As aps/super_glue has it."""
    passage, question = row["query"].removeprefix("Passage: ").rsplit("\nQuestion: ", 1)
    return {"passage": passage, "question": question.removesuffix("?"), "label": row["gold"]}


def copa(row: dict[str, Any]) -> dict[str, Any]:
    """As aps/super_glue has it."""
    premise, connector = row["query"].rsplit(", ", 1)
    return {
        "premise": f"{premise}.",
        "question": {"therefore": "effect", "because": "cause"}[connector],
        "choice1": row["choices"][0],
        "choice2": row["choices"][1],
        "label": row["gold"],
    }


FILES: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "arc_easy": ("arc_easy", arc_easy),
    "piqa": ("piqa", piqa),
    "openbookqa": ("openbook_qa", openbookqa),
    "winogrande": ("winogrande", winogrande),
    "boolq": ("boolq", boolq),
    "copa": ("copa", copa),
}


def own_task(name: str, folder: Path, scratch: Path) -> Any:
    """Return the harness' own task over local rows.

    Args:
        name: a key of `FILES`, or `mmlu_SUBJECT`.
        folder: of local files.
        scratch: where the rows in the form of the hub's go.
    """
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    from evaluator.harness.tasks import _manager, quiet_harness

    if name.startswith("mmlu_"):
        files = {split: _mmlu(name.removeprefix("mmlu_"), split, folder, scratch) for split in ("dev", "test")}
    else:
        stem, turned = FILES[name]
        rows = [turned(json.loads(line)) for line in (folder / f"{stem}.jsonl").read_text().splitlines()]
        files = dict.fromkeys(SPLITS, _written(rows, scratch / f"{name}.jsonl"))
    with quiet_harness():
        definition = load_yaml(_manager().task_index[name].yaml_path, resolve_func=True)
        placed = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
        return ConfigurableTask(config={**definition, **placed})


def _mmlu(subject: str, split: str, folder: Path, scratch: Path) -> str:
    with (folder / "mmlu" / split / f"{subject}_{split}.csv").open(newline="", encoding="utf-8") as stream:
        rows = [
            {"question": question, "choices": choices, "answer": LETTERS.index(letter)}
            for question, *choices, letter in csv.reader(stream)
        ]
    return _written(rows, scratch / f"{subject}-{split}.jsonl")


def _written(rows: list[dict[str, Any]], file: Path) -> str:
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(file)
