"""The figures of a run's winner: what it keeps of each layer, and how the rounds came to it."""

from collections.abc import Mapping
from html import escape
from typing import Any, Literal

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from search.comparison import BASELINES, loss_name
from search.figures import BLUE, GREEN, GREY, INK, ORANGE, PAPER, PURPLE, VERMILLION, Drawing, style
from space import Architecture, Layout


def layers_drawing(best: Mapping[str, Any]) -> Drawing:
    """Draw what the winner keeps of each layer, with each baseline as a line over it and sparsity where there is any.

    Args:
        best: the content of `best.json`.

    Raises:
        ArchitectureError: an architecture in it is damaged.
    """
    layout, winner = Layout.from_dict(best["layout"]), Architecture.from_dict(best["architecture"])
    sparse = any(layer.attention_sparsity or layer.mlp_sparsity for layer in winner.layers)
    titles = ["attention: KV groups kept", "MLP: width kept"] + ["sparsity: share of zeros"] * sparse
    height = 180 * len(titles) + 130
    figure = make_subplots(len(titles), 1, shared_xaxes=True, vertical_spacing=0.22 / len(titles))
    style(figure, height)
    x = list(range(layout.layers))
    parts: list[tuple[Literal["kv_groups", "mlp_width"], int, str]] = [
        ("kv_groups", layout.kv_groups, "KV groups"),
        ("mlp_width", layout.mlp_width, "MLP channels"),
    ]
    for row, (gene, full, unit) in enumerate(parts, 1):
        kept = [getattr(layer, gene) for layer in winner.layers]
        figure.add_bar(
            x=x,
            y=[value / full for value in kept],
            name="winner",
            legendgroup="winner",
            showlegend=row == 1,
            marker={"color": BLUE},
            width=0.85,
            row=row,
            col=1,
            hoverinfo="text",
            hovertext=[f"layer {i}: {value:,} of {full:,} {unit}" for i, value in enumerate(kept)],
        )
        removed = [index for index, value in enumerate(kept) if not value]
        figure.add_bar(
            x=removed,
            y=[1.0] * len(removed),
            width=0.85,
            name="removed",
            legendgroup="removed",
            row=row,
            col=1,
            showlegend=row == 1,
            hoverinfo="text",
            hovertext=[f"layer {i}: {unit.split()[0].replace('KV', 'attention')} removed" for i in removed],
            marker={
                "color": PAPER,
                "line": {"color": VERMILLION, "width": 1.5},
                "pattern": {"shape": "x", "fgcolor": VERMILLION, "size": 6, "solidity": 0.25},
            },
        )
        colors = iter((INK, PURPLE, GREEN, ORANGE, GREY))
        drawn: set[str] = set()
        for name, model in best["baselines"].items():
            if name == "dense" or model["fingerprint"] in drawn:  # the same widths with and without an update
                continue
            drawn.add(model["fingerprint"])
            shares = [getattr(layer, gene) / full for layer in Architecture.from_dict(model["architecture"]).layers]
            figure.add_scatter(
                x=x,
                y=shares,
                mode="lines",
                name=escape(BASELINES.get(name, name)),
                legendgroup=escape(name),
                showlegend=row == 1,
                line={"shape": "hvh", "width": 2, "color": next(colors, GREY)},
                row=row,
                col=1,
                visible=True if name == "uniform" else "legendonly",
                hovertemplate="layer %{x}: %{y:.0%}",
            )
        figure.update_yaxes(range=[0, 1.06], tickformat=".0%", dtick=0.5, row=row, col=1)
    if sparse:
        _add_sparsity(figure, winner)
    for row, title in enumerate(titles, 1):
        axis = "y domain" if row == 1 else f"y{row} domain"
        figure.add_annotation(
            text=title, x=0, xref="paper", xanchor="left", y=1, yref=axis, yanchor="bottom", showarrow=False
        )
    figure.update_layout(barmode="overlay")
    figure.update_xaxes(range=[-0.6, layout.layers - 0.4], showgrid=False, tick0=0, dtick=max(1, layout.layers // 6))
    figure.update_xaxes(title="layer", row=len(titles), col=1)
    return Drawing(figure, f"What the winner keeps of each of {layout.layers} layers: {removed_text(winner)}", height)


def removed_text(architecture: Architecture) -> str:
    """Say in words which sub-blocks an architecture removes."""
    attention = [str(index) for index, layer in enumerate(architecture.layers) if not layer.kv_groups]
    mlp = [str(index) for index, layer in enumerate(architecture.layers) if not layer.mlp_width]
    parts = [
        f"{name} of {'layer' if len(found) == 1 else 'layers'} {', '.join(found)}"
        for name, found in (("attention", attention), ("MLP", mlp))
        if found
    ]
    return f"removed are {' and '.join(parts)}." if parts else "no sub-block is removed."


def rounds_drawing(best: Mapping[str, Any]) -> Drawing | None:
    """Draw the best measured KL, the predictor's Kendall tau and the hypervolume of a Pareto set after each round.

    Returns None without rounds.

    Args:
        best: the content of `best.json`.
    """
    rounds = best["rounds"]
    if not rounds:
        return None
    x = [entry["round"] for entry in rounds]
    panels = [
        ("best_kl", VERMILLION, f"best measured {loss_name(best)}"),
        ("kendall_tau", BLUE, "predictor's held-out Kendall tau"),
        ("hypervolume", GREEN, "hypervolume of the Pareto set, on the search text"),
    ][: 3 if "hypervolume" in rounds[-1] else 2]
    height = 200 * len(panels)
    figure = make_subplots(len(panels), 1, shared_xaxes=True, vertical_spacing=0.26 / len(panels))
    style(figure, height)
    hover = [f"round {entry['round']}, {entry['pairs']:,} pairs" for entry in rounds]
    for row, (key, color, title) in enumerate(panels, 1):
        figure.add_scatter(
            x=x,
            y=[entry.get(key) for entry in rounds],
            mode="lines+markers",
            showlegend=False,
            text=hover,
            line={"color": color, "width": 2},
            marker={"size": 9},
            hovertemplate="%{text}<br>%{y:.4~g}<extra></extra>",
            row=row,
            col=1,
        )
        axis = "y domain" if row == 1 else f"y{row} domain"
        figure.add_annotation(
            text=title, x=0, xref="paper", xanchor="left", y=1.03, yref=axis, yanchor="bottom", showarrow=False
        )
    if len(x) <= 8:
        figure.update_xaxes(tickvals=x, ticktext=[f"{e['round']}<br>{e['pairs']:,}" for e in rounds])
    figure.update_xaxes(title="round, and pairs that it learned from", row=len(panels), col=1)
    figure.update_xaxes(range=[min(x) - 0.3, max(x) + 0.3])
    first, last = rounds[0], rounds[-1]
    summary = f"Over {len(rounds)} {'round' if len(rounds) == 1 else 'rounds'} the best measured "
    summary += f"{loss_name(best)} went from "
    summary += f"{_number(first.get('best_kl'))} to {_number(last.get('best_kl'))} and the predictor's held-out "
    summary += f"Kendall tau from {_number(first.get('kendall_tau'))} to {_number(last.get('kendall_tau'))}"
    if len(panels) == 3:
        summary += f", and the hypervolume from {first['hypervolume']:.4g} to {last['hypervolume']:.4g}"
    return Drawing(figure, f"{summary}.", height)


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def _add_sparsity(figure: go.Figure, winner: Architecture) -> None:
    series = (
        ("attention sparsity", [layer.attention_sparsity for layer in winner.layers], VERMILLION, "circle", -0.18),
        ("MLP sparsity", [layer.mlp_sparsity for layer in winner.layers], GREEN, "square", 0.18),
    )
    for name, values, color, symbol, shift in series:
        figure.add_scatter(
            x=[index + shift for index in range(len(values))],
            y=values,
            mode="markers",
            name=name,
            row=3,
            col=1,
            marker={"color": color, "symbol": symbol, "size": 7},
            text=[f"layer {index}" for index in range(len(values))],
            hovertemplate="%{text}: %{y:.0%}",
        )
    figure.update_yaxes(range=[-0.06, 1.06], tickformat=".0%", dtick=0.5, row=3, col=1)
