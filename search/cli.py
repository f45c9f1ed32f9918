"""The command `secateur`: parse, validate, call. Every command has --json for machines."""

import errno
import json
import os
import sqlite3
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from search.config import RunConfig, load_config
from search.folder import RunFolder
from search.progress import Reporter
from space import LATENCY, Architecture, LatencyTable, SearchSpace, SecateurError, SettingError, milliseconds

INTERRUPTED = 130  # what shells expect after Ctrl-C
REFUSED = 2
_STOPPED = "Stopped; the same command goes on from here."

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
        typer.Option(help="Text to calibrate and search on: self (default), a .txt or .jsonl file, or hub:DATASET."),
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
        "seed": seed,
    }
    overrides = {key: value for key, value in given.items() if value is not None}
    overrides.update(_parse_settings(setting or []))
    if predict_only and resume is None:
        raise SettingError("--predict-only needs a predictor to ask, but there is no --resume RUN; add it.")
    if resume is None:
        settings = load_config(config, overrides)
        folder = out or Path("runs") / _folder_name(settings)
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
                _print_json(told)
            return
        begin_from(old, RunFolder(folder), settings, told, latency)
    _run(settings, folder, as_json)


def _answered(
    old: RunFolder, out: Path | None, overrides: dict[str, Any], predict_only: bool, quiet: bool
) -> tuple[RunConfig, Path, LatencyTable | None, dict[str, Any]]:
    """Answer a new budget on an old run; return the settings, folder and timings of a run under it, and the answer."""
    from search.another_budget import answer, config_of, known_latency, told_in_words

    settings = config_of(old, overrides)
    folder = out or old.path.with_name(_folder_name(settings))
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
        _print_json({"run": str(folder), **best})
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
        _print_json({"run": str(folder), "measured": count})
    else:
        Console().print(f"Nothing is left to measure; {count} architectures were measured here.")


@app.command(epilog="Example: secateur sample runs/smollm2-135m-parameters-0.8 --count 3 > samples.jsonl")
def sample(
    folder: RunArgument,
    count: Annotated[int, typer.Option(help="Architectures to draw.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Of the draws.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Draw architectures on a run's budget, one JSON object a line."""
    import numpy as np

    from space import sample as draw

    space = RunFolder(folder).search_space()
    found = space.decode(draw(space, count, np.random.default_rng(seed)))
    if as_json:
        _print_json({"architectures": [_described(space, architecture) for architecture in found]})
        return
    for architecture in found:
        print(architecture.to_json())


@app.command(epilog="Example: secateur measure runs/smollm2-135m-parameters-0.8 mine.json --split validate")
def measure(
    folder: RunArgument,
    files: Files,
    split: Annotated[str, typer.Option(help="Text to measure on: search, validate or report.")] = "search",
    as_json: Json = False,
) -> None:
    """Measure architectures for real and keep the pairs.

    They are measured with the run's model, text and criterion; those on the search text count in the next fit.
    """
    _one_of("split", split, ("search", "validate", "report"))
    opened = RunFolder(folder)
    space = opened.search_space()
    architectures = _architectures(files, space)
    from search.session import open_evaluator  # not before: a refusal need not wait for torch

    reporter = Reporter(quiet=as_json)
    with opened.locked(), open_evaluator(opened) as judge:
        with reporter.stage("Measuring", len(architectures), "architectures") as advance:
            found = judge.measure(architectures, split, "user", advance)
        protocol = judge.protocol(split).fingerprint
    rows = [
        {**_described(space, architecture), "measured": measurement.to_dict(), "protocol": protocol}
        for architecture, measurement in zip(architectures, found, strict=True)
    ]
    if as_json:
        _print_json({"split": split, "results": rows})
        return
    for architecture, told in zip(architectures, found, strict=True):
        print(
            f"{architecture.fingerprint}  perplexity {told.perplexity:.2f} ± {told.perplexity_standard_error:.2f}"
            f"  KL {told.kl:.4f} ± {told.kl_standard_error:.4f}  ({told.tokens:,} tokens)"
        )


@app.command(epilog="Example: secateur fit runs/mine --pairs arc.csv --value accuracy --target accuracy --dense 0.44")
def fit(
    folder: RunArgument,
    pairs: Annotated[
        Path | None,
        typer.Option(help="CSV or Parquet with pairs measured elsewhere, columns like 3.mlp_width; default the run's."),
    ] = None,
    value: Annotated[str, typer.Option(help="Column of --pairs with what was measured.")] = "kl",
    target: Annotated[
        str, typer.Option(help="What it is: kl, nll, perplexity, accuracy (better when higher) or latency.")
    ] = "kl",
    dense: Annotated[float, typer.Option(help="What the dense model measures; 0 for kl.")] = 0.0,
    out: Annotated[Path | None, typer.Option(help="Folder for it; default predictor/ or predictor-VALUE/.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of folds and models; default the run's.", min=0)] = None,
    as_json: Json = False,
) -> None:
    """Fit the predictor anew and say how good it is.

    It learns from all pairs of the run, those that you measured included; or from a table of pairs of the same model.
    """
    from predictor import Target
    from search.learned import verdict
    from search.session import fit_table, refit

    opened = RunFolder(folder)
    if pairs is None:
        told = refit(opened, seed, out)
    else:
        told = fit_table(opened, pairs, value, Target(target, dense, value), seed or 0, out)
    if as_json:
        _print_json(told)
        return
    quality = told["quality"]
    table = quality.pop("table")
    for name, number in quality.items():
        print(f"{name:<26} {number:.3f}" if isinstance(number, float) else f"{name:<26} {number}")
    for name, scores in table.items():
        print(f"{name:<26} error {scores['rmse_log']:.3f}, Kendall tau {scores['kendall_tau']:.3f}")
    print(verdict(told))


@app.command(epilog="Example: secateur predict runs/smollm2-135m-parameters-0.8 --set 3.mlp_width=768")
def predict(
    folder: RunArgument,
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[ARCHITECTURE...]", help="JSON files; - for stdin; none: the winner."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="LAYER.GENE=VALUE changed against each architecture, e.g. 3.mlp_width=768."),
    ] = None,
    ask: Annotated[bool, typer.Option(help="Open a prompt that keeps answering; `help` in it says what to.")] = False,
    by: Annotated[Path | None, typer.Option(help="Folder of the predictor; default the run's own.")] = None,
    as_json: Json = False,
) -> None:
    """Ask what an architecture would measure, loading no model."""
    opened = RunFolder(folder)
    space = opened.search_space()
    asked = _architectures(files, space) if files else [Architecture.from_dict(opened.best()["architecture"])]
    asked = [_changed(architecture, changes or [], space) for architecture in asked]
    from predictor import AccuracyPredictor  # not before: a refusal need not wait for scikit-learn

    predictors = [AccuracyPredictor.load(path) for path in ([by] if by else opened.predictors())]
    if ask:
        from search.prompt import converse

        converse(predictors, space, asked[0], lambda before, words: _changed(before, words, space))
        return
    answers = [predictor.predict(asked) for predictor in predictors]
    rows: list[dict[str, Any]] = [
        {
            **_described(space, architecture),
            "predicted": {
                predictor.target.title: {
                    "value": float(answer.value[row]),
                    "lower": float(answer.lower[row]),
                    "upper": float(answer.upper[row]),
                    "protocol": predictor.protocol,
                }
                for predictor, answer in zip(predictors, answers, strict=True)
            },
        }
        for row, architecture in enumerate(asked)
    ]
    if as_json:
        _print_json({"results": rows})
        return
    dense = space.amounts(Architecture.dense(space.layout))
    for row in rows:
        told = ", ".join(
            f"{predictor.target.shown} {each['value']:.4g} (90 % interval {each['lower']:.4g} to {each['upper']:.4g})"
            for predictor, each in zip(predictors, row["predicted"].values(), strict=True)
        )
        share = row["cost"]["parameters"] / dense["parameters"]
        timed = f", {milliseconds(row['cost'][LATENCY])}" if LATENCY in row["cost"] else ""
        print(f"{row['fingerprint']}  {told}, {share:.1%} of the decoder's parameters{timed}")


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
        asked |= {architecture.fingerprint: architecture for architecture in _read(files)}
    elif opened.best_file.exists():
        asked["winner"] = Architecture.from_dict(opened.best()["architecture"])
    with opened.locked():
        table, rows = time_architectures(opened, list(asked.values()), Reporter(quiet=as_json))
    if as_json:
        results = [
            {"name": name, "fingerprint": architecture.fingerprint, **row}
            for (name, architecture), row in zip(asked.items(), rows, strict=True)
        ]
        _print_json({"table": table.to_dict(), "results": results})
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
    from search.report import print_report
    from search.session import rewrite_report

    page = rewrite_report(opened)
    if as_json:
        _print_json({"report": str(page), **best})
        return
    console = Console()
    print_report(best, console)
    console.print(f"Page: {page}", soft_wrap=True)


@app.command(epilog="Example: secateur export runs/smollm2-135m-parameters-0.8 --out my-pruned-model")
def export(
    folder: RunArgument,
    format: Annotated[str, typer.Option(help="huggingface.")] = "huggingface",  # noqa: A002  the option's name
    out: Annotated[Path | None, typer.Option(help="Folder to make; default export/ in the run folder.")] = None,
    member: Annotated[
        str | None,
        typer.Option(help="Fingerprint of another member of the run's Pareto set; its folder is export-FINGERPRINT/."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a finished run's winner, or another member of its Pareto set.

    A fresh process loads the export and checks that its logits are those of the model in memory, before it is kept.
    """
    from search.export.best import export_best

    target = export_best(folder, format, out, member)
    _print_json({"export": str(target)}) if as_json else print(target)


@app.command(epilog='Example: secateur generate runs/smollm2-135m-parameters-0.8/export "Once upon a time"')
def generate(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="An exported model.")],
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    tokens: Annotated[int, typer.Option(help="Tokens to add.", min=1)] = 60,
    seed: Annotated[int | None, typer.Option(help="Sample with this seed; default the likeliest text.", min=0)] = None,
    as_json: Json = False,
) -> None:
    """Let an exported model continue a text."""
    from search.export.best import generate_text

    with redirect_stdout(sys.stderr):
        text = generate_text(folder, prompt, tokens, seed)
    _print_json({"text": text}) if as_json else print(text)


def main() -> None:
    """Run the command line: 0 done, 2 refused with one sentence, 130 interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(_guarded(lambda: app(standalone_mode=True)))


def _guarded(call: Callable[[], Any]) -> int:
    try:
        call()
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # typer turns Ctrl-C into this, without a word
            print(_STOPPED, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else 0
    except SecateurError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print(_STOPPED, file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if _disk_full(error):
            return _refuse(
                "Results must fit on the disk, but it is full; free some space and repeat the command, it goes on "
                "where it stopped."
            )
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return _refuse(
                f"What a run writes and reads must be open to you, but {str(error.filename)!r} is not; change its "
                "permissions, or choose another place with --out (run folder) or SECATEUR_CACHE (converted models)."
            )
        raise
    return 0


def _refuse(sentence: str) -> int:
    print(f"secateur: {sentence}", file=sys.stderr)
    return REFUSED


def _disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one it came from, says that the disk is full; libraries wrap it in their own."""
    while error is not None:
        full = isinstance(error, sqlite3.OperationalError) and "full" in str(error)
        if full or "No space left on device" in str(error) or "os error 28" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _parse_settings(settings: list[str]) -> dict[str, Any]:
    parsed = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise SettingError(f"--set must be KEY=VALUE, but is {setting!r}; write for example search.rounds=6.")
        parsed[key.strip()] = yaml.safe_load(value)
    return parsed


def _folder_name(settings: RunConfig) -> str:
    name = Path(settings.model).name or settings.model
    budgets = (budget.replace("=", "-").replace(" ", "") for budget in settings.budget)
    against = ("against", *settings.search.against) if settings.search.against else ()
    return "-".join([name.removesuffix(".gguf"), *budgets, *against])


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SettingError(f"--{name} must be one of {', '.join(allowed)}, but is {value!r}; choose one.")


def _architectures(files: list[Path], space: SearchSpace) -> list[Architecture]:
    """Read architectures and check that they are in the space."""
    found = _read(files)
    space.encode(found)
    return found


def _read(files: list[Path]) -> list[Architecture]:
    """Read architectures, one per file or one per line."""
    found = []
    for file in files:
        try:
            content = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise SettingError(f"An architecture file must be readable, but {str(file)!r} is not; check it.") from None
        lines = [line.strip() for line in content.splitlines() if line.strip()]
        one_a_line = len(lines) > 1 and all(line.startswith("{") and line.endswith("}") for line in lines)
        found += [Architecture.from_json(text) for text in (lines if one_a_line else [content])]
    return found


def _changed(architecture: Architecture, changes: list[str], space: SearchSpace) -> Architecture:
    for change in changes:
        place, _, value = change.partition("=")
        layer, _, gene = place.partition(".")
        try:
            changed = architecture.replace(int(layer), **{gene: yaml.safe_load(value)})
            architecture = Architecture.from_dict(changed.to_dict())
        except (ValueError, TypeError, IndexError):
            raise SettingError(
                f"--set must be LAYER.GENE=VALUE with a layer of 0 to {space.layout.layers - 1} and a gene of "
                f"kv_groups, mlp_width, attention_sparsity or mlp_sparsity, but is {change!r}; "
                "write for example 3.mlp_width=768."
            ) from None
    space.encode([architecture])
    return architecture


def _described(space: SearchSpace, architecture: Architecture) -> dict[str, Any]:
    return {
        "fingerprint": architecture.fingerprint,
        "architecture": architecture.to_dict(),
        "cost": space.amounts(architecture),
    }


def _print_json(values: dict[str, Any]) -> None:
    print(json.dumps(values))


if __name__ == "__main__":
    main()
