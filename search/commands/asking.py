"""Commands that ask a run: `sample`, `measure`, `fit` and `predict`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from search.commands.arguments import Files, Json, RunArgument, app, changed, described, print_json, read_architectures
from search.folder import RunFolder
from search.progress import Reporter
from space import LATENCY, Architecture, SettingError, milliseconds


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
        print_json({"architectures": [described(space, architecture) for architecture in found]})
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
    architectures = read_architectures(files, space)
    from search.session import open_evaluator  # not before: a refusal need not wait for torch

    reporter = Reporter(quiet=as_json)
    with opened.locked(), open_evaluator(opened) as judge:
        with reporter.stage("Measuring", len(architectures), "architectures") as advance:
            found = judge.measure(architectures, split, "user", advance)
        protocol = judge.protocol(split).fingerprint
    rows = [
        {**described(space, architecture), "measured": measurement.to_dict(), "protocol": protocol}
        for architecture, measurement in zip(architectures, found, strict=True)
    ]
    if as_json:
        print_json({"split": split, "results": rows})
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
        print_json(told)
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
    asked = read_architectures(files, space) if files else [Architecture.from_dict(opened.best()["architecture"])]
    asked = [changed(architecture, changes or [], space) for architecture in asked]
    from predictor import AccuracyPredictor  # not before: a refusal need not wait for scikit-learn

    predictors = [AccuracyPredictor.load(path) for path in ([by] if by else opened.predictors())]
    if ask:
        from search.prompt import converse

        converse(predictors, space, asked[0], lambda before, words: changed(before, words, space))
        return
    answers = [predictor.predict(asked) for predictor in predictors]
    rows: list[dict[str, Any]] = [
        {
            **described(space, architecture),
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
        print_json({"results": rows})
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


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SettingError(f"--{name} must be one of {', '.join(allowed)}, but is {value!r}; choose one.")
