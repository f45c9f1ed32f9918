"""The command about accuracy on tasks: `evaluate`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from search.commands.arguments import Json, app, print_json, read_architectures
from search.folder import RunFolder
from search.progress import Reporter


@app.command(epilog="Example: secateur evaluate runs/smollm2-135m-parameters-0.8 --preset commonsense --limit 200")
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL_OR_RUN...",
            help="A run, of which dense, uniform, winner and recovered are asked, or folders and names of models. One "
            "export alone is compared with the dense model that it was made of, several models with the first.",
        ),
    ],
    preset: Annotated[
        list[str] | None,
        typer.Option(
            help="Repeatable: commonsense (ARC-Easy, PIQA, OpenBookQA, WinoGrande, BoolQ, COPA, zero-shot; default), "
            "mmlu (five-shot), openllm-v1."
        ),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Any task of lm-eval by its name, repeatable; NAME@SHOTS with examples.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Items of each task at most, a seeded sample; default all of them.", min=2)
    ] = None,
    task_data: Annotated[
        Path | None,
        typer.Option(
            envvar="SECATEUR_TASK_DATA", help="Folder with the tasks' files, instead of the hub; see docs/accuracy.md."
        ),
    ] = None,
    architecture: Annotated[
        list[Path] | None, typer.Option(help="Of a run, an architecture's JSON file to ask as well, repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sample.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="Where models are, e.g. cuda.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Ask models tasks of lm-eval, side by side, with errors and paired tests.

    Every task's answers are kept by the hash of the model's weights, so the same command goes on where it was stopped.
    What is found of a run becomes part of its report.
    """
    from search.accuracy import evaluate as ask
    from search.accuracy_figure import accuracy_notes, accuracy_table
    from search.accuracy_settings import AccuracySettings

    asked = (*(preset or ()), *(task or ())) or ("commonsense",)
    settings = AccuracySettings(asked, limit, seed, task_data)
    others = {each.fingerprint: each for each in read_architectures(architecture or [])}
    found = ask(list(models), settings, architectures=others, device=device, reporter=Reporter(quiet=as_json))
    run = RunFolder(Path(models[0]))
    page = None
    if len(models) == 1 and run.config_file.exists():
        from search.session import rewrite_report

        page = rewrite_report(run)
    if as_json:
        print_json({**found, **({"report": str(page)} if page else {})})
        return
    console = Console(highlight=False)
    console.print(accuracy_table(found))
    for line in accuracy_notes(found):
        console.print(line, markup=False)
    if page:
        console.print(f"Page: {page}", markup=False, soft_wrap=True)
