"""What a run's predictor learned, for the report: whether more pairs would pay, what it cut away, why the winner."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from predictor import AccuracyPredictor, CurvePoint, Refinement, curve_of, error_with, sub_block_damages
from search.figures import BLUE, GREY, INK, VERMILLION, Drawing, style
from space import Architecture

if TYPE_CHECKING:
    from evaluator import Pair  # who draws what was learned needs no torch

_CURVE_HEIGHT, _DAMAGE_HEIGHT, _RANGE_HEIGHT = 360, 360, 460
_PAYS = 0.9  # an error that falls to less than this share is worth the measurements


def learned_record(
    predictor: AccuracyPredictor, pairs: Sequence["Pair"], winner: Architecture, refinement: Refinement | None
) -> dict[str, Any]:
    """Return what best.json says of the predictor beyond its quality.

    Args:
        predictor: the last one, of KL.
        pairs: what it was fitted on.
        winner: whose damages are told.
        refinement: the last one; None where the search ran in the full space.
    """
    architectures = [pair.architecture for pair in pairs]
    refined: dict[str, Any] | None = None
    if refinement is not None:
        inside = [pair for pair in pairs if refinement.full.allows(pair.architecture)]
        best = min(inside, key=lambda pair: pair.measurement.kl).architecture
        refined = refinement.to_dict() | {"holds_best": refinement.space.allows(best)}
    return {
        **curve_record(predictor, architectures, [pair.measurement.kl for pair in pairs]),
        "winner_damages": sub_block_damages(predictor, winner).tolist(),
        "refinement": refined,
    }


def curve_record(
    predictor: AccuracyPredictor, architectures: Sequence[Architecture], values: Sequence[float]
) -> dict[str, Any]:
    """Return a predictor's learning curve, and the error to expect with twice the pairs, as plain values.

    Args:
        predictor: as fitted on the pairs.
        architectures: those that it was fitted on.
        values: measured value of each.
    """
    curve = curve_of(predictor, architectures, values)
    return {
        "learning_curve": [asdict(point) for point in curve],
        "error_with_twice_the_pairs": error_with(curve, 2 * curve[-1].pairs),
    }


def verdict(learned: Mapping[str, Any]) -> str:
    """Say in one sentence whether more pairs would pay."""
    curve = [CurvePoint(**point) for point in learned["learning_curve"]]
    now, doubled = curve[-1].rmse_log, learned["error_with_twice_the_pairs"]
    pays = doubled < _PAYS * now
    return (
        f"With {curve[-1].pairs} pairs the predictor errs by {100 * now:.1f} % (held out); with twice as many "
        f"{100 * doubled:.1f} % is to be expected, so more pairs {'pay' if pays else 'hardly pay'}."
    )


def curve_drawing(learned: Mapping[str, Any]) -> Drawing:
    """Draw held-out error and rank correlation against the number of pairs."""
    points = learned["learning_curve"]
    counts = [point["pairs"] for point in points]
    figure = go.Figure()
    style(figure, _CURVE_HEIGHT)
    figure.add_scatter(
        x=counts,
        y=[point["rmse_log"] for point in points],
        name="error",
        line={"color": VERMILLION, "width": 2},
        mode="lines+markers",
        hovertemplate="%{x} pairs: %{y:.1%}",
    )
    figure.add_scatter(
        x=[counts[-1], 2 * counts[-1]],
        y=[points[-1]["rmse_log"], learned["error_with_twice_the_pairs"]],
        name="error to expect",
        line={"color": VERMILLION, "width": 2, "dash": "dot"},
        mode="lines",
        hovertemplate="%{x} pairs: %{y:.1%}",
    )
    figure.add_scatter(
        x=counts,
        y=[point["kendall_tau"] for point in points],
        name="Kendall tau",
        yaxis="y2",
        line={"color": BLUE, "width": 2},
        mode="lines+markers",
        hovertemplate="%{x} pairs: %{y:.2f}",
    )
    figure.update_xaxes(title="pairs to learn from", rangemode="tozero")
    figure.update_yaxes(title="held-out error", tickformat=".0%", rangemode="tozero")
    figure.update_layout(
        yaxis2={
            "title": "Kendall tau",
            "overlaying": "y",
            "side": "right",
            "range": [0, 1.05],
            "dtick": 0.2,
            "showgrid": False,
            "automargin": True,
        }
    )
    return Drawing(figure, verdict(learned), _CURVE_HEIGHT)


def damages_drawing(learned: Mapping[str, Any], loss: str) -> Drawing:
    """Draw what each sub-block of the winner adds to its predicted loss, by its name."""
    shares = np.array(learned["winner_damages"])
    figure = go.Figure()
    style(figure, _DAMAGE_HEIGHT)
    layers = list(range(len(shares)))
    for part, (name, color) in enumerate((("attention", GREY), ("MLP", BLUE))):
        figure.add_bar(
            x=layers,
            y=shares[:, part].tolist(),
            name=name,
            marker={"color": color},
            hovertemplate=f"{name} of layer %{{x}}: %{{y:.4f}}",
        )
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title=f"predicted {loss}")
    most = int(shares.sum(axis=1).argmax())
    summary = (
        f"What pruning each layer adds to the winner's predicted {loss} of {shares.sum():.3f}: layer {most} most, "
        f"{shares[most].sum():.3f}. Shares are averages over orders of pruning (Shapley values) and add up."
    )
    return Drawing(figure, summary, _DAMAGE_HEIGHT)


def refinement_drawing(best: Mapping[str, Any]) -> Drawing | None:
    """Draw which widths of each layer the predictor left in the space, or None where nothing was refined."""
    refinement = best["learned"].get("refinement")
    if refinement is None:
        return None
    columns = refinement["columns"]
    figure = go.Figure()
    style(figure, _RANGE_HEIGHT)
    full = (best["layout"]["kv_groups"], best["layout"]["mlp_width"])
    winner = Architecture.from_dict(best["architecture"])
    for part, (name, color) in enumerate((("attention", GREY), ("MLP", BLUE))):
        own = columns[part::2]
        # Of what is narrower and sparse, the share of weights that are not zero.
        least, most = (
            [column["kept"][end][0] / full[part] * (1 - column["kept"][end][1]) for column in own] for end in (0, 1)
        )
        figure.add_bar(
            x=list(range(len(own))),
            base=least,
            y=[high - low + 0.01 for low, high in zip(least, most, strict=True)],
            name=f"{name}: searched",
            marker={"color": color, "opacity": 0.45},
            offsetgroup=str(part),
            hovertext=[
                f"layer {i}: {low:.0%} to {high:.0%}" for i, (low, high) in enumerate(zip(least, most, strict=True))
            ],
            hoverinfo="text",
        )
        kept = [
            layer.mlp_width / full[1] * (1 - layer.mlp_sparsity)
            if part
            else layer.kv_groups / full[0] * (1 - layer.attention_sparsity)
            for layer in winner.layers
        ]
        figure.add_bar(
            x=list(range(len(own))),
            base=[value - 0.006 for value in kept],
            y=[0.012] * len(own),
            name="winner",
            legendgroup="winner",
            showlegend=part == 1,
            marker={"color": INK},
            offsetgroup=str(part),
            hoverinfo="skip",
        )
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="kept of the sub-block", tickformat=".0%", range=[-0.02, 1.04])
    holds = "lies" if refinement["holds_best"] else "does not lie"
    kept_choices = sum(column["kept_choices"] for column in columns)
    summary = (
        f"The last search asked for {kept_choices} of {sum(column['choices'] for column in columns)} choices, "
        f"10^{refinement['cut_log10']:.0f} times fewer architectures; what was cut away cannot be in a good model, "
        f"says the predictor. The best measured of the full space {holds} inside."
    )
    return Drawing(figure, summary, _RANGE_HEIGHT)
