"""Commands that search: `run` and `join`."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from search.commands.arguments import Json, RunArgument, app, print_json
from search.config import VARIABLE, RunConfig, load_config
from search.folder import RunFolder
from search.progress import Reporter
from search.settings import EngineName
from space import LatencyTable, SettingError


@app.command(epilog="Example: secateur run --model smollm2-135m --budget parameters=0.8")
def run(
    model: Annotated[
        str | None,
        typer.Option(help="Built-in name (smollm2-135m), folder, .gguf file or Hugging Face id."),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            help="METRIC=AMOUNT, repeatable; a fraction of the dense model's (parameters=0.8) or absolute "
            "(weight_bytes=200M, latency=150ms). Metrics: parameters, nonzero_parameters (both of the decoder layers), "
            "weight_bytes, kv_cache_bytes_per_token, flops_per_token, latency (timed on this machine)."
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="A cost to trade the loss against, repeatable: find the Pareto set from the budgets down, not one "
            "architecture. Metrics as in --budget.",
        ),
    ] = None,
    winner: Annotated[
        str | None,
        typer.Option(
            help="With --against, who of the set wins: lowest_kl (default), knee, or cheapest=0.05, the cheapest of "
            "those within 5 % of the lowest KL."
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="Text to calibrate and search on: self (default), a .txt, .jsonl or .parquet file, hub:DATASET, or "
            "c4, wikipedia, fineweb-edu and others by name."
        ),
    ] = None,
    calibrate_on: Annotated[
        list[str] | None,
        typer.Option(
            "--calibrate-on",
            help="Other text to calibrate on: SOURCE or SOURCE=WEIGHT, repeatable to mix; or a .safetensors file that "
            "`secateur calibrate` made.",
        ),
    ] = None,
    report_text: Annotated[
        str | None, typer.Option(help="Another text to report on, e.g. a test set; default a held-back part.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of every random draw; default 0.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/MODEL-BUDGET.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with any settings; options win over it.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting as KEY=VALUE, e.g. search.rounds=6; repeatable.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="A run of the same model under another budget: its predictor answers at once, and what it "
            "measured is not measured again."
        ),
    ] = None,
    predict_only: Annotated[
        bool, typer.Option("--predict-only", help="With --resume: answer and measure nothing.")
    ] = False,
    engine: Annotated[
        EngineName | None, typer.Option(help="local (default), or dask to spread measurements over machines.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="With --engine dask, its scheduler: tcp://HOST:8786, tls://..., or its file.")
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            help="PostgreSQL database for pairs and study: postgresql://USER@HOST/NAME, or the name of the environment "
            "variable that holds that. Default: SQLite in the run folder."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Search, measure, report and export the best pruned model.

    A run that was stopped goes on with the same command and measures nothing twice.
    """
    given = {
        "model": model,
        "budget": budget,
        "search.against": against,
        "search.winner": winner,
        "text.source": text,
        "text.report": report_text,
        **_calibration(calibrate_on or []),
        "seed": seed,
        "engine": engine,
        "address": address,
        "database": _named(database),
    }
    overrides = {key: value for key, value in given.items() if value is not None}
    overrides.update(_parse_settings(setting or []))
    if predict_only and resume is None:
        raise SettingError("--predict-only needs a predictor to ask, but there is no --resume RUN; add it.")
    if resume is None:
        settings = load_config(config, overrides)
        folder = out or Path("runs") / folder_name(settings)
    else:
        if config is not None:
            raise SettingError(
                "--resume takes the settings of the run that it resumes, but --config was given; leave it out."
            )
        from search.another_budget import begin_from

        old = RunFolder(resume)
        settings, folder, latency, told = _answered(old, out, overrides, predict_only, quiet=as_json)
        if predict_only:
            if as_json:
                print_json(told)
            return
        begin_from(old, RunFolder(folder), settings, told, latency)
    _run(settings, folder, as_json)


def _named(database: str | None) -> str | None:
    """Return the name of the environment variable that holds a database's URL, put there if it is given itself."""
    if database is None or ":" not in database:
        return database
    os.environ[VARIABLE] = database
    return VARIABLE


def _calibration(sources: list[str]) -> dict[str, Any]:
    """Return the settings of --calibrate-on."""
    if not any(source.endswith(".safetensors") for source in sources):
        return {"calibration.sources": sources or None}
    if len(sources) > 1:
        raise SettingError(
            f"--calibrate-on takes one set that is made or sources to make one of, but has {', '.join(sources)}; "
            "mix sources with `secateur calibrate`."
        )
    return {"calibration.set": sources[0]}


def _answered(
    old: RunFolder, out: Path | None, overrides: dict[str, Any], predict_only: bool, quiet: bool
) -> tuple[RunConfig, Path, LatencyTable | None, dict[str, Any]]:
    """Answer a new budget on an old run; return the settings, folder and timings of a run under it, and the answer."""
    from search.another_budget import answer, config_of, known_latency, told_in_words

    settings = config_of(old, overrides)
    folder = out or old.path.with_name(folder_name(settings))
    latency = known_latency(old, RunFolder(folder), settings)
    if latency is None and settings.needs_latency and not predict_only:
        latency = _timed(settings)
    told = answer(old, settings, latency)
    if not quiet:
        Console().print(told_in_words(told), soft_wrap=True, highlight=False)
    return settings, folder, latency, told


def _timed(settings: RunConfig) -> LatencyTable:
    """Time the sub-blocks of a run's model."""
    from search.latency import time_model
    from search.session import open_dense

    return time_model(settings, open_dense(settings), Reporter())


def _run(settings: RunConfig, folder: Path, as_json: bool) -> None:
    from search.report import print_report
    from search.run import run_search

    best = run_search(settings, folder, Reporter())
    if as_json:
        print_json({"run": str(folder), **best})
        return
    console = Console()
    print_report(best, console)
    console.print(f"Run folder {folder}: report.html to look at, export/ to load. Hear it speak:", soft_wrap=True)
    console.print(f'  secateur generate {folder / "export"} "Once upon a time"', soft_wrap=True)


@app.command(epilog="Example: secateur join runs/smollm2-135m-parameters-0.8")
def join(folder: RunArgument, as_json: Json = False) -> None:
    """Measure along with a run that another process works on, on other cores or another GPU."""
    from search.join import join_search

    count = join_search(folder, Reporter())
    if as_json:
        print_json({"run": str(folder), "measured": count})
    else:
        Console().print(f"Nothing is left to measure; {count} architectures were measured here.")


def _parse_settings(settings: list[str]) -> dict[str, Any]:
    parsed = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise SettingError(f"--set must be KEY=VALUE, but is {setting!r}; write for example search.rounds=6.")
        parsed[key.strip()] = yaml.safe_load(value)
    return parsed


def folder_name(settings: RunConfig) -> str:
    """Return what a run's folder is called where nobody says."""
    name = Path(settings.model).name or settings.model
    budgets = (budget.replace("=", "-").replace(" ", "") for budget in settings.budget)
    against = ("against", *settings.search.against) if settings.search.against else ()
    return "-".join([name.removesuffix(".gguf"), *budgets, *against])
