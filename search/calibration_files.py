"""Calibration sets as files: what each was asked for, made once, gone on with where it was stopped, shown."""

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from rich.bar import Bar
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from evaluator import PACKAGED_MODELS, Calibration, CalibrationSet, DenseModel, gather_set, open_model
from evaluator.checkpoint import quiet_transformers
from search.progress import Reporter
from search.scratch import kept_beside
from space import SettingError, TextError

_ASKED = "asked"  # in the record, beside what it tells people
_CHARACTERS = 200  # of a sample,
_TOKENS_A_SAMPLE = 4  # and tokens for each of them: some characters have a token for each of their bytes
_BAR = 40  # characters


@dataclass(frozen=True, slots=True)
class Wish:
    """A calibration set that is asked for.

    Args:
        recipe: with at least one source.
        sequences: in all.
        length: tokens of each.
        seed: of every random draw.
    """

    recipe: Calibration
    sequences: int
    length: int
    seed: int

    def fingerprint(self, dense: DenseModel) -> str:
        """Return what tells a set from others before it is made: of the model, the recipe, and files by content."""
        content = [dense.weights_hash, self.recipe.fingerprint(), self.sequences, self.length, self.seed]
        return hashlib.sha256(str(content).encode()).hexdigest()[:16]


def default_file(model: str, sources: Sequence[str]) -> Path:
    """Return what a set's file is called where nobody says, of a model of that name."""
    names = [model, *(Path(source).stem for source in sources)]
    return Path("-".join(["calibration", *(re.sub(r"[^\w.+-]+", "-", name) for name in names)]) + ".safetensors")


def check_place(file: Path) -> None:
    """Check that a set can be kept in a file of that name.

    Raises:
        SettingError: it is a folder, or called something else.
    """
    if file.suffix != ".safetensors" or file.is_dir():
        kind = "a folder" if file.is_dir() else "called otherwise"
        raise SettingError(
            f"A calibration set must be kept in a .safetensors file, but {str(file)!r} is {kind}; change --out."
        )


def kept_set(file: Path, wish: Wish, dense: DenseModel) -> CalibrationSet | None:
    """Return the set in a file, or None where there is no such file yet.

    Raises:
        SettingError: the file holds something else than what is asked for.
    """
    if not file.exists():
        return None
    try:
        found = CalibrationSet.load(file)
        told = f"another set ({_parts(found.record)}, seed {found.record['seed']}, for {found.record['model']})"
    except TextError:
        found, told = None, "something else"
    if found is not None and found.record.get(_ASKED) == wish.fingerprint(dense):
        return found
    raise SettingError(
        f"A calibration set must not take the place of other work, but {str(file)!r} holds {told}; "
        "choose another file with --out, or add --overwrite."
    )


def _parts(record: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{part['sequences']} x {record['sequence_length']} of {part['source']}" for part in record["parts"]
    )


def make_set(file: Path, wish: Wish, dense: DenseModel, reporter: Reporter) -> CalibrationSet:
    """Make a set and save it; what the model writes is kept beside it until then, a batch at a time.

    Args:
        file: where to save it.
        wish: what is asked for.
        dense: the model.
        reporter: tells a person about the progress.

    Raises:
        TextError: a source cannot be read, or is too short for what is asked.
        SettingError: a library for a filter is not installed.
        RunFolderError: another process is making this very file.
    """
    total = wish.recipe.tokens_to_write(wish.sequences, wish.length)
    writing = reporter.stage("Writing text", total, "tokens") if total else nullcontext(lambda _: None)
    with kept_beside(file.with_name(f".{file.stem}-generated")) as cache:
        with writing as advance:
            made = gather_set(dense, wish.recipe, wish.sequences, wish.length, wish.seed, cache, advance, judged=True)
        made = replace(made, record={**made.record, _ASKED: wish.fingerprint(dense)})
        made.save(file)
        shutil.rmtree(cache)
    return made


def beginnings(tokens: Tensor, tokenizer: PreTrainedTokenizerBase, count: int) -> list[str]:
    """Return the first 200 characters of the first sequences of a set, in which every source is as it is in the whole.

    Args:
        tokens: (sequences, sequence_length) token ids.
        tokenizer: that of the set's model.
        count: sequences, at most.
    """
    rows = tokens[:count, : _TOKENS_A_SAMPLE * _CHARACTERS]
    return [str(tokenizer.decode(row))[:_CHARACTERS] for row in rows]


def tokenizer_of(model: str) -> PreTrainedTokenizerBase:
    """Return a model's tokenizer, without its weights where it is a folder or a Hugging Face id.

    Raises:
        ModelError: there is no such model.
    """
    if model not in PACKAGED_MODELS and not model.endswith(".gguf"):
        # What is wrong with it, opening the model says.
        with suppress(OSError, ValueError, KeyError), quiet_transformers():
            return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(model))
    return open_model(model).tokenizer


def visible(text: str) -> str:
    """Return a text in one line, with what a terminal would not print or would obey written out, as in \\n."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def print_set(record: Mapping[str, Any], console: Console) -> None:
    """Print what a calibration set is made of and like.

    Args:
        record: of a `CalibrationSet`.
        console: where to print.
    """
    for line in _set_lines(record):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(_parts_table(record))
    if "perplexity" in record["statistics"]:
        console.print(_histogram(record["statistics"]["perplexity"]["histogram"]))


def _set_lines(record: Mapping[str, Any]) -> Iterator[str]:
    told = record["statistics"]
    yield f"Hash {record['hash']}, for {record['model']} (weights {record['weights_hash']}), seed {record['seed']}"
    yield (
        f"{record['sequences']:,} sequences x {record['sequence_length']:,} tokens: {told['distinct_tokens']:,} are "
        f"distinct, {told['ends_of_documents']:,} end documents; {100 * told['repeated_4grams']:.1f} % of 4-grams "
        "repeat one of their sequence"
    )
    if "perplexity" not in told:
        yield "Its perplexity was not computed."
        return
    quantiles = (f"{100 * float(q):.0f} % {value:,.2f}" for q, value in told["perplexity"]["quantiles"].items())
    yield f"Perplexity to the dense model: mean {told['perplexity']['mean']:,.2f}; quantiles {', '.join(quantiles)}"


def _parts_table(record: Mapping[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1))
    table.add_column("Source")
    table.add_column("Sequences", justify="right")
    table.add_column("Candidates", justify="right")
    table.add_column("Left out by filters")
    for part in record["parts"]:
        dropped = [f"{name.replace('_', ' ')} {count:,}" for name, count in part["dropped"].items() if count]
        cells = (f"{part['sequences']:,}", f"{part['candidates']:,}", ", ".join(dropped) or "none")
        table.add_row(escape(part["source"]), *cells)
    return table


def _histogram(histogram: Mapping[str, Sequence[float]]) -> Table:
    """Return a bar for each of the bins, which are equally wide in the logarithm of the perplexity."""
    edges, counts = histogram["edges"], histogram["counts"]
    table = Table(box=None, padding=(0, 1))
    table.add_column("Perplexity", justify="right")
    table.add_column("Sequences")
    table.add_column("")
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        bar = Bar(max(counts), 0, count, width=_BAR)
        table.add_row(f"{low:,.2f} to {high:,.2f}", bar, f"{count:,}" if count else "")
    return table
