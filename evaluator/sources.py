"""Where given text comes from: a local file or a data set of the hub, as documents or as one stream of token ids."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluator.checkpoint import DenseModel
from space import TextError

HUB_PREFIX = "hub:"
# What the field calibrates on, by the names that people use; all have a column "text".
HUB_NAMES = {
    "c4": "allenai/c4:en:train",
    "wikitext2": "Salesforce/wikitext:wikitext-2-raw-v1:train",
    "wikitext103": "Salesforce/wikitext:wikitext-103-raw-v1:train",
    "wikipedia": "wikimedia/wikipedia:20231101.en:train",
    "slimpajama": "DKYoon/SlimPajama-6B::train",
    "fineweb-edu": "HuggingFaceFW/fineweb-edu:sample-10BT:train",
}
KINDS = ("txt", "jsonl", "parquet")
_HUB_CHARACTERS_PER_TOKEN = 8  # generous, so that streaming stops early but not too early


def is_hub(source: str) -> bool:
    """Return whether a source is a data set of the hub."""
    return source.startswith(HUB_PREFIX) or source in HUB_NAMES


def same_source(one: str, other: str) -> bool:
    """Return whether two sources are the same, or may be."""
    if is_hub(one) or is_hub(other):
        return _hub_name(one).split(":")[0] == _hub_name(other).split(":")[0]
    return one == other or Path(one).resolve() == Path(other).resolve()


def named(source: str) -> str:
    """Return a source as records tell it: a file without its folder."""
    return source if is_hub(source) else Path(source).name


def identity(source: str) -> str:
    """Return what tells a source from others on any machine: of a file its name and what it holds."""
    if is_hub(source) or not Path(source).is_file():
        return source
    return f"{Path(source).name} {hashlib.sha256(Path(source).read_bytes()).hexdigest()[:16]}"


def tokenise(dense: DenseModel, source: str, at_most: int | None = None, shortest: int = 0) -> Tensor:
    """Turn a file's or a hub data set's text into one stream of token ids.

    Args:
        dense: whose tokenizer to use.
        source: a .txt, .jsonl (one {"text": ...} a line) or .parquet file (a column "text"), a name of HUB_NAMES, or
            `hub:DATASET[:CONFIG[:SPLIT]]`.
        at_most: tokens after which to stop; None for all.
        shortest: tokens that a document must have; shorter ones are left out.

    Returns:
        (tokens,) int64.

    Raises:
        TextError: the source cannot be read or holds no text.
    """
    separator = [dense.tokenizer.eos_token_id] if dense.tokenizer.eos_token_id is not None else []
    ids: list[int] = []
    for document in documents(source, at_most):
        own = dense.tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
        if len(own) < shortest:
            continue
        ids += [*separator, *own] if ids else own
        if at_most is not None and len(ids) >= at_most:
            break
    if not ids:
        least = f"a document of {shortest} tokens" if shortest else "at least one word"
        raise TextError(f"A text must hold {least}, but {source!r} holds none; give another.")
    return torch.tensor(ids[:at_most], dtype=torch.int64)


def documents(source: str, at_most: int | None = None) -> Iterator[str]:
    """Yield a source's documents; a .txt file is one.

    Args:
        source: as `tokenise`.
        at_most: tokens after which no more are wanted from the hub, which is read no further than that.

    Raises:
        TextError: the source cannot be read.
    """
    yield from _hub_documents(source, at_most) if is_hub(source) else _file_documents(Path(source))


def _file_documents(path: Path) -> Iterator[str]:
    kind = path.suffix.removeprefix(".")
    if kind not in KINDS:
        raise TextError(
            f"A text must be `self`, a .txt, .jsonl or .parquet file, hub:DATASET or one of {', '.join(HUB_NAMES)}, "
            f"but is {str(path)!r}; rename or convert it."
        )
    try:
        if kind == "parquet":
            yield from _rows(path)
            return
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TextError(f"A text file must exist, but there is no {str(path)!r}; check the path.") from None
    except UnicodeDecodeError:
        raise TextError(f"A text file must be UTF-8, but {str(path)!r} is not; convert it.") from None
    yield from _lines(path, content) if kind == "jsonl" else [content]


def _lines(path: Path, content: str) -> Iterator[str]:
    for number, line in enumerate(content.split("\n"), 1):  # JSON allows the other ends of lines inside of strings
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise TextError(
                f'Each line of a .jsonl text must be an object with a "text", but line {number} of {str(path)!r} '
                "is not; repair or remove it."
            ) from None
        yield str(text)


def _rows(path: Path) -> Iterator[str]:
    try:
        import pandas as pd  # late: half a second, which most commands do not need

        table = pd.read_parquet(path, columns=["text"])
    except ImportError:
        raise TextError(
            f"A .parquet text such as {str(path)!r} needs the package `pyarrow`; pip install 'secateur[hub]'."
        ) from None
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise TextError(
            f'A .parquet text must have a column "text", but {str(path)!r} gave: {str(error)[:120]}; repair it.'
        ) from None
    yield from map(str, table["text"])


def _hub_name(source: str) -> str:
    return HUB_NAMES.get(source, source.removeprefix(HUB_PREFIX))


def _hub_documents(source: str, at_most: int | None) -> Iterator[str]:
    characters = 0
    for row in hub_rows(source, _hub_name(source), "text"):
        text = str(row["text"])
        characters += len(text)
        yield text
        if at_most is not None and characters >= at_most * _HUB_CHARACTERS_PER_TOKEN:
            return


def hub_rows(source: str, name: str, column: str | None = None) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a data set of the hub, which is read no further than they are asked for.

    Args:
        source: the data set as the user named it.
        name: `DATASET[:CONFIG[:SPLIT]]`.
        column: what each row must have.

    Raises:
        TextError: it cannot be reached, or has no such column.
    """
    name, _, rest = name.partition(":")
    config, _, split = rest.partition(":")
    try:
        import datasets
    except ImportError:
        raise TextError(
            f"A hub data set such as {source!r} needs the package `datasets`; pip install 'secateur[hub]'."
        ) from None
    try:
        for row in datasets.load_dataset(name, config or None, split=split or "train", streaming=True):
            if column is not None and column not in row:
                raise KeyError(column)
            yield row
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        needed = f' and have a column "{column}"' if column else ""
        raise TextError(
            f"A hub data set must be reachable{needed}, but {source!r} gave: {reason}; "
            "check its name (hub:DATASET:CONFIG:SPLIT) and the network."
        ) from error
