"""How a study of what to calibrate on is shown: a table and a sentence on the terminal, and one page with a figure."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.box import SIMPLE_HEAD
from rich.markup import escape as escape_markup
from rich.table import Table

from search.figures import BLUE, GREY, INK, LEGEND_PIXELS, LOG, ORANGE, Drawing, padded, style
from search.page import figure_section, page

WINNER = "★"  # beside the lowest of a setting
LEGEND = f"{WINNER} lowest of its setting. Perplexity, geometric mean of texts and draws ± the deviation of a draw."
_ROW, _GAP = 36, 76  # pixels of a source in a panel, and between panels
_DRAWS_BELOW = 0.26  # of a row, where single draws are


def study_table(study: Mapping[str, Any]) -> Table:
    """Return sources against settings.

    Args:
        study: the content of a study's `study.json`.
    """
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1))
    table.add_column("Calibrated on")
    for setting in study["settings"]:
        table.add_column(escape_markup(setting), justify="right")
    for source in study["sources"]:
        cells = [escape_markup(_cell(study, setting, source)) for setting in study["settings"]]
        table.add_row(escape_markup(source), *cells)
    return table


def _cell(study: Mapping[str, Any], setting: str, source: str) -> str:
    value, deviation = _figures(study, setting, source)
    spread = "" if deviation is None else f" ± {100 * deviation:.1f}\N{NO-BREAK SPACE}%"
    return f"{WINNER} {value:,.2f}{spread}" if study["winners"][setting] == source else f"{value:,.2f}{spread}"


def _figures(study: Mapping[str, Any], setting: str, source: str) -> tuple[float, float | None]:
    """Return the mean perplexity and the deviation of a draw, as a share."""
    told = study["summary"][setting][source]
    return told["perplexity"]["all"], told["perplexity_deviation"]["all"]


def in_words(study: Mapping[str, Any]) -> str:
    """Say in one sentence which source is the best under each setting, and by how much.

    Args:
        study: the content of a study's `study.json`.
    """
    told = "; ".join(f"at {setting} {_winner_in_words(study, setting)}" for setting in study["settings"])
    texts, draws = " and ".join(study["texts"]), len(study["draws"])
    return (
        f"Lowest perplexity of {_model(study)} on {texts}, {draws} {'draw' if draws == 1 else 'draws'} of "
        f"{study['sequences']} x {study['sequence_length']} tokens each: {told}."
    )


def _model(study: Mapping[str, Any]) -> str:
    return Path(study["model"]).name or str(study["model"])


def _winner_in_words(study: Mapping[str, Any], setting: str) -> str:
    best = study["winners"][setting]
    value, deviation = _figures(study, setting, best)
    others = {source: _figures(study, setting, source) for source in study["sources"] if source != best}
    if not others:
        return f"{best} ({value:,.2f})"
    runner_up, (next_value, next_deviation) = min(others.items(), key=lambda item: item[1][0])
    if deviation is not None and next_deviation is not None:
        error = float(np.hypot(deviation, next_deviation) / np.sqrt(len(study["draws"])))
        if np.log(next_value / value) < 2 * error:
            told = f"which {len(study['draws'])} draws do not tell from {runner_up}, {next_value:,.2f}"
            return f"{best} ({value:,.2f}, {told})"
    return f"{best} ({value:,.2f}, {100 * (1 - value / next_value):.1f} % below {runner_up})"


def study_drawing(study: Mapping[str, Any]) -> Drawing:
    """Draw sources against perplexity, a panel for each setting, single draws below their mean.

    Args:
        study: the content of a study's `study.json`.
    """
    sources, settings = list(study["sources"]), list(study["settings"])
    panel = _ROW * len(sources) + _ROW // 2
    inner = panel * len(settings) + _GAP * (len(settings) - 1)
    height = inner + _GAP + LEGEND_PIXELS
    titles = [escape(setting) for setting in settings]
    spacing = _GAP / inner if len(settings) > 1 else 0
    figure = make_subplots(len(settings), 1, vertical_spacing=spacing, subplot_titles=titles)
    style(figure, height)
    for row, setting in enumerate(settings, 1):
        ends = _add_panel(figure, row, study, setting, sources)
        # Within one power of ten Plotly itself chooses ticks that are there at all.
        axis = LOG if ends[1] - ends[0] > 1 else {"type": "log", "tickformat": "~r", "nticks": 8}
        figure.update_xaxes(range=ends, row=row, col=1, **axis)
        names = [escape(source) for source in sources]
        place = {"tickvals": list(range(len(sources))), "ticktext": names, "range": [len(sources) - 0.25, -0.75]}
        figure.update_yaxes(**place, showgrid=False, row=row, col=1)
    title = f"perplexity, geometric mean of {escape(' and '.join(study['texts']))}"
    figure.update_xaxes(title=title, row=len(settings), col=1)
    return Drawing(figure, in_words(study), height)


def _add_panel(
    figure: go.Figure, panel: int, study: Mapping[str, Any], setting: str, sources: Sequence[str]
) -> tuple[float, float]:
    """Add what was measured under a setting and return the ends of its axis, as powers of ten."""
    draws = [
        (
            sources.index(each["source"]) + _DRAWS_BELOW,
            float(np.exp(np.mean(np.log(list(each["perplexity"].values()))))),
        )
        for each in study["rows"]
        if each["setting"] == setting
    ]
    shared = {"mode": "markers", "showlegend": panel == 1}
    figure.add_scatter(
        x=[value for _, value in draws],
        y=[place for place, _ in draws],
        name="a single draw",
        legendgroup="draw",
        marker={"color": GREY, "symbol": "circle", "size": 6, "opacity": 0.55},
        hovertemplate="one draw: %{x:.4~g}<extra></extra>",
        row=panel,
        col=1,
        **shared,
    )
    reached = [value for _, value in draws]
    for won, name, marker in (
        (False, "mean, with the deviation of a draw", {"color": BLUE, "symbol": "circle", "size": 10}),
        (True, "lowest mean of its setting", {"color": ORANGE, "symbol": "star", "size": 17}),
    ):
        own = [source for source in sources if (study["winners"][setting] == source) == won]
        told = [_figures(study, setting, source) for source in own]
        ups = [value * (np.exp(deviation or 0.0) - 1) for value, deviation in told]
        downs = [value * (1 - np.exp(-(deviation or 0.0))) for value, deviation in told]
        reached += [value + up for (value, _), up in zip(told, ups, strict=True)]
        reached += [value - down for (value, _), down in zip(told, downs, strict=True)]
        figure.add_scatter(
            x=[value for value, _ in told],
            y=[sources.index(source) for source in own],
            name=name,
            legendgroup=name,
            text=[escape(source) for source in own],
            marker={**marker, "line": {"color": INK, "width": 1}},
            error_x={"array": ups, "arrayminus": downs, "symmetric": False, "color": INK, "thickness": 1.2},
            hovertemplate="%{text}: %{x:.4~g}<extra></extra>",
            row=panel,
            col=1,
            **shared,
        )
    return padded(np.log10(reached).tolist(), 0.06)


def render_study(study: Mapping[str, Any]) -> str:
    """Return one self-contained HTML page about a study.

    Args:
        study: the content of a study's `study.json`.
    """
    title = escape(f"What to calibrate {_model(study)} on")
    section = figure_section("study", "Perplexity by calibration set", study_drawing(study), _html_table(study))
    return page(title, f"<h1>{title}</h1>\n{section}")


def _html_table(study: Mapping[str, Any]) -> str:
    head = "".join(f'<th scope="col">{escape(setting)}</th>' for setting in study["settings"])
    rows = "".join(
        f'<tr><th scope="row">{escape(source)}</th>'
        + "".join(f"<td>{escape(_cell(study, setting, source))}</td>" for setting in study["settings"])
        + "</tr>"
        for source in study["sources"]
    )
    return (
        "<details><summary>The same as a table</summary>"
        f'<table><caption>{LEGEND}</caption><thead><tr><th scope="col">Calibrated on</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></details>"
    )
