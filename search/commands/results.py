"""Commands about what a run found: `latency`, `report`, `export` and `generate`."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console

from search.commands.arguments import Json, RunArgument, app, print_json, read_architectures
from search.folder import RunFolder
from search.progress import Reporter
from search.settings import DTypeName
from space import Architecture


@app.command(epilog="Example: secateur latency runs/smollm2-135m-latency-0.7 mine.json")
def latency(
    folder: RunArgument,
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[ARCHITECTURE...]",
            help="JSON files; - for stdin; none: the winner, if there is one.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Time architectures and the dense model for real, beside what the table of timings says.

    What is timed the run's settings say (latency.phase, batch and sequence_length). Where the run has no table yet,
    its sub-blocks are timed first, and kept as latency.json.
    """
    from search.latency import time_architectures

    opened = RunFolder(folder)
    asked = {"dense": Architecture.dense(opened.layout())}
    if files:
        asked |= {architecture.fingerprint: architecture for architecture in read_architectures(files)}
    elif opened.best_file.exists():
        asked["winner"] = Architecture.from_dict(opened.best()["architecture"])
    with opened.locked():
        table, rows = time_architectures(opened, list(asked.values()), Reporter(quiet=as_json))
    if as_json:
        results = [
            {"name": name, "fingerprint": architecture.fingerprint, **row}
            for (name, architecture), row in zip(asked.items(), rows, strict=True)
        ]
        print_json({"table": table.to_dict(), "results": results})
        return
    from search.comparison import latency_in_words

    print(f"For {table.conditions}:")
    for name, row in zip(asked, rows, strict=True):
        print(f"{name:<16}  {latency_in_words(row)}")


@app.command(epilog="Example: secateur report runs/smollm2-135m-parameters-0.8")
def report(folder: RunArgument, as_json: Json = False) -> None:
    """Print a finished run's comparison and write report.html anew."""
    opened = RunFolder(folder)
    best = opened.best()
    from search.accuracy_figure import accuracy_table
    from search.report import print_report
    from search.session import rewrite_report

    page = rewrite_report(opened)
    if as_json:
        print_json({"report": str(page), **best})
        return
    console = Console()
    print_report(best, console)
    for found in opened.accuracy().values():
        console.print(accuracy_table(found))
    console.print(f"Page: {page}", soft_wrap=True)


@app.command(epilog="Example: secateur export runs/smollm2-135m-parameters-0.8 --out my-pruned-model")
def export(
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN_OR_FOLDER", help="A run folder, or an export (also a recovered one)."),
    ],
    format: Annotated[  # noqa: A002  the option's name
        str,
        typer.Option(
            help="huggingface: as small and fast as searched, in transformers. gguf: the same in llama.cpp (Llama, "
            "Mistral, Qwen2 and Qwen3). padded: for whatever reads the family's stock class; as big as "
            "the widest layer makes it."
        ),
    ] = "huggingface",
    type: Annotated[  # noqa: A002  the option's name
        list[str] | None,
        typer.Option(
            help="Of GGUF files, repeatable: f32, f16 (default: no loss to speak of, every client), bf16, q8_0, q5_0, "
            "q4_0; q6_k, q5_k_m and q4_k_m where llama.cpp is installed."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to make; default export/ (or export-FORMAT/) in the run folder, or beside a folder."),
    ] = None,
    member: Annotated[
        str | None,
        typer.Option(help="Fingerprint of another member of the run's Pareto set; its folder is export-FINGERPRINT/."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a finished run's winner, another member of its Pareto set, or an export in another format.

    A fresh process loads the export and checks that its logits are those of the model in memory, before it is kept.
    """
    from search.export.best import export_best
    from search.export.llamacpp import INSTALL
    from search.export.place import record_of

    target = export_best(source, format, out, member, type or ())
    record = record_of(target)
    checked = record["format"] != "gguf" or record["checks"]
    if not checked:
        print(f"secateur: not opened by llama.cpp, which is not installed here ({INSTALL}).", file=sys.stderr)
    if as_json:
        print_json({"export": str(target), "files": record["files"], "checked": bool(checked)})
    else:
        print(target)


@app.command(epilog="Example: secateur bench runs/smollm2-135m-parameters-0.8/export")
def bench(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Folders (or names) of models, timed in transformers, runs, whose export is, and GGUF files, timed in "
            "llama.cpp. One alone is timed against the dense model that it was made of, several against the first.",
        ),
    ],
    prompt: Annotated[int, typer.Option(help="Tokens that are read.", min=1)] = 512,
    tokens: Annotated[int, typer.Option(help="Tokens that are written behind them.", min=2)] = 64,
    rounds: Annotated[int, typer.Option(help="Visits of each model, in turns.", min=2)] = 7,
    threads: Annotated[int | None, typer.Option(help="Default as many as torch takes.", min=1)] = None,
    dtype: Annotated[str, typer.Option(help="That folders run in: auto, float32, bfloat16 or float16.")] = "auto",
    as_json: Json = False,
) -> None:
    """Time exports in their clients: prefill, decode, memory and size, dense against pruned in turns.

    Each model has a process of its own. Medians over the rounds, each with its standard error.
    """
    from search.bench import BenchSettings, speed_table
    from search.bench import bench as time_models

    settings = BenchSettings(prompt, tokens, rounds, threads, cast("DTypeName", dtype))
    found = time_models(models, settings, Reporter(quiet=as_json))
    if as_json:
        print_json({"models": [each.to_dict() for each in found]})
        return
    Console().print(speed_table(found, settings))


@app.command(epilog='Example: secateur generate runs/smollm2-135m-parameters-0.8/export "Once upon a time"')
def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An export, or any other model by folder or name.")],
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    tokens: Annotated[int, typer.Option(help="Tokens to add.", min=1)] = 60,
    seed: Annotated[int | None, typer.Option(help="Sample with this seed; default the likeliest text.", min=0)] = None,
    beside: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Another model, which continues the same text after it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Let an exported model, or the dense one, continue a text."""
    from search.export.best import generate_text

    with redirect_stdout(sys.stderr):
        text = generate_text(model, prompt, tokens, seed)
        other = None if beside is None else generate_text(beside, prompt, tokens, seed)
    if as_json:
        print_json({"text": text} if other is None else {"text": text, "beside": other})
    else:
        print(text if other is None else f"{model}:\n{text}\n\n{beside}:\n{other}")
