"""The figure and the table of a Pareto set: its members among all that was measured, a panel for each cost."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from search.comparison import METRIC_NAMES, PairRow, pareto_front
from search.figures import (
    BLUE,
    GREY,
    INK,
    LEGEND_PIXELS,
    LOG,
    ORANGE,
    ROUNDING,
    Drawing,
    padded,
    style,
)

_PANEL = 380  # pixels


def set_drawing(best: Mapping[str, Any], pairs: Sequence[PairRow]) -> Drawing | None:
    """Draw a Pareto set against all that was measured, or return None where nothing was searched against.

    Args:
        best: the content of `best.json`.
        pairs: what was measured on the search text.
    """
    told = best.get("pareto")
    if not told:
        return None
    against = told["against"]
    height = _PANEL * len(against) + LEGEND_PIXELS
    figure = make_subplots(len(against), 1, vertical_spacing=0.2 / len(against))
    style(figure, height)
    measured = [member["measured"]["validate"] for member in told["members"]]
    kl, lows = [each["kl"] for each in measured], [each["kl"] - _down(each) for each in measured]
    for row, metric in enumerate(against, 1):
        dense = best["dense_cost"][metric]
        shares = [member["shares"][metric] for member in told["members"]]
        limits = padded([*shares, best["cost"][metric] / dense], 0.05)
        shown = [pair for pair in pairs if pair.kl > ROUNDING and pair.kind != "prior"]
        shown = [pair for pair in shown if limits[0] <= pair.cost[metric] / dense <= limits[1]]
        _add_measured(figure, row, [(pair.cost[metric] / dense, pair) for pair in shown])
        _add_members(figure, row, told["members"], shares, joined=len(against) == 1)
        _add_winner(figure, row, best, best["cost"][metric] / dense)
        ends = padded(np.log10([*kl, *lows, *(pair.kl for pair in shown)]).tolist(), 0.06)
        figure.update_xaxes(
            title=f"{METRIC_NAMES.get(metric, metric)}, share of dense", tickformat=".0%", range=limits, row=row, col=1
        )
        figure.update_yaxes(title="KL", range=ends, row=row, col=1, **LOG)
    ranges = (
        f"{_percent(min(m['shares'][metric] for m in told['members']))} to "
        f"{_percent(max(m['shares'][metric] for m in told['members']))} of the {METRIC_NAMES.get(metric, metric)}"
        for metric in against
    )
    summary = (
        f"The Pareto set has {len(kl)} members, with a KL of {min(kl):.3g} to {max(kl):.3g} on the validation "
        f"text at {' and '.join(ranges)}. {told['because']}"
    )
    return Drawing(figure, summary, height)


def _down(measured: Mapping[str, Any]) -> float:
    """Return how far down an error bar goes on a logarithmic axis."""
    return float(min(measured["kl_standard_error"], 0.9 * measured["kl"]))


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _add_measured(figure: go.Figure, row: int, points: Sequence[tuple[float, PairRow]]) -> None:
    figure.add_scatter(
        x=[share for share, _ in points],
        y=[pair.kl for _, pair in points],
        mode="markers",
        name="all measured, on the search text",
        legendgroup="measured",
        showlegend=row == 1,
        text=[escape(pair.fingerprint) for _, pair in points],
        marker={"color": GREY, "symbol": "circle", "size": 5, "opacity": 0.55},
        hovertemplate="%{text}<br>%{x:.1%}, %{y:.4~g} on the search text",
        row=row,
        col=1,
    )


def _add_members(
    figure: go.Figure, row: int, members: Sequence[Mapping[str, Any]], shares: list[float], joined: bool
) -> None:
    measured = [member["measured"]["validate"] for member in members]
    kl = [each["kl"] for each in measured]
    if joined:
        front = pareto_front(shares, kl)
        figure.add_scatter(
            x=[shares[i] for i in front],
            y=[kl[i] for i in front],
            mode="lines",
            showlegend=False,
            hoverinfo="skip",
            line={"shape": "hv", "color": INK, "width": 1.5},
            row=row,
            col=1,
        )
    figure.add_scatter(
        x=shares,
        y=kl,
        mode="markers",
        name="Pareto set, on the validation text",
        legendgroup="set",
        showlegend=row == 1,
        text=[escape(member["fingerprint"]) for member in members],
        marker={"color": BLUE, "symbol": "square", "size": 9, "line": {"color": INK, "width": 1}},
        error_y={
            "array": [each["kl_standard_error"] for each in measured],
            "arrayminus": [_down(each) for each in measured],
            "symmetric": False,
            "color": INK,
            "thickness": 1,
        },
        hovertemplate="%{text}<br>%{x:.1%}, %{y:.4~g} on the validation text",
        row=row,
        col=1,
    )


def _add_winner(figure: go.Figure, row: int, best: Mapping[str, Any], share: float) -> None:
    figure.add_scatter(
        x=[share],
        y=[best["measured"]["validate"]["kl"]],
        mode="markers",
        name=f"winner by {escape(best['pareto']['rule'])}",
        legendgroup="winner",
        showlegend=row == 1,
        text=[escape(best["fingerprint"])],
        marker={"color": ORANGE, "symbol": "star", "size": 18, "line": {"color": INK, "width": 1.5}},
        hovertemplate="%{text}<br>%{x:.1%}, %{y:.4~g} on the validation text",
        row=row,
        col=1,
    )


def set_table(best: Mapping[str, Any]) -> str:
    """Return the members of a Pareto set as a table in HTML, and how to export one of them; empty without a set."""
    told = best.get("pareto")
    if not told:
        return ""
    against = told["against"]
    head = "".join(f'<th scope="col">{escape(METRIC_NAMES.get(metric, metric))}</th>' for metric in against)
    rows = "".join(
        f"<tr{' class=winner' if member['fingerprint'] == best['fingerprint'] else ''}>"
        f'<th scope="row"><code>{escape(member["fingerprint"])}</code></th>'
        + "".join(f"<td>{100 * member['shares'][metric]:.1f} %</td>" for metric in against)
        + f"<td>{_with_error(member['measured']['validate'], 'kl', '.4f')}</td>"
        f"<td>{_with_error(member['measured']['validate'], 'perplexity', ',.1f')}</td></tr>"
        for member in told["members"]
    )
    return (
        "<details><summary>The members, as a table</summary><table><thead><tr>"
        f'<th scope="col">Architecture</th>{head}<th scope="col">KL, validation text</th>'
        f'<th scope="col">Perplexity, validation text</th></tr></thead><tbody>{rows}</tbody></table>'
        "<p><code>secateur export RUN --member ARCHITECTURE</code> exports another member than the winner.</p>"
        "</details>"
    )


def _with_error(measured: Mapping[str, Any], name: str, form: str) -> str:
    return f"{measured[name]:{form}} ± {measured[f'{name}_standard_error']:{form}}"
