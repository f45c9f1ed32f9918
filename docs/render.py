"""Render the pages of this folder, and the reference of the public API, as HTML: `make docs`.

python docs/render.py FOLDER
"""

import html
import importlib
import re
import sys
from pathlib import Path

import markdown2
import pdoc
import pdoc.render

PACKAGES = ("space", "evaluator", "predictor", "search")
ROOT = Path(__file__).resolve().parents[1]
_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.55 system-ui,sans-serif;max-width:56rem;margin:0 auto;padding:1.5rem 1rem 4rem}
table{border-collapse:collapse;display:block;overflow-x:auto}
th,td{border-bottom:1px solid #8886;padding:.35rem .7rem;text-align:left;vertical-align:top}
pre,code{font-family:ui-monospace,monospace;font-size:.92em}
pre{background:#8881;padding:.8rem;overflow-x:auto}
img{max-width:100%}
"""
_EXTRAS = ["fenced-code-blocks", "header-ids", "tables"]


def main(target: Path) -> None:
    """Write the pages into a folder, the reference into one of its own below it."""
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            getattr(module, name)  # those that load on first use are documented where they are used first
    pdoc.render.configure(docformat="google", show_source=False, footer_text="Secateur")
    pdoc.pdoc(*PACKAGES, output_directory=target / "reference")
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        name = "index" if page.parent == ROOT else page.stem if page.stem != "README" else "pages"
        (target / f"{name}.html").write_text(_page(page), encoding="utf-8")
    for picture in (ROOT / "docs").glob("*.png"):
        (target / picture.name).write_bytes(picture.read_bytes())


def _page(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    body = markdown2.markdown(text, extras=_EXTRAS)
    body = re.sub(r'href="([^":]+\.md)(#[^"]*)?"', lambda found: f'href="{_html_of(found[1])}{found[2] or ""}"', body)
    body = body.replace('src="docs/', 'src="')
    title = html.escape(text.splitlines()[0].lstrip("# "))
    links = (
        '<a href="index.html">Secateur</a> · <a href="pages.html">Pages</a> · <a href="reference/index.html">API</a>'
    )
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><nav>{links}</nav>{body}</body></html>\n"
    )


def _html_of(link: str) -> str:
    name = Path(link).name
    if name == "README.md":
        return "pages.html" if link != "../README.md" else "index.html"
    return f"{Path(name).stem}.html"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
