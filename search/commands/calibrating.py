"""Commands about what to calibrate on: `calibrate` and `study calibration`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from search.commands.arguments import Json, app, print_json
from search.folder import RunFolder, write_json, write_text
from search.progress import Reporter
from space import SettingError

if TYPE_CHECKING:
    from evaluator import Calibration, CalibrationSet, DenseModel, Filters
    from search.calibration_study import Row, Study
    from search.settings import DTypeName

SETTINGS = ("wanda:0.6", "wanda:parameters=0.8")
# What an inspection goes by; any other option would be about making a set.
_LOOKING = {"model", "inspect", "samples", "as_json"}

Model = Annotated[str | None, typer.Option(help="Built-in name (smollm2-135m), folder, .gguf file or Hugging Face id.")]
Length = Annotated[int, typer.Option(help="Tokens of each sequence.", min=16)]
Device = Annotated[str, typer.Option(help="Where the model is, e.g. cuda; auto for several GPUs.")]

study = typer.Typer(
    name="study",
    help="Compare ways to prune a model by repeated measurements.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(study)


@app.command(epilog="Example: secateur calibrate --model smollm2-135m --source self --source c4=0.5")
def calibrate(
    context: typer.Context,
    model: Model = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="SOURCE or SOURCE=WEIGHT, repeatable to mix: self (default), a .txt, .jsonl or .parquet file, "
            "hub:DATASET, or c4, wikipedia, fineweb-edu and others by name."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to make; default calibration-MODEL-SOURCES.safetensors.")
    ] = None,
    inspect: Annotated[Path | None, typer.Option(help="Make nothing; show the set in this file.")] = None,
    sequences: Annotated[int, typer.Option(help="Sequences of the set.", min=1)] = 128,
    sequence_length: Length = 512,
    seed: Annotated[int, typer.Option(help="Of every random draw.", min=0)] = 0,
    drop_perplexity: Annotated[
        float, typer.Option(help="Share to drop, what the model finds least likely; arXiv 2410.17711 drops 0.2.")
    ] = 0.0,
    near_duplicates: Annotated[
        float | None, typer.Option(help="Jaccard similarity of 5-grams from which on text is dropped as seen before.")
    ] = None,
    language: Annotated[str | None, typer.Option(help="Drop text in other languages; ISO 639-1, e.g. en.")] = None,
    shortest: Annotated[int, typer.Option(help="Tokens that a document of a given text must have.")] = 0,
    prefix: Annotated[
        str | None,
        typer.Option(
            help="What the model's own documents begin with: openings (default), bos, token, or a text, whose lines' "
            "first words it takes."
        ),
    ] = None,
    prefix_tokens: Annotated[
        int | None, typer.Option(help="Of a prefix, at most; default half a document, or 2 of a text.")
    ] = None,
    document: Annotated[int | None, typer.Option(help="Tokens of a document of the model's own; default 128.")] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(help="Of the model's own documents, repeatable, by turns; default 1.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(help="Share of the probability to draw from; default 1.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Likeliest tokens to draw from; default 0, all.")] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Of tokens that a document has already; default 1, none.")
    ] = None,
    device: Device = "cpu",
    samples: Annotated[int, typer.Option(help="Sequences to show the beginnings of.", min=0)] = 3,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another set in the file.")] = False,
    as_json: Json = False,
) -> None:
    """Make a calibration set and save it with its record, or show one.

    A set that was stopped goes on with the same command. `secateur run --calibrate-on FILE` prunes by it.
    """
    if inspect is not None:
        _refuse_making(context)
        from evaluator import CalibrationSet
        from search.calibration_files import beginnings, tokenizer_of

        found = CalibrationSet.load(inspect)
        texts = beginnings(found.tokens, tokenizer_of(model), samples) if model is not None and samples else []
        _show("Calibration set", inspect, found, texts, as_json, _note(found, model) if samples else "")
        return
    name = _given_model(model, "or look at a set with --inspect FILE")
    writing = {
        "prefix": prefix,
        "prefix_tokens": prefix_tokens,
        "document": document,
        "temperatures": tuple(temperature) if temperature else None,
        "top_p": top_p,
        "top_k": top_k,
        "repetition_penalty": repetition_penalty,
    }
    from evaluator import Filters
    from search.calibration_files import Wish, beginnings, check_place, default_file, kept_set, make_set

    filters = Filters(drop_perplexity, near=near_duplicates, language=language, shortest=shortest)
    recipe = _recipe(source or ["self"], {key: value for key, value in writing.items() if value is not None}, filters)
    file = out or default_file(_short(name), [each for each, _ in recipe.sources])
    check_place(file)
    wish, dense = Wish(recipe, sequences, sequence_length, seed), _open(name, device, sequence_length)
    kept = None if overwrite else kept_set(file, wish, dense)
    found = kept or make_set(file, wish, dense, Reporter(quiet=as_json))
    texts = beginnings(found.tokens, dense.tokenizer, samples)
    _show("Already there" if kept else "Made", file, found, texts, as_json)


def _note(found: "CalibrationSet", model: str | None) -> str:
    """Return what is to be said about the samples of a set that is looked at."""
    if model is None:
        return "Samples are read by the model's tokenizer: add --model to see them."
    made_for = str(found.record["model"])
    if _short(model) == _short(made_for):
        return ""
    return f"The set was made for {made_for}; another model's tokenizer may read it wrong."


def _refuse_making(context: typer.Context) -> None:
    """Refuse options of which an inspection would take no notice."""
    for name in context.params:
        given = context.get_parameter_source(name)
        if name not in _LOOKING and given is not None and given.name == "COMMANDLINE":
            raise SettingError(
                f"--inspect shows a set as it is, but --{name.replace('_', '-')} is about making one; leave one of "
                "them out."
            )


def _given_model(model: str | None, way_out: str) -> str:
    if model is None:
        raise SettingError(f"--model must say which model is to be calibrated, but is missing; add it, {way_out}.")
    return model


def _short(model: str) -> str:
    """Return what a model is called in names of files."""
    return (Path(model).name or model).removesuffix(".gguf")


def _recipe(sources: list[str], writing: dict[str, Any], filters: "Filters") -> "Calibration":
    """Return what the options of `calibrate` describe."""
    from evaluator import SELF, Calibration
    from evaluator.generation import CALIBRATION

    parsed = tuple(Calibration.parse_source(source) for source in sources)
    if writing and SELF not in [source for source, _ in parsed]:
        option = next(iter(writing)).replace("temperatures", "temperature").replace("_", "-")
        raise SettingError(
            f"--{option} is about text that the model writes, but the sources are {', '.join(sources)}; add --source "
            "self, or leave it out."
        )
    return Calibration(parsed, replace(CALIBRATION, **writing), filters)


def _open(model: str, device: str, length: int, dtype: "DTypeName" = "auto") -> "DenseModel":
    """Open a model whose positions allow sequences of a length."""
    from evaluator import open_model

    dense = open_model(model, dtype=dtype, device=device)
    if length > dense.longest_sequence:
        raise SettingError(
            f"--sequence-length must be at most {dense.longest_sequence} tokens for this model, but is {length}; "
            "lower it."
        )
    return dense


def _show(lead: str, file: Path, found: "CalibrationSet", samples: list[str], as_json: bool, note: str = "") -> None:
    from search.calibration_files import print_set, visible

    if as_json:
        print_json({"file": str(file), "made": lead == "Made", **found.record, "samples": samples})
        return
    console = Console(highlight=False)
    console.print(f"{lead}: {file}", markup=False, soft_wrap=True)
    print_set(found.record, console)
    for number, text in enumerate(samples, 1):
        console.print(f"{number}. {visible(text)}", markup=False, soft_wrap=True)
    if note:
        console.print(note, markup=False, soft_wrap=True)


@study.command(
    epilog="Example: secateur study calibration --model smollm2-135m --source self --source c4 --text mine.txt"
)
def calibration(
    model: Model = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="[NAME=]SOURCE, repeatable: self, self-filtered (without the fifth that the model finds least "
            "likely), a .txt, .jsonl or .parquet file, hub:DATASET, or c4, wikipedia, fineweb-edu and others by name; "
            "several joined with + are mixed in equal parts. Default self and self-filtered."
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            help="CRITERION:LEVEL to prune by, repeatable: wanda:0.6, sparsegpt:2:4, owl-wanda:0.7 or "
            f"wanda:parameters=0.8. Default {' and '.join(SETTINGS)}."
        ),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="Text to measure on, repeatable, which is no source; as in --source.")
    ] = None,
    draws: Annotated[int, typer.Option(help="Calibration sets to draw of each source.", min=1)] = 5,
    sequences: Annotated[int, typer.Option(help="Sequences of a calibration set.", min=1)] = 32,
    sequence_length: Length = 512,
    report_sequences: Annotated[int, typer.Option(help="First sequences of each text to measure on.", min=1)] = 32,
    seed: Annotated[int, typer.Option(help="Of the first draw; the others follow.", min=0)] = 0,
    drop_perplexity: Annotated[
        float, typer.Option(help="Share of every source to drop, what the model finds least likely.")
    ] = 0.0,
    out: Annotated[Path | None, typer.Option(help="Folder; default studies/calibration-MODEL.")] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Find out which text a model is best calibrated on.

    Each source is drawn several times, the model pruned by each draw under each setting and measured on other text. A
    study that was stopped goes on with the same command, and one with more sources or draws measures those alone.
    """
    name = _given_model(model, "for example --model smollm2-135m")
    if not text:
        raise SettingError("--text must say what to measure on, but is missing; add a text that is no source.")
    from search.calibration_setting import Setting
    from search.calibration_sources import DEFAULT_SOURCES, check_folder, pools_of, recipes_of, refuse_sources, texts_of
    from search.calibration_study import Study, run_study

    recipes = recipes_of(source or DEFAULT_SOURCES, drop_perplexity)
    settings = [Setting.parse(each) for each in dict.fromkeys(setting or SETTINGS)]
    refuse_sources(text, recipes)
    folder = RunFolder(out or Path("studies") / f"calibration-{_short(name)}")
    check_folder(folder)
    dense = _open(name, device, sequence_length, folder.dtype())
    texts = texts_of(dense, text, report_sequences, sequence_length)
    pools = pools_of(dense, recipes, sequences, sequence_length)
    compared = Study(recipes, settings, texts, sequences, sequence_length, seed, pools)
    with folder.locked():
        folder.keep_layout(name, dense.weights_hash, dense.layout, dense.dtype)
        rows = run_study(dense, compared, range(draws), folder.path, Reporter(quiet=as_json))
        told = _keep(folder.path, dense, compared, draws, rows)
    if as_json:
        print_json(told)
        return
    from search.calibration_figure import LEGEND, in_words, study_table

    console = Console(highlight=False)
    console.print(study_table(told))
    console.print(LEGEND, markup=False, soft_wrap=True)
    console.print(in_words(told), markup=False, soft_wrap=True)
    console.print(f"Figure {told['figure']}, numbers {told['study']}", markup=False, soft_wrap=True)


def _keep(folder: Path, dense: "DenseModel", compared: "Study", draws: int, rows: "Sequence[Row]") -> dict[str, Any]:
    """Write what a study found, as numbers and as a page, and return it."""
    from search.calibration_figure import render_study
    from search.calibration_study import described, summary, winners
    from search.environment import describe_environment

    table = summary(rows)
    found = {
        "model": dense.name,
        "weights_hash": dense.weights_hash,
        **described(compared, range(draws)),
        "summary": table,
        "winners": winners(table),
        "rows": rows,
        "environment": describe_environment(dense),
    }
    files = {"study": folder / "study.json", "figure": folder / "study.html"}
    write_json(files["study"], found)
    write_text(files["figure"], render_study(found))
    return {**{name: str(file) for name, file in files.items()}, **found}
