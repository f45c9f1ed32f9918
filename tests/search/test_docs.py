"""What the README says can be typed."""

import re
import shlex

import pytest
from typer.main import get_command

from search.commands import app
from tests.search.command import ROOT

README = ROOT / "README.md"


def commands():
    if not README.exists():
        return []
    text = README.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"```(?:sh|bash|console|shell)?\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("secateur ")]


def test_the_readme_shows_commands():
    if not README.exists():
        pytest.skip("there is no README.md yet")
    assert commands()


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_readme_is_one(line):
    name, *arguments = shlex.split(line, comments=True)[1:]
    known = get_command(app).commands
    assert name in known, f"secateur {name} is no command"
    for end in (">", "|", "&&"):
        arguments = arguments[: arguments.index(end)] if end in arguments else arguments
    known[name].make_context(name, arguments, resilient_parsing=False)
