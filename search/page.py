"""One page that opens anywhere, with nothing to fetch: what reports and studies are written as.

A page holds plotly.js, its styles and its data, and a content security policy that forbids every request, so it can be
mailed or kept beside the numbers.
"""

import json
from html import escape

import plotly.io
from plotly.offline import get_plotlyjs

from search.figures import DARK, Drawing


def page(title: str, body: str) -> str:
    """Return a self-contained HTML page.

    Args:
        title: HTML text.
        body: HTML, its figures as `figure_section` makes them.
    """
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
{body}
</main>
<script>{get_plotlyjs()}</script>
<script>{_SCRIPT.replace("DARK_COLORS", json.dumps(DARK))}</script>
</body>
</html>
"""


def figure_section(name: str, heading: str, drawing: Drawing, note: str = "") -> str:
    """Return a section with a figure, and the sentence that stands for it where it cannot be seen.

    Args:
        name: of the section, an identifier.
        heading: its title, plain text.
        drawing: the figure.
        note: HTML below it.
    """
    data = plotly.io.to_json(drawing.figure, validate=False).replace("<", "\\u003c")
    summary = escape(drawing.summary)
    return f"""<section aria-labelledby="{name}"><h2 id="{name}">{escape(heading)}</h2>
<figure><div class="plot" role="img" aria-label="{summary}" data-figure="{name}-data"
 style="height:{drawing.height}px"></div>
<figcaption>{summary}</figcaption></figure>
<script type="application/json" id="{name}-data">{data}</script>
{note}</section>"""


_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
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
