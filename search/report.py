"""What a run found, for people: a table on the terminal and one page that opens anywhere, with nothing to fetch.

The page holds plotly.js, its styles and its data, and a content security policy that forbids every request, so it can
be mailed or kept beside the numbers. Both say the same: the rows are made once, in `search.comparison`.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.io
from plotly.offline import get_plotlyjs
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from search.calibration_words import calibration_in_words
from search.comparison import PairRow, comparison, duration, headline, notes, pareto_front, title_of
from search.figures import DARK, Drawing, pareto_drawing, prediction_drawing
from search.folder import write_text
from search.layer_map import layers_drawing, rounds_drawing
from search.learned import curve_drawing, damages_drawing, refinement_drawing
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


def render_report(best: Mapping[str, Any], pairs: Sequence[PairRow]) -> str:
    """Return one self-contained HTML page about a run.

    Args:
        best: the content of a run's `best.json`.
        pairs: the architectures that the run measured.

    Raises:
        RunFolderError: the content is of another format.
        ArchitectureError: an architecture in it is damaged.
    """
    table, title = _html_table(best), escape(title_of(best))
    winner = Architecture.from_dict(best["architecture"])
    tau = best["quality"].get("kendall_tau")
    quality = f" (held-out Kendall tau {tau:.2f})" if tau is not None else ""
    learned = best["learned"]  # nothing where too little was measured for a predictor
    drawings: list[tuple[str, str, Drawing | None, str]] = [
        ("pareto", "Cost against loss", pareto_drawing(best, pairs), _PARETO_NOTE),
        ("set", "The Pareto set", set_drawing(best, pairs), set_table(best)),
        ("prediction", f"Predicted against measured{quality}", prediction_drawing(pairs), HELD_OUT),
        ("layers", "What was kept of each layer", layers_drawing(best), _LAYERS_NOTE + _layer_table(best, winner)),
        ("damages", "Why: what each layer costs the winner", damages_drawing(learned) if learned else None, ""),
        ("refinement", "What the search was refined to", refinement_drawing(best), ""),
        ("rounds", "Progress over rounds", rounds_drawing(best), ""),
        ("curve", "Would more pairs pay?", curve_drawing(learned) if learned else None, _regressors(best["quality"])),
    ]
    figures = "\n".join(_figure(name, head, shown, note) for name, head, shown, note in drawings if shown)
    lead = escape(headline(best)).replace(" ± ", "&nbsp;±&nbsp;").replace(" %", "&nbsp;%")
    lines = "".join(f"<p>{escape(line)}</p>" for line in notes(best))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="lead">{lead}</p>
<section aria-labelledby="comparison"><h2 id="comparison">Comparison</h2>
{table}
{lines}</section>
{figures}
<section aria-labelledby="protocol"><h2 id="protocol">How it was measured</h2>
{_protocol(best)}</section>
<section aria-labelledby="use"><h2 id="use">How to use the result</h2>
<p><code>RUN</code> is the folder that this page lies in.</p>
{_COMMANDS}</section>
</main>
<script>{get_plotlyjs()}</script>
<script>{_SCRIPT.replace("DARK_COLORS", json.dumps(DARK))}</script>
</body>
</html>
"""


def write_report(folder: Path, best: Mapping[str, Any], pairs: Sequence[PairRow]) -> Path:
    """Write `report.html` into a run's folder and return its path; a reader never sees half a page.

    Args:
        folder: the run's folder, which must exist.
        best: the content of its `best.json`.
        pairs: the architectures that the run measured.

    Raises:
        RunFolderError: `best` is of another format.
        ArchitectureError: an architecture in `best` is damaged.
    """
    path = folder / "report.html"
    write_text(path, render_report(best, pairs))
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


def _figure(name: str, heading: str, drawing: Drawing, note: str) -> str:
    data = plotly.io.to_json(drawing.figure, validate=False).replace("<", "\\u003c")
    summary = escape(drawing.summary)
    return f"""<section aria-labelledby="{name}"><h2 id="{name}">{escape(heading)}</h2>
<figure><div class="plot" role="img" aria-label="{summary}" data-figure="{name}-data"
 style="height:{drawing.height}px"></div>
<figcaption>{summary}</figcaption></figure>
<script type="application/json" id="{name}-data">{data}</script>
{note}</section>"""


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


_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
_PARETO_NOTE = (
    "<p>Each point is an architecture run on the search text, with its standard error; lower and further left is "
    "better. KL is the divergence of its next-token distribution from the dense model's, in nats per token: 0 is the "
    "dense model itself, which a logarithmic axis cannot show.</p>"
)
_LAYERS_NOTE = "<p>Bars are the winner, lines the baselines: choose in the legend which to see.</p>"
_COMMANDS = """<dl class="commands">
<dt><code>secateur export RUN</code></dt><dd>writes the pruned model with its card into <code>RUN/export</code></dd>
<dt><code>secateur generate RUN/export "prompt"</code></dt><dd>lets the pruned model go on from a prompt</dd>
<dt><code>secateur predict RUN</code></dt><dd>asks the run's predictor about an architecture, without a model</dd>
</dl>"""
_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--muted:#59616b;--grid:#e1e4e8;--paper:#fff;--soft:#f4f6f8;
--accent:#0072b2;--alarm:#b54a00}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--muted:#a8b0ba;--grid:#30363d;--paper:#15181c;--soft:#1e2329;
--accent:#56b4e9;--alarm:#f0814a}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1080px;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.35rem;line-height:1.25;margin:0 0 .75rem;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:0 0 .75rem}
section{margin-top:2.75rem}
p{max-width:46rem;margin:.6rem 0}
.lead{font-size:1.45rem;line-height:1.35;margin:0;padding:1rem 1.25rem;max-width:none;background:var(--soft);
border-left:4px solid var(--accent)}
.scroll{overflow-x:auto}
.scroll:focus-visible,summary:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
.numbers{width:100%}
caption{text-align:left;color:var(--muted);padding-bottom:.4rem;font-size:.9rem}
th,td{padding:.4rem .6rem;border-bottom:1px solid var(--grid);text-align:right;white-space:nowrap;font-weight:400}
thead th{white-space:normal;font-size:.9rem;color:var(--muted);vertical-align:bottom}
tr>th:first-child{text-align:left;position:sticky;left:0;background:var(--paper)}
.winner>*{font-weight:700}
.winner>*,tr.winner>th:first-child{background:var(--soft)}
.removed{color:var(--alarm)}
figure{margin:0}
.plot{width:100%}
figcaption{color:var(--muted);font-size:.9rem;margin-top:.5rem;max-width:46rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.35rem 1.25rem;margin:.6rem 0}
dt{color:var(--muted)}
dd{margin:0;overflow-wrap:anywhere}
code{font:.92em ui-monospace,monospace;background:var(--soft);padding:.1em .35em;color:var(--ink)}
summary{cursor:pointer;color:var(--accent);margin-top:.6rem}
@media(max-width:600px){.lead{font-size:1.2rem}dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.6rem}}
"""
# Colours are swapped in the text of the figures, before they are read; a finger scrolls the page and does not zoom.
_SCRIPT = """
const dark = matchMedia("(prefers-color-scheme: dark)"), colors = DARK_COLORS;
const finger = matchMedia("(pointer: coarse)").matches;
function draw() {
  for (const place of document.querySelectorAll(".plot")) {
    let text = document.getElementById(place.dataset.figure).textContent;
    if (dark.matches) text = text.replace(/"(#[0-9a-f]{6})"/g, (all, color) => '"' + (colors[color] || color) + '"');
    const figure = JSON.parse(text);
    figure.layout.dragmode = finger ? false : "zoom";
    Plotly.react(place, figure.data, figure.layout, {responsive: true, displaylogo: false, displayModeBar: false});
  }
}
dark.addEventListener("change", draw);
draw();
"""
