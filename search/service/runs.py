"""Runs as the page and the API show them: in a line, in full, as figures and as sliders."""

from typing import Any

import plotly.io

from search.comparison import comparison, headline, loss_name, notes, title_of
from search.figures import Drawing, pareto_drawing, prediction_drawing
from search.folder import RunFolder
from search.layer_map import layers_drawing, rounds_drawing
from search.learned import curve_drawing, damages_drawing, refinement_drawing
from search.report import HELD_OUT
from search.service.answers import RunTold
from search.service.pairs import count_pairs, held_out_of, pair_rows, read_pairs
from search.set_figure import set_drawing
from space import Architecture, RunFolderError, SecateurError


def in_a_line(run: RunFolder) -> RunTold:
    """Return a run as lists show it; a damaged one is told as such."""
    began = run.config_file.stat().st_mtime
    try:
        config = run.config()
        best = run.best() if run.best_file.exists() else None
        return RunTold(
            name=run.path.name,
            model=config.model,
            budgets=list(config.budget),
            state="finished" if best else "unfinished",
            pairs=count_pairs(run),
            headline=headline(best) if best else None,
            began_at=began,
            finished_at=run.best_file.stat().st_mtime if best else None,
        )
    except (SecateurError, KeyError, TypeError):
        return RunTold(
            name=run.path.name, model="", budgets=[], state="damaged", pairs=0, headline=None, began_at=began,
            finished_at=None,
        )  # fmt: skip


def in_full(run: RunFolder) -> dict[str, Any]:
    """Return what a finished run found.

    Raises:
        RunFolderError: it is not finished, or damaged.
    """
    best = run.best()
    columns, rows = comparison(best)
    return {
        "name": run.path.name,
        "title": title_of(best),
        "headline": headline(best),
        "columns": [{"name": name, "meaning": meaning} for name, meaning in columns],
        "rows": [{"label": row.label, "cells": list(row.cells), "winner": row.winner} for row in rows],
        "notes": list(notes(best)),
        "best": best,
    }


def drawings(run: RunFolder) -> dict[str, Any]:
    """Return a finished run's figures by name: Plotly's JSON, a heading, and the sentence that stands for it.

    Raises:
        RunFolderError: the run is not finished, or damaged.
    """
    best, space = run.best(), run.search_space()
    pairs = pair_rows(read_pairs(run), space, held_out_of(run))
    learned = best["learned"]
    found: dict[str, tuple[str, Drawing | None, str]] = {
        "pareto": ("Cost against loss", pareto_drawing(best, pairs), "Choose a point to load that architecture."),
        "set": ("The Pareto set", set_drawing(best, pairs), ""),
        "layers": ("What was kept of each layer", layers_drawing(best), ""),
        "prediction": ("Predicted against measured", prediction_drawing(pairs, loss_name(best)), HELD_OUT),
        "damages": (
            "Why: what each layer costs the winner",
            damages_drawing(learned, loss_name(best)) if learned else None,
            "",
        ),
        "curve": ("Would more pairs pay?", curve_drawing(learned) if learned else None, ""),
        "refinement": ("What the search was refined to", refinement_drawing(best), ""),
        "rounds": ("Progress over rounds", rounds_drawing(best), ""),
    }
    return {
        name: {
            "heading": heading,
            "summary": drawing.summary,
            "height": drawing.height,
            "note": note,
            "figure": plotly.io.to_json(drawing.figure, validate=False),
        }
        for name, (heading, drawing, note) in found.items()
        if drawing is not None
    }


def sliders(run: RunFolder) -> dict[str, Any]:
    """Return the choices of each sub-block from cheapest to dense, and architectures to begin with.

    Raises:
        RunFolderError: the folder is damaged, or the run has not begun.
    """
    space = run.search_space()
    best = run.best() if run.best_file.exists() else None
    starts = {"dense": Architecture.dense(space.layout).to_dict()}
    if best:
        starts = {"winner": best["architecture"], **starts}
        starts |= {name: model["architecture"] for name, model in best["baselines"].items() if name != "dense"}
    return {
        "layers": space.layout.layers,
        "columns": [[[choice.width, choice.sparsity] for choice in options] for options in space.choices],
        "whole_blocks": space.whole_blocks,
        "budgets": [
            {"metric": budget.metric, "limit": float(limit), "told": str(budget)}
            for budget, limit in zip(space.budgets, space.limits, strict=True)
        ],
        "metrics": list(space.metrics),
        "starts": starts,
    }


def architecture_of(run: RunFolder, fingerprint: str) -> dict[str, Any]:
    """Return a measured architecture by its fingerprint, and what it measured.

    Raises:
        RunFolderError: the run did not measure it.
    """
    found = read_pairs(run)
    rows = found[found["fingerprint"] == fingerprint].to_dict("records")
    if not rows:
        raise RunFolderError(f"An architecture must be one of the pairs, but {fingerprint} is none; see them.")
    measured = {name: rows[0][name] for name in ("kl", "kl_standard_error", "nll", "nll_standard_error", "origin")}
    return {"architecture": Architecture.from_json(rows[0]["architecture"]).to_dict(), "measured": measured}
