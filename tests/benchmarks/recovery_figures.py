"""The figures of the benchmark `recovery`, of the rows that there are."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from evaluator.harness.answers import Score, mean_flips, mean_less
from tests.benchmarks.accuracy_figures import kept_score


def figures_of(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of the rows that there are."""
    models = {name: row for name, row in rows.items() if "right" in row}
    figures: dict[str, Any] = {"retained": {}, "flips": {}, "less": {}}
    if "dense" in models:
        whole = np.mean(list(models["dense"]["accuracy"].values()))
        for name, row in models.items():
            own, dense = _scores(row), _scores(models["dense"])
            less, flips = mean_less(own, dense), mean_flips(own, dense)
            figures["flips"][name] = {
                "mean": [round(flips.value, 4), round(flips.standard_error, 4)],
                "parts": {
                    one.task: round(mean_flips([one], [other]).value, 4) for one, other in zip(own, dense, strict=True)
                },
            }
            figures["retained"][name] = {
                "accuracy": [round(1 + less.value / whole, 4), round(less.standard_error / whole, 4)],
                "parts": row["accuracy"],
                "perplexity": [row["perplexity"], row["perplexity_standard_error"]],
                "kl": [row["kl"], row["kl_standard_error"]],
            }
    for one, other in (
        ("blocks_self", "blocks_given"),
        ("blocks_self_by_number", "blocks_given"),
        ("blocks_distilled", "blocks_given"),
        ("blocks_slerp", "blocks_given"),
        ("searched", "blocks"),
        ("searched_self_by_number", "blocks_self_by_number"),
        ("searched_distilled", "blocks_distilled"),
        ("searched_own", "blocks"),
        ("searched_own_self_by_number", "blocks_self_by_number"),
    ):
        if one in models and other in models:
            less = mean_less(_scores(models[one]), _scores(models[other]))
            points = [round(100 * each, 3) for each in (less.value, less.standard_error)]
            figures["less"][f"{one} less {other}"] = points
    for key in ("acceptance_rate", "mean_accepted_length", "speedup"):
        figures[key] = {
            name.removeprefix("draft "): [round(row[key], 4), round(row[f"{key}_standard_error"], 4)]
            for name, row in rows.items()
            if name.startswith("draft ")
        }
    figures["answer_nll"] = {
        name.removeprefix("answers "): [row["answer_nll"], row["answer_nll_standard_error"]]
        for name, row in rows.items()
        if name.startswith("answers ")
    }
    figures["kendall_tau_before_after"] = rows.get("ranking", {}).get("kendall_tau")
    return figures


def _scores(row: Mapping[str, Any]) -> list[Score]:
    """Return a row's scores of the tasks, whose items are the same for all rows."""
    return [kept_score(task, task, right) for task, right in row["right"].items()]
