"""The figures of the benchmark `recovery`, of the rows that there are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def figures_of(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of the rows that there are."""
    models = {name: row for name, row in rows.items() if "right" in row}
    figures: dict[str, Any] = {"retained": {}, "flips": {}, "less": {}}
    if "dense" in models:
        whole = np.mean(list(models["dense"]["accuracy"].values()))
        for name, row in models.items():
            changes = _differences(row, models["dense"])
            less, error = _mean(list(changes.values()))
            flips = {task: np.abs(each) for task, each in changes.items()}
            figures["flips"][name] = {
                "mean": [round(each, 4) for each in _mean(list(flips.values()))],
                "parts": {task: round(float(each.mean()), 4) for task, each in flips.items()},
            }
            figures["retained"][name] = {
                "accuracy": [round(1 + less / whole, 4), round(error / whole, 4)],
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
            less, error = _mean(list(_differences(models[one], models[other]).values()))
            points = [round(100 * each, 3) for each in (less, error)]
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


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return by task what one row has right less what another has, item by item."""
    return {task: _answers(right) - _answers(other["right"][task]) for task, right in one["right"].items()}


def _mean(own: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the mean over tasks and the standard error over their items."""
    error = np.sqrt(sum(each.var(ddof=1) / len(each) for each in own)) / len(own)
    return float(np.mean([each.mean() for each in own])), float(error)


def _answers(right: str) -> np.ndarray:
    return np.array([each == "1" for each in right], dtype=float)
