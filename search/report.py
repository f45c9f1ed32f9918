"""What a run found, for people: a table on the terminal and one page that opens anywhere, with nothing to fetch.

Both say the same: the rows are made once, in `search.comparison`.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from search.accuracy_figure import accuracy_sections
from search.calibration_words import calibration_in_words
from search.comparison import PairRow, comparison, duration, headline, loss_name, notes, pareto_front, title_of
from search.figures import Drawing, pareto_drawing, prediction_drawing
from search.folder import write_text
from search.layer_map import layers_drawing, rounds_drawing
from search.learned import curve_drawing, damages_drawing, refinement_drawing
from search.page import figure_section, page
from search.set_figure import set_drawing, set_table
from space import Architecture

__all__ = ["PairRow", "comparison_table", "pareto_front", "print_report", "render_report", "write_report"]

# The table must fit 80 columns, where a value and its error take two lines.
_NARROW = {
    "Parameters": "Para-\nmeters",
    "Non-zero": "Non-\nzero",
    "Weights, MB": "Weight\nMB",
    "KV, B/token": "KV B/\ntoken",
    "Latency, ms": "Lat.,\nms",
    "Perplexity": "Per-\nplexity",
    "Agreement": "Agree-\nment",
    "Winner vs it": "Winner\nvs it",
}


HELD_OUT = "Each prediction is by a model that was fitted without that architecture (10-fold cross-validation)."


def comparison_table(best: Mapping[str, Any]) -> Table:
    """Return the winner beside the dense model and the baselines, as measured on the report text.

    Args:
        best: the content of a run's `best.json`.

    Raises:
        RunFolderError: it is of another format.
    """
    columns, rows = comparison(best)
    named = [name for name, _ in columns]
    # What is timed says more than what is counted, and both are too wide.
    shown = [place for place, name in enumerate(named) if name != "FLOPs" or "Latency, ms" not in named]
    table = Table(
        title=escape_markup(title_of(best)), title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 0)
    )
    table.add_column("")
    for place in shown:
        table.add_column(_NARROW.get(named[place], named[place]), justify="right")
    for row in rows:
        cells = [row.cells[place].replace(" %", "\N{NO-BREAK SPACE}%") for place in shown]
        table.add_row(escape_markup(row.label), *cells, style="bold" if row.winner else None)
    return table


def print_report(best: Mapping[str, Any], console: Console) -> None:
    """Print the comparison, and below it what it was measured on and how far the predictor is to be trusted.

    Args:
        best: the content of a run's `best.json`.
        console: where to print.

    Raises:
        RunFolderError: it is of another format.
    """
    console.print(comparison_table(best))
    for line in notes(best):
        console.print(line, markup=False, highlight=False)


def render_report(
    best: Mapping[str, Any], pairs: Sequence[PairRow], accuracy: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """Return one self-contained HTML page about a run.

    Args:
        best: the content of a run's `best.json`.
        pairs: the architectures that the run measured.
        accuracy: the content of its `accuracy.json`; None where no task was asked.

    Raises:
        RunFolderError: the content is of another format.
        ArchitectureError: an architecture in it is damaged.
    """
    table, title = _html_table(best), escape(title_of(best))
    winner = Architecture.from_dict(best["architecture"])
    tau = best["quality"].get("kendall_tau")
    quality = f" (held-out Kendall tau {tau:.2f})" if tau is not None else ""
    aimed = bool(best.get("aim"))
    learned = best["learned"]  # nothing where too little was measured for a predictor
    drawings: list[tuple[str, str, Drawing | None, str]] = [
        ("pareto", "Cost against loss", pareto_drawing(best, pairs), _PARETO_NOTE + ("" if aimed else _KL_NOTE)),
        ("set", "The Pareto set", set_drawing(best, pairs), set_table(best)),
        ("prediction", f"Predicted against measured{quality}", prediction_drawing(pairs, loss_name(best)), HELD_OUT),
        ("layers", "What was kept of each layer", layers_drawing(best), _LAYERS_NOTE + _layer_table(best, winner)),
        (
            "damages",
            "Why: what each layer costs the winner",
            damages_drawing(learned, loss_name(best)) if learned else None,
            "",
        ),
        ("refinement", "What the search was refined to", refinement_drawing(best), ""),
        ("rounds", "Progress over rounds", rounds_drawing(best), ""),
        ("curve", "Would more pairs pay?", curve_drawing(learned) if learned else None, _regressors(best["quality"])),
    ]
    figures = "\n".join(figure_section(name, head, shown, note) for name, head, shown, note in drawings if shown)
    lead = escape(headline(best)).replace(" ± ", "&nbsp;±&nbsp;").replace(" %", "&nbsp;%")
    lines = "".join(f"<p>{escape(line)}</p>" for line in notes(best))
    return page(
        title,
        f"""<h1>{title}</h1>
<p class="lead">{lead}</p>
<section aria-labelledby="comparison"><h2 id="comparison">Comparison</h2>
{table}
{lines}</section>
{accuracy_sections(accuracy or {})}
{figures}
<section aria-labelledby="protocol"><h2 id="protocol">How it was measured</h2>
{_protocol(best)}</section>
<section aria-labelledby="use"><h2 id="use">How to use the result</h2>
<p><code>RUN</code> is the folder that this page lies in.</p>
{_COMMANDS}</section>""",
    )


def write_report(
    folder: Path,
    best: Mapping[str, Any],
    pairs: Sequence[PairRow],
    accuracy: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write `report.html` into a run's folder and return its path; a reader never sees half a page.

    Args:
        folder: the run's folder, which must exist.
        best: the content of its `best.json`.
        pairs: the architectures that the run measured.
        accuracy: the content of its `accuracy.json`; None where no task was asked.

    Raises:
        RunFolderError: `best` is of another format.
        ArchitectureError: an architecture in `best` is damaged.
    """
    path = folder / "report.html"
    write_text(path, render_report(best, pairs, accuracy))
    return path


def _html_table(best: Mapping[str, Any]) -> str:
    columns, rows = comparison(best)
    head = "".join(f'<th scope="col" title="{escape(note)}">{escape(name)}</th>' for name, note in columns)
    body = "\n".join(
        f'<tr{" class=winner" if row.winner else ""}><th scope="row">{escape(row.label)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row.cells)
        + "</tr>"
        for row in rows
    )
    caption = f"The dense decoder has {best['dense_cost']['parameters'] / 1e6:,.1f} million parameters."
    legend = "".join(f"<dt>{escape(name)}</dt><dd>{escape(note)}</dd>" for name, note in columns)
    return (
        '<div class="scroll" role="region" aria-label="Comparison table" tabindex="0"><table class="numbers">'
        f'<caption>{caption}</caption>\n<thead><tr><th scope="col">Model</th>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>\n"
        f"<details><summary>What the columns mean</summary><dl>{legend}</dl></details>"
    )


def _layer_table(best: Mapping[str, Any], winner: Architecture) -> str:
    layout = best["layout"]
    rows = "".join(
        f'<tr><th scope="row">{index}</th><td>{_kept(layer.kv_groups, layout["kv_groups"], layer.attention_sparsity)}'
        f"</td><td>{_kept(layer.mlp_width, layout['mlp_width'], layer.mlp_sparsity)}</td></tr>"
        for index, layer in enumerate(winner.layers)
    )
    return (
        "<details><summary>Layer by layer, as a table</summary>"
        '<table><thead><tr><th scope="col">Layer</th><th scope="col">KV groups</th><th scope="col">MLP width</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></details>"
    )


def _regressors(quality: Mapping[str, Any]) -> str:
    if not quality:
        return ""
    rows = "".join(
        f'<tr{" class=winner" if name == quality["regressor"] else ""}><th scope="row">{escape(name)}</th>'
        f"<td>{scores['kendall_tau']:.3f}</td><td>{scores['kendall_tau_best_quarter']:.3f}</td>"
        f"<td>{100 * scores['rmse_log']:.1f} %</td></tr>"
        for name, scores in quality["table"].items()
    )
    return (
        f"<details><summary>Regressors that were tried on {quality['pairs']} pairs, held out in {quality['folds']} "
        'folds</summary><table><thead><tr><th scope="col">Regressor</th><th scope="col">Kendall tau</th>'
        f'<th scope="col">best quarter</th><th scope="col">Error</th></tr></thead><tbody>{rows}</tbody></table>'
        "</details>"
    )


def _kept(value: int, full: int, sparsity: float) -> str:
    if not value:
        return '<strong class="removed">removed</strong>'
    return f"{value:,} of {full:,}" + (f", {100 * sparsity:.3g} % zeros" if sparsity else "")


def _protocol(best: Mapping[str, Any]) -> str:
    texts = {f"Text to {name}": text for name, text in best["texts"].items()}
    protocols = {part["protocol"]: None for part in best["measured"].values() if part.get("protocol")}
    items = {
        **texts,
        **calibration_in_words(best.get("calibration") or {}),
        "Tokens through the model": f"{best['tokens_through_model']:,}",
        "Time": duration(best["wall_seconds"]),
        "Seed": best["seed"],
        "Model": f"{best['model']}, weights {best['weights_hash']}",
        "Winner": best["fingerprint"],
        "Budgets": ", ".join(best["budgets"]),
        "Predictor": ", ".join(f"{name} {_short(value)}" for name, value in best["quality"].items() if name != "table"),
        "Environment": ", ".join(f"{name} {_short(value)}" for name, value in best["environment"].items()),
        "Protocols": ", ".join(protocols),
    }
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in items.items()) + "</dl>"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_short(own)}" for name, own in value.items()) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_PARETO_NOTE = (
    "<p>Each point is an architecture as the search measured it, with its standard error; lower and further left is "
    "better.</p>"
)
_KL_NOTE = (
    "<p>KL is the divergence of its next-token distribution from the dense model's, in nats per token: 0 is the "
    "dense model itself, which a logarithmic axis cannot show.</p>"
)
_LAYERS_NOTE = "<p>Bars are the winner, lines the baselines: choose in the legend which to see.</p>"
_COMMANDS = """<dl class="commands">
<dt><code>secateur export RUN</code></dt><dd>writes the pruned model with its card into <code>RUN/export</code></dd>
<dt><code>secateur generate RUN/export "prompt"</code></dt><dd>lets the pruned model go on from a prompt</dd>
<dt><code>secateur predict RUN</code></dt><dd>asks the run's predictor about an architecture, without a model</dd>
</dl>"""
