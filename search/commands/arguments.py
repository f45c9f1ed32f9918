"""What commands share: the app they belong to, arguments they read alike, and what they print for machines."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from space import Architecture, SearchSpace, SettingError

app = typer.Typer(
    name="secateur",
    help="Find the best pruned version of a language model within a budget: measured, searched, exported.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, as `secateur run` wrote it.")]
Files = Annotated[list[Path], typer.Argument(metavar="ARCHITECTURE...", help="Architecture JSON files; - for stdin.")]


def read_architectures(files: list[Path], space: SearchSpace | None = None) -> list[Architecture]:
    """Return the architectures in files, one per file or one per line; with a space, those outside it are refused."""
    found = []
    for file in files:
        try:
            content = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise SettingError(f"An architecture file must be readable, but {str(file)!r} is not; check it.") from None
        lines = [line.strip() for line in content.splitlines() if line.strip()]
        one_a_line = len(lines) > 1 and all(line.startswith("{") and line.endswith("}") for line in lines)
        found += [Architecture.from_json(text) for text in (lines if one_a_line else [content])]
    if space is not None:
        space.encode(found)
    return found


def changed(architecture: Architecture, changes: list[str], space: SearchSpace) -> Architecture:
    """Return an architecture with changes LAYER.GENE=VALUE made to it."""
    for change in changes:
        place, _, value = change.partition("=")
        layer, _, gene = place.partition(".")
        try:
            replaced = architecture.replace(int(layer), **{gene: yaml.safe_load(value)})
            architecture = Architecture.from_dict(replaced.to_dict())
        except (ValueError, TypeError, IndexError):
            raise SettingError(
                f"--set must be LAYER.GENE=VALUE with a layer of 0 to {space.layout.layers - 1} and a gene of "
                f"kv_groups, mlp_width, attention_sparsity or mlp_sparsity, but is {change!r}; "
                "write for example 3.mlp_width=768."
            ) from None
    space.encode([architecture])
    return architecture


def described(space: SearchSpace, architecture: Architecture) -> dict[str, Any]:
    """Return an architecture as --json tells it."""
    return {
        "fingerprint": architecture.fingerprint,
        "architecture": architecture.to_dict(),
        "cost": space.amounts(architecture),
    }


def print_json(values: dict[str, Any]) -> None:
    """Print the one JSON object of --json."""
    print(json.dumps(values))
