"""What a study of calibration compares and measures on: read from the words of a command, refused before it starts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from evaluator import SELF, Calibration, DenseModel, Filters
from evaluator.sources import documents, is_hub, named, same_source, tokenise
from evaluator.splits import packed
from search.folder import RunFolder
from space import RunFolderError, SettingError

FILTERED, _FILTERED_SHARE = "self-filtered", 0.2  # what arXiv 2410.17711 drops
DEFAULT_SOURCES = (SELF, FILTERED)


def recipes_of(sources: Sequence[str], drop_perplexity: float = 0.0) -> dict[str, Calibration]:
    """Return recipes by name.

    Args:
        sources: [NAME=]SOURCE, or several sources joined with +, which are mixed in equal parts.
        drop_perplexity: share of each that is dropped, but of `self-filtered`, which has its own.

    Raises:
        SettingError: two have one name, or one is filtered in two ways.
        TextError: there is no such text.
    """
    found: dict[str, Calibration] = {}
    for text in sources:
        name, equals, words = ("", "", text) if Path(text).is_file() else text.rpartition("=")
        parts = Calibration.parts_of(words)
        name = name if equals else "+".join(map(named, parts))
        if name in found:
            raise SettingError(
                f"A study tells sources apart by their names, but two are called {name!r}; write NAME=SOURCE."
            )
        found[name] = _recipe(parts, drop_perplexity)
    return found


def _recipe(parts: Sequence[str], drop_perplexity: float) -> Calibration:
    if FILTERED in parts:
        if len(parts) > 1 or drop_perplexity:
            raise SettingError(
                f"{FILTERED} is filtered for itself, but is {'in a mix' if len(parts) > 1 else 'to be filtered again'};"
                f" take self with --drop-perplexity {_FILTERED_SHARE}, which filters every source."
            )
        return Calibration(((SELF, 1.0),), filters=Filters(_FILTERED_SHARE))
    for part in parts:
        if part != SELF and not is_hub(part):
            next(documents(part), None)  # read as far as to see that it is one
    return Calibration(tuple((part, 1.0) for part in parts), filters=Filters(drop_perplexity))


def refuse_sources(texts: Sequence[str], recipes: Mapping[str, Calibration]) -> None:
    """Check that no text to measure on is a source, or may be.

    Raises:
        SettingError: one is.
    """
    given = dict.fromkeys(source for recipe in recipes.values() for source, _ in recipe.sources if source != SELF)
    for text in texts:
        if text in (SELF, FILTERED) or any(same_source(source, text) for source in given):
            raise SettingError(
                f"A study must measure on text that it does not calibrate on, but {text!r} is a source; give another "
                "as --text."
            )


def texts_of(dense: DenseModel, sources: Sequence[str], count: int, length: int) -> dict[str, Tensor]:
    """Return the first sequences (count, length) of each text to measure on, by name.

    Raises:
        TextError: a text cannot be read, or is too short.
        SettingError: two have one name.
    """
    found: dict[str, Tensor] = {}
    for source in sources:
        name = named(source).replace(":", "-")  # with which the beginning of a text is named
        if name in found:
            raise SettingError(
                f"A study tells texts apart by their file names, but two are called {name!r}; rename one."
            )
        found[name] = packed(tokenise(dense, source, count * length), source, count, length, "to measure on")[:count]
    return found


def pools_of(dense: DenseModel, recipes: Mapping[str, Calibration], sequences: int, length: int) -> dict[str, Tensor]:
    """Return the sequences (n, length) of each file that is drawn from, read once for all draws.

    Raises:
        TextError: a text cannot be read, or is too short.
    """
    found: dict[str, Tensor] = {}
    for recipe in recipes.values():
        for source, count in recipe.shares(sequences).items():
            if count and source != SELF and not is_hub(source):
                whole = found[source].flatten() if source in found else tokenise(dense, source)
                found[source] = packed(whole, source, recipe.filters.needed(count), length, "to calibrate on")
    return found


def check_folder(folder: RunFolder) -> None:
    """Check that a folder is new or holds a study.

    Raises:
        RunFolderError: it holds something else.
    """
    path = folder.path
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"A study must have a folder, but {str(path)!r} is a file; choose another with --out.")
    begun = folder.layout_file.exists() and not folder.config_file.exists()
    # What a study leaves that was killed before it had written its first file.
    ours = {".lock", f".{folder.layout_file.name}.partial"}
    if path.exists() and not begun and any(entry.name not in ours for entry in path.iterdir()):
        raise RunFolderError(
            f"A study's folder must be new or hold a study, but {str(path)!r} holds other files; choose another with "
            "--out."
        )
