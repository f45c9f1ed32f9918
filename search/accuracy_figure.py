"""How accuracies are shown: a table and sentences on the terminal, the same with a figure on a run's page."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import plotly.graph_objects as go
from rich.box import SIMPLE_HEAD
from rich.markup import escape as escape_markup
from rich.table import Table

from search.figures import BLUE, GREEN, GREY, INK, LEGEND_PIXELS, ORANGE, PURPLE, VERMILLION, Drawing, style
from search.page import figure_section

_HEIGHT = 420
_NOISE = 2.0  # standard errors, below which a difference is called none
_MEAN = "mean of tasks"
_COLORS = {"dense": INK, "uniform": PURPLE, "winner": ORANGE, "recovered": GREEN}
_OTHERS = (BLUE, VERMILLION, GREY)


def accuracy_table(found: Mapping[str, Any]) -> Table:
    """Return tasks against models, each accuracy with its error, below it the difference from the model compared.

    Args:
        found: what `search.accuracy.evaluate` returns.
    """
    table = Table(
        title=escape_markup(found["title"]), title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1)
    )
    table.add_column("Accuracy, %")
    for name in found["models"]:
        table.add_column(escape_markup(name), justify="right", style="bold" if name == found["compared"] else None)
    for label, cells in _rows(found):
        table.add_row(label, *("\n".join(cell) for cell in cells))
    return table


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Yield a label and for each model what stands in its cell, line by line."""
    models = found["models"].values()
    for place, task in enumerate(found["tasks"]):
        score = next(iter(models))["scores"][place]
        shots = f", {score['shots']}-shot" if score["shots"] else ""
        label = f"{task}{shots}, {score['items']:,} items"
        yield label, [_cell(each["scores"][place], each["less"] and each["less"]["tasks"][place]) for each in models]
    if len(found["tasks"]) > 1:
        yield _MEAN, [_cell(each["mean"], each["less"] and each["less"]["mean"]) for each in models]


def _cell(score: Mapping[str, Any], less: Mapping[str, Any] | None) -> tuple[str, ...]:
    own = f"{100 * score['value' if 'value' in score else 'accuracy']:.1f} ± {100 * score['standard_error']:.1f}"
    return (own,) if less is None else (own, _difference(less))


def _difference(less: Mapping[str, Any]) -> str:
    return f"{100 * less['value']:+.1f} ± {100 * less['standard_error']:.1f}, {_p(less['p'])}"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p {value:.2g}" if value < 0.1 else f"p {value:.2f}"


def accuracy_notes(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the table means, which differences are within noise, and which tasks tell nothing.

    Args:
        found: what `search.accuracy.evaluate` returns.
    """
    first = found["compared"]
    yield (
        "Accuracies by lm-eval, each ± its standard error over items; tasks weigh the same in a mean. The second line "
        f"is the difference from {first} on the same items, with the probability of one as large if there were none "
        "(McNemar's exact test; of a mean the normal distribution)."
    )
    for name, model in found["models"].items():
        if less := model["less"]:
            mean = less["mean"]
            within = abs(mean["value"]) < _NOISE * mean["standard_error"]
            verdict = "within noise: take the two as equal" if within else "more than noise"
            points = f"{100 * mean['value']:+.1f} ± {100 * mean['standard_error']:.1f} points, {_p(mean['p'])}"
            yield f"{name} against {first}, mean of tasks: {points}; {verdict}."
    yield from _flips(found)
    guessing = {
        task: [name for name, model in found["models"].items() if _is_guessing(model["scores"][place])]
        for place, task in enumerate(found["tasks"])
    }
    if any(guessing.values()):
        everyone = len(found["models"])
        told = (
            f"{task} ({'all' if len(own) == everyone else ', '.join(own)})" for task, own in guessing.items() if own
        )
        yield f"No better than guessing, within noise: {', '.join(told)}."
    if cut := sum(score["cut"] for model in found["models"].values() for score in model["scores"]):
        yield f"{cut:,} prompts were longer than the models take and lost their beginnings."


def _flips(found: Mapping[str, Any]) -> Iterator[str]:
    # A table of an earlier version has none.
    flips = {name: model["flips"] for name, model in found["models"].items() if model.get("flips")}
    if flips:
        told = (f"{name} {100 * own['value']:.1f} ± {100 * own['standard_error']:.1f} %" for name, own in flips.items())
        yield (
            f"Answers that went from right to wrong or back, against {next(iter(found['models']))}, mean of tasks: "
            f"{', '.join(told)}. What is lost and gained cancels in an accuracy, not here (arXiv 2407.09141)."
        )


def _is_guessing(score: Mapping[str, Any]) -> bool:
    return score["chance"] is not None and score["accuracy"] - score["chance"] < _NOISE * score["standard_error"]


def accuracy_drawing(found: Mapping[str, Any]) -> Drawing:
    """Draw the accuracy of each model in each task, with errors, and what guessing would reach.

    Args:
        found: what `search.accuracy.evaluate` returns.
    """
    figure = go.Figure()
    style(figure, _HEIGHT)
    others = iter(_OTHERS * len(found["models"]))
    labels = [*found["tasks"], *([_MEAN] if len(found["tasks"]) > 1 else [])]
    for name, model in found["models"].items():
        own = [(score["accuracy"], score["standard_error"]) for score in model["scores"]]
        own += [(model["mean"]["value"], model["mean"]["standard_error"])] if len(labels) > len(own) else []
        figure.add_bar(
            x=labels,
            y=[value for value, _ in own],
            name=escape(name),
            marker={"color": _COLORS.get(name) or next(others)},
            error_y={"array": [error for _, error in own], "color": INK, "thickness": 1.5, "width": 3},
            hovertemplate=f"{escape(name)}, %{{x}}: %{{y:.1%}}",
        )
    for place, score in enumerate(next(iter(found["models"].values()))["scores"]):
        if score["chance"] is not None:
            line = {"color": INK, "width": 1.5, "dash": "dot"}
            ends = {"x0": place - 0.45, "x1": place + 0.45}
            figure.add_shape(type="line", y0=score["chance"], y1=score["chance"], line=line, **ends)
    figure.update_layout(barmode="group", bargap=0.25, margin={"b": LEGEND_PIXELS})
    figure.update_yaxes(title="accuracy", tickformat=".0%", rangemode="tozero")
    means = ", ".join(
        f"{name} {100 * model['mean']['value']:.1f} ± {100 * model['mean']['standard_error']:.1f} %"
        for name, model in found["models"].items()
    )
    return Drawing(figure, f"Mean over the tasks: {means}. Dotted: what guessing reaches.", _HEIGHT)


def accuracy_sections(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a section for each table of a run's accuracy.json, in HTML.

    Args:
        tables: by what was asked.
    """
    return "\n".join(
        figure_section(
            f"accuracy-{number}", f"Accuracy: {title}", accuracy_drawing(found), _html_table(found) + _html_notes(found)
        )
        for number, (title, found) in enumerate(tables.items())
    )


def _html_table(found: Mapping[str, Any]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in found["models"])
    body = "".join(
        f'<tr><th scope="row">{escape(label)}</th>'
        + "".join(f"<td>{'<br>'.join(map(escape, cell))}</td>" for cell in cells)
        + "</tr>"
        for label, cells in _rows(found)
    )
    return (
        '<div class="scroll" role="region" aria-label="Accuracy table" tabindex="0"><table class="numbers">'
        f'<thead><tr><th scope="col">Accuracy, %</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _html_notes(found: Mapping[str, Any]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in accuracy_notes(found))
