"""The texts of a run: made from its settings once, and kept with it."""

from dataclasses import replace
from pathlib import Path

from evaluator import (
    SELF,
    Calibration,
    CalibrationSet,
    DenseModel,
    Filters,
    SplitSizes,
    Texts,
    Writing,
    gather_set,
    text_to_write,
)
from evaluator import prepare_texts as make_texts
from evaluator.splits import measured_texts, resolved, shared_passages, with_calibration
from search.config import RunConfig
from search.folder import RunFolder
from search.mixes import choose_mix
from search.progress import Reporter
from search.settings import CalibrationConfig, TextConfig
from space import SettingError


def calibration_of(settings: CalibrationConfig, mix: str | None = None) -> Calibration:
    """Return the recipe that settings describe.

    Args:
        settings: of the calibration.
        mix: one of their mixes; None takes their sources.

    Raises:
        SettingError: a source cannot be read, or a number is out of range.
    """
    sources = settings.sources if mix is None else Calibration.parts_of(mix)
    return Calibration(
        tuple(Calibration.parse_source(source) for source in sources),
        Writing(
            settings.document,
            settings.temperatures,
            settings.prefix,
            settings.prefix_tokens,
            settings.top_p,
            settings.top_k,
            settings.repetition_penalty,
        ),
        Filters(
            settings.drop_perplexity,
            settings.duplicates,
            settings.near_duplicates,
            settings.language,
            settings.shortest,
        ),
    )


def texts_of(config: RunConfig, files: RunFolder, dense: DenseModel, reporter: Reporter) -> Texts:
    """Return a run's texts, made now or before.

    Args:
        config: the settings.
        files: the run folder.
        dense: the model.
        reporter: tells a person about the progress.

    Raises:
        TextError: a text is missing, unreadable or too short.
        SettingError: what is to calibrate on is searched or reported on.
    """
    if files.texts_file.exists():
        return files.texts()
    if config.calibration.mixes:
        texts = chosen_texts(config, files, dense, reporter)
        texts.save(files.texts_file)
        return texts
    text, recipe = config.text, calibration_of(config.calibration)
    sizes = sizes_of(text)
    given = _given(config.calibration.set_, dense)
    if given is not None:  # one sequence is the least that a split may have; it is replaced
        sizes, recipe = replace(sizes, calibrate=1), Calibration()
    written = text_to_write(text.source, sizes, text.report, recipe)
    title = "Writing text" if SELF in (text.source, *(source for source, _ in recipe.sources)) else "Reading text"
    with reporter.stage(title, written, "tokens") as advance:
        texts = make_texts(dense, text.source, sizes, config.seed, files.generated, text.report, advance, recipe)
    if given is not None:
        texts = _with_set(texts, given)
    texts.save(files.texts_file)
    return texts


def sizes_of(text: TextConfig) -> SplitSizes:
    """Return the sizes of the splits."""
    return SplitSizes(text.calibrate, text.search, text.validate_, text.report_sequences, text.sequence_length)


def chosen_texts(config: RunConfig, files: RunFolder, dense: DenseModel, reporter: Reporter) -> Texts:
    """Return a run's texts with the calibration set, of those of its mixes, under which allocations lose least.

    Args:
        config: the settings, with mixes.
        files: the run folder, where all sets are kept.
        dense: the model.
        reporter: tells a person about the progress.
    """
    text, sizes, length = config.text, sizes_of(config.text), config.text.sequence_length
    recipes = {
        mix: resolved(calibration_of(config.calibration, mix), text.source, text.report)
        for mix in config.calibration.mixes
    }
    written = sum(recipe.tokens_to_write(sizes.calibrate, length) for recipe in recipes.values())
    with reporter.stage("Reading and writing text", written, "tokens") as advance:
        plain, pools = measured_texts(
            dense, text.source, sizes, config.seed, files.generated, text.report, advance, list(recipes.values())
        )
        sets = {
            mix: gather_set(dense, recipe, sizes.calibrate, length, config.seed, files.generated, advance, pools)
            for mix, recipe in recipes.items()
        }
    for number, made in enumerate(sets.values()):
        made.save(files.mix_file(number))
    chosen, told = choose_mix(config, files, dense, plain, sets, reporter)
    made = replace(sets[chosen], record={**sets[chosen].record, "chosen": chosen, "mixes": told})
    return with_calibration(plain, recipes[chosen], made)


def _given(file: str | None, dense: DenseModel) -> CalibrationSet | None:
    """Return the set in a file, which has to be of this model's tokens."""
    if file is None:
        return None
    found = CalibrationSet.load(Path(file))
    if int(found.tokens.max()) >= dense.layout.vocabulary:
        raise SettingError(
            f"A calibration set must be of the model's own tokens, but {file!r} was made with {found.record['model']} "
            f"and has others than {dense.name}; make one with this model."
        )
    return found


def _with_set(texts: Texts, given: CalibrationSet) -> Texts:
    """Return texts with another calibration set, which holds nothing of them."""
    for split, tokens in texts.tokens.items():
        if split != "calibrate" and shared_passages(given.tokens, tokens):
            raise SettingError(
                f"A calibration set must hold nothing that is measured on, but it has passages of the {split} text; "
                "search and report on other text, or make another set."
            )
    sources = texts.sources | {"calibrate": " and ".join(part["source"] for part in given.record["parts"])}
    return Texts({**texts.tokens, "calibrate": given.tokens}, sources, given.record)
