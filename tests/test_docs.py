"""What README and docs/ say can be followed and typed, and the reference has every public name."""

import importlib
import re
import shlex
import warnings
from pathlib import Path

import pytest
from typer.main import get_command

from search.commands import app
from tests.test_house import MAY_IMPORT, ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"```(?:sh|bash|console|shell)?\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("secateur ")]


LINES = [(page.stem, line) for page in PAGES for line in commands(page)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are made of their words."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


def test_the_readme_and_pages_of_uses_show_commands():
    shown = {page for page, _ in LINES}
    assert {"README", "run-a-search", "ask-the-predictor", "export-the-best", "accuracy"} <= shown


@pytest.mark.parametrize(("page", "line"), LINES)
def test_every_command_that_is_shown_is_one(page, line):
    name, *arguments = shlex.split(line, comments=True)[1:]
    known = get_command(app).commands
    assert name in known, f"secateur {name} is no command"
    for end in (">", "|", "&&"):
        arguments = arguments[: arguments.index(end)] if end in arguments else arguments
    known[name].make_context(name, arguments, resilient_parsing=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_benchmarks_that_are_named_exist(page):
    for name in re.findall(r"tests\.benchmarks\.(\w+)", page.read_text(encoding="utf-8")):
        assert (ROOT / "tests" / "benchmarks" / f"{name}.py").exists(), f"{page.name} names {name}"


def test_every_page_is_in_the_list_of_pages():
    listed = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    missing = [page.name for page in PAGES[1:] if page.name != "README.md" and f"({page.name})" not in listed]
    assert missing == []


def test_the_reference_has_every_public_name(tmp_path, monkeypatch):
    pytest.importorskip("pdoc", reason="needs the package `pdoc`: pip install 'secateur[docs]'")
    monkeypatch.syspath_prepend(ROOT / "docs")
    render = importlib.import_module("render")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        render.main(tmp_path)
    assert [str(each.message) for each in warned if "__all__" in str(each.message)] == []
    for package in MAY_IMPORT:
        page = (tmp_path / "reference" / f"{package}.html").read_text()
        names = getattr(importlib.import_module(package), "__all__", ())
        assert names
        assert [name for name in names if f'id="{name}"' not in page] == []
    pages = list(tmp_path.glob("*.html"))
    assert len(pages) == len(PAGES)
    for page in pages:
        for link in re.findall(r'href="([^":#]+)(?:#[^"]*)?"', page.read_text()):
            if link.endswith(".html"):
                assert (tmp_path / link).exists(), f"{page.name} links to {link}"
