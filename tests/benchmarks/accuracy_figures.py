"""The figures of the benchmark `accuracy`, of the rows that there are."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from evaluator.harness.answers import Answers, Estimate, Protocol, Score, less, mean_flips, mean_less, mean_over


def figures_of(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of the rows that there are."""
    table = {name.removeprefix("table "): row for name, row in rows.items() if name.startswith("table ")}
    figures: dict[str, Any] = {"table": {}, "flips": {}, "ours_less": {}, "harness": {}}
    for name, row in table.items():
        preset, mmlu = _scores(row)
        mean, own = mean_over(preset), mmlu.accuracy
        text = row["text"]
        figures["table"][name] = {
            "perplexity": [round(text["perplexity"], 3), round(text["perplexity_standard_error"], 3)],
            "commonsense": _rounded(mean),
            "mmlu": _rounded(own),
        }
        if name != "dense" and "dense" in table:
            whole, whole_mmlu = _scores(table["dense"])
            figures["flips"][name] = {
                "commonsense": _rounded(mean_flips(preset, whole)),
                "mmlu": _rounded(mean_flips([mmlu], [whole_mmlu])),
                "parts": {
                    one.task: round(mean_flips([one], [other]).value, 4)
                    for one, other in zip(preset, whole, strict=True)
                },
            }
        if name != "ours" and "ours" in table:
            figures["ours_less"][name] = _ours_less(table["ours"], row)
    for name, row in rows.items():
        if name.startswith("harness "):
            figures["harness"][name.removeprefix("harness ")] = {
                "loglikelihood": round(row["largest_loglikelihood_difference"], 6),
                "answered_differently": row["answered_differently"],
                "accuracy": round(row["accuracy"] - row["accuracy_of_the_harness"], 6),
            }
    if speed := rows.get("speed"):
        own = [task for name, task in speed["tasks"].items() if name != "mmlu"]
        slowest = sorted((task["seconds"] for task in own), reverse=True)
        figures["half_preset_seconds"] = round(sum(slowest[:3]), 1)
        figures["sharing_speedup"] = round(
            sum(task["seconds_without"] for task in own) / sum(task["seconds"] for task in own), 2
        )
        mmlu_speed = speed["tasks"]["mmlu"]
        figures["sharing_speedup_mmlu"] = round(mmlu_speed["seconds_without"] / mmlu_speed["seconds"], 2)
    return figures


def _rounded(estimate: Estimate) -> list[float]:
    return [round(estimate.value, 4), round(estimate.standard_error, 4)]


def _scores(row: Mapping[str, Any]) -> tuple[list[Score], Score]:
    """Return a row's scores of the preset's tasks, and that of MMLU."""
    found = {task: kept_score(task, row["items"][task], right) for task, right in row["right"].items()}
    return [own for task, own in found.items() if task != "mmlu"], found["mmlu"]


def kept_score(task: str, items: str, right: str) -> Score:
    """Return a score as it was kept, of which only items and answers are known."""
    protocol = Protocol("", "", "", task, "", 0, len(right), len(right), None, "")
    names = tuple(f"{items}:{place}" for place in range(len(right)))
    return Score(task, "acc", (Answers(protocol, names, {"acc": tuple(map(float, right))}),), len(right))


def _ours_less(ours: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    (mine, my_mmlu), (theirs, their_mmlu) = _scores(ours), _scores(other)
    blocks = np.array(ours["text"]["nll_blocks"]) - np.array(other["text"]["nll_blocks"])
    change, error = np.expm1(blocks.mean()), blocks.std(ddof=1) / np.sqrt(len(blocks))
    preset, mmlu = mean_less(mine, theirs), less(my_mmlu, their_mmlu)
    parts = {one.task: less(one, other) for one, other in zip(mine, theirs, strict=True)}
    return {
        "perplexity": [round(float(change), 4), round(float((1 + change) * error), 4)],
        "commonsense": [round(each, 4) for each in asdict(preset).values()],
        "parts": {task: [round(each, 4) for each in asdict(found).values()] for task, found in parts.items()},
        "mmlu": [round(each, 4) for each in asdict(mmlu).values()],
        "mmlu_relative": round(mmlu.value / their_mmlu.accuracy.value, 4),
    }
