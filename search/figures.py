"""The figures of what a run measured and predicted, with the colours and manners that all figures share.

Every colour is written for light paper and is a key of `DARK`, so that a page may redraw a figure for a dark screen by
replacing strings, and a notebook may show it as it is. Kinds differ in symbol as well as in colour; the hues are those
of Okabe and Ito, which readers of all types of colour vision can tell apart.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from search.comparison import BASELINES, METRIC_NAMES, PairRow, loss_name, pareto_front
from space import Budget

INK, MUTED, GRID, PAPER = "#1b1f24", "#59616b", "#e1e4e8", "#ffffff"
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, GREY = "#0072b2", "#c85200", "#008a65", "#b0508a", "#e69f00", "#8c959f"
DARK = {
    INK: "#e8eaed",
    MUTED: "#a8b0ba",
    GRID: "#30363d",
    PAPER: "#15181c",
    BLUE: "#56b4e9",
    VERMILLION: "#f0814a",
    GREEN: "#2fc79b",
    PURPLE: "#da8fbd",
    ORANGE: "#f5b82e",
    GREY: "#7d8691",
}
# Below this, a KL is the rounding of the sum that it is computed from: the dense model against itself.
ROUNDING = 1e-5
# How each kind of pair is drawn: legend, colour, symbol; the first are drawn first, under the others.
_KINDS = {
    "prior": ("one sub-block changed", GREY, "circle"),
    "earlier": ("run that was resumed", GREY, "cross"),
    "random": ("random", BLUE, "circle"),
    "profile": ("smooth over depth", BLUE, "triangle-down"),
    "allocated": ("near a baseline", PURPLE, "triangle-down"),
    "guided": ("near the prior's best", ORANGE, "circle"),
    "frontier": ("other budgets", GREEN, "triangle-up"),
    "user": ("measured by hand", PURPLE, "cross"),
    "searched": ("searched", VERMILLION, "square"),
    "averaged": ("average of the best", VERMILLION, "hexagon"),
    "baseline": ("baseline", PURPLE, "diamond"),
}
# Height of a whole figure, about what of it is left for the data, and what a label takes of that, in pixels.
_HEIGHT, _PLOT_HEIGHT, _LABEL_PIXELS = 540, 400, 19
LEGEND_PIXELS = 60  # what a legend of one or two lines takes below a figure


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure, the sentence that stands for it where it cannot be seen, and its height in pixels."""

    figure: go.Figure
    summary: str
    height: int


def pareto_drawing(best: Mapping[str, Any], pairs: Sequence[PairRow]) -> Drawing:
    """Draw cost against measured KL on the search text, with the Pareto front, the budget, winner and baselines.

    Args:
        best: the content of `best.json`; the cost is the metric of its first budget.
        pairs: what was measured. A KL of 0 (the dense model) has no place on the logarithmic axis.
    """
    budget = Budget.parse(best["budgets"][0]) if best["budgets"] else Budget("parameters", 1.0)
    named = list(_named_points(best, budget.metric))
    taken = {fingerprint for *_, fingerprint in named}
    shown = [pair for pair in pairs if pair.kl > ROUNDING and pair.fingerprint not in taken]
    unit = float(best["dense_cost"][budget.metric])
    figure = _figure(_HEIGHT)

    def horizontal(pair: PairRow) -> float:
        return float(pair.cost[budget.metric]) / unit

    for name, rows in _by_kind(shown):
        text = [f"{escape(row.fingerprint)}<br>perplexity {row.perplexity:,.1f}" for row in rows]
        errors = [(row.kl_standard_error, min(row.kl_standard_error, 0.9 * row.kl)) for row in rows]
        _add_points(figure, name, [horizontal(row) for row in rows], [row.kl for row in rows], errors, text)
    x = [horizontal(pair) for pair in shown] + [point[1] for point in named]
    y = [pair.kl for pair in shown] + [point[2] for point in named]
    front = pareto_front(x, y)
    figure.add_scatter(
        x=[x[i] for i in front],
        y=[y[i] for i in front],
        mode="lines",
        name="Pareto front",
        hoverinfo="skip",
        line={"shape": "hv", "color": INK, "width": 1.5},
    )
    limit = budget.limit_from(unit) / unit
    low_x, high_x = padded([*x, limit, 1.0], 0.03)
    log_low, log_high = padded([float(np.log10(value)) for value in y] or [-1.0, 0.0], 0.06)
    _add_named(figure, named, (low_x, high_x), (log_low, log_high))
    place = (limit - low_x) / (high_x - low_x)
    anchor = "left" if place < 0.15 else "right" if place > 0.85 else "center"
    figure.add_vline(limit, line={"dash": "dot", "color": INK, "width": 1.5})
    figure.add_annotation(
        x=limit,
        xanchor=anchor,
        y=1,
        yref="paper",
        yanchor="bottom",
        showarrow=False,
        text=f"budget {100 * limit:.3g} %",
    )
    name = METRIC_NAMES[budget.metric]
    figure.update_xaxes(title=f"{name}, share of dense", tickformat=".0%", range=[low_x, high_x])
    loss, where = loss_name(best), "items" if best.get("aim") else "text"
    figure.update_yaxes(title=f"{loss} on the search {where}", range=[log_low, log_high], **LOG)
    kl = best["measured"]["search"]["kl"]
    summary = (
        f"{len(shown) + len(named)} measured architectures, {name} against {loss}: the winner has "
        f"{100 * best['cost'][budget.metric] / unit:.3g} % of the dense model's and a {loss} of {kl:.3g}; "
        f"the Pareto front has {len(front)} points."
    )
    return Drawing(figure, summary, _HEIGHT)


def prediction_drawing(pairs: Sequence[PairRow], loss: str = "KL") -> Drawing | None:
    """Draw predicted against measured loss with prediction intervals, or return None where nothing was predicted.

    Args:
        pairs: what was measured; those without a positive prediction are left out.
        loss: what it is called.
    """
    shown = [pair for pair in pairs if pair.predicted is not None and pair.predicted > 0 and pair.kl > ROUNDING]
    if not shown:
        return None
    figure = _figure(_HEIGHT)
    for name, rows in _by_kind(shown):
        values = [row.predicted or 0.0 for row in rows]
        text = [escape(row.fingerprint) for row in rows]
        bounds = [_interval(row) for row in rows]
        errors = [(high - value, value - low) for value, (low, high) in zip(values, bounds, strict=True)]
        _add_points(figure, name, [row.kl for row in rows], values, errors, text, f"{loss} ")
    logs = np.log10([value for row in shown for value in (row.kl, row.predicted or 0.0)])
    ends = padded(logs.tolist(), 0.05)
    figure.add_scatter(
        x=[10 ** ends[0], 10 ** ends[1]],
        y=[10 ** ends[0], 10 ** ends[1]],
        mode="lines",
        name="predicted = measured",
        line={"color": INK, "width": 1.5, "dash": "dash"},
        hoverinfo="skip",
    )
    # Along the width there is room for a label at each power of ten alone, unless there is hardly one.
    dense = LOG if ends[1] - ends[0] < _FEW_DECADES else {**LOG, "dtick": 1}
    figure.update_xaxes(title=f"measured {loss}", range=ends, **dense)
    figure.update_yaxes(title=f"predicted {loss}", range=ends, **LOG)
    bounded = [row for row in shown if row.lower is not None and row.upper is not None]
    inside = sum(low <= row.kl <= high for row in bounded for low, high in [_interval(row)])
    summary = f"{len(shown)} architectures, predicted against measured {loss}"
    summary += f"; {inside} of {len(bounded)} prediction intervals contain the measured value." if bounded else "."
    return Drawing(figure, summary, _HEIGHT)


_LEGEND = {
    "orientation": "h",
    "itemsizing": "constant",
    "xref": "container",
    "x": 0,
    "yref": "container",
    "y": 0,
    "yanchor": "bottom",
}
_FEW_DECADES = 2.0
LOG = {"type": "log", "dtick": "D2", "tickformat": "~r", "minor": {"dtick": "D1", "showgrid": False}}


def _interval(row: PairRow) -> tuple[float, float]:
    value = row.predicted or 0.0
    return (value if row.lower is None else row.lower, value if row.upper is None else row.upper)


def padded(values: Sequence[float], share: float) -> tuple[float, float]:
    """Return the ends of an axis that leaves a share of its length free on both sides of the values."""
    low, high = min(values), max(values)
    pad = share * ((high - low) or 1.0)
    return low - pad, high + pad


def _by_kind(pairs: Sequence[PairRow]) -> Iterator[tuple[str, list[PairRow]]]:
    for kind in dict.fromkeys((*_KINDS, *(pair.kind for pair in pairs))):
        rows = [pair for pair in pairs if pair.kind == kind]
        if rows:
            yield kind, rows


def _named_points(best: Mapping[str, Any], metric: str) -> Iterator[tuple[str, float, float, float, str]]:
    """Yield label, share of the dense cost, KL, its standard error and fingerprint of baselines and winner."""
    models = {BASELINES.get(name, name): model for name, model in best["baselines"].items()}
    for label, model in (*models.items(), ("winner", best)):
        measured = model["measured"].get("search")
        if measured and measured["kl"] > ROUNDING:
            share = model["cost"][metric] / best["dense_cost"][metric]
            yield label, share, measured["kl"], measured["kl_standard_error"], model["fingerprint"]


def _add_points(
    figure: go.Figure,
    kind: str,
    x: list[float],
    y: list[float],
    errors: list[tuple[float, float]],
    text: list[str],
    unit: str = "",
) -> None:
    name, color, symbol = _KINDS.get(kind, (escape(kind), ORANGE, "cross"))
    faint = kind == "prior"
    figure.add_scatter(
        x=x,
        y=y,
        mode="markers",
        name=name,
        text=text,
        marker={"color": color, "symbol": symbol, "size": 5 if faint else 7, "opacity": 0.55 if faint else 0.85},
        error_y={
            "array": [up for up, _ in errors],
            "arrayminus": [down for _, down in errors],
            "symmetric": False,
            "type": "data",
            "thickness": 0.7,
            "width": 0,
            "color": color,
        },
        hovertemplate=f"%{{text}}<br>{unit}%{{x:{'.4~g' if unit else '.1%'}}}, %{{y:.4~g}}",
    )


def _add_named(
    figure: go.Figure,
    named: list[tuple[str, float, float, float, str]],
    x_range: tuple[float, float],
    log_range: tuple[float, float],
) -> None:
    """Add baselines and winner, with labels beside them that are moved apart where they would overlap."""
    lowest = float("inf")
    for label, x, y, error, fingerprint in sorted(named, key=lambda point: -point[2]):
        won = label == "winner"
        figure.add_scatter(
            x=[x],
            y=[y],
            mode="markers",
            name=escape(label),
            showlegend=False,
            text=[escape(fingerprint)],
            marker={
                "color": ORANGE if won else PURPLE,
                "symbol": "star" if won else "diamond",
                "size": 18 if won else 11,
                "line": {"color": INK, "width": 1.5},
            },
            error_y={"array": [error], "arrayminus": [min(error, 0.9 * y)], "symmetric": False, "color": INK},
            hovertemplate="%{text}<br>%{x:.1%}, %{y:.4~g}",
        )
        height = (np.log10(y) - log_range[0]) / (log_range[1] - log_range[0]) * _PLOT_HEIGHT
        wanted = min(height, lowest - _LABEL_PIXELS)
        lowest = wanted
        side = -1 if (x - x_range[0]) / (x_range[1] - x_range[0]) > 0.62 else 1
        figure.add_annotation(
            x=x,
            y=float(np.log10(y)),
            ax=32 * side,
            ay=height - wanted,
            xanchor="left" if side > 0 else "right",
            text=f"<b>{escape(label)}</b>" if won else escape(label),
            arrowcolor=INK,
            arrowwidth=1,
            arrowhead=0,
            standoff=7,
            bgcolor=PAPER,
            opacity=0.92,
            borderpad=1,
            font={"color": INK, "size": 12},
        )


def _figure(height: int) -> go.Figure:
    figure = go.Figure()
    style(figure, height)
    return figure


def style(figure: go.Figure, height: int) -> None:
    figure.update_layout(
        template=go.layout.Template(),
        height=height,
        paper_bgcolor=PAPER,
        plot_bgcolor=PAPER,
        font={"color": INK, "size": 13, "family": "system-ui, sans-serif"},
        hovermode="closest",
        margin={"l": 8, "r": 12, "t": 28, "b": 8},
        legend=_LEGEND,
        hoverlabel={"bgcolor": PAPER, "bordercolor": MUTED, "font": {"color": INK}},
    )
    axis = {"gridcolor": GRID, "linecolor": MUTED, "showline": True, "zeroline": False, "automargin": True}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
