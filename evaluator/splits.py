"""Disjoint text for calibrating, searching, validating and reporting.

What is used to choose is never what is reported: the four splits come from separate regions of a text, or the report
from a text of its own.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from evaluator.checkpoint import DenseModel
from evaluator.texts import (
    CALIBRATION,
    HUB_PREFIX,
    MEASURING,
    Progress,
    Writing,
    generate_tokens,
    tokenise,
    tokens_to_write,
)
from space import SettingError, TextError

SELF = "self"
SPLITS = ("calibrate", "search", "validate", "report")


@dataclass(frozen=True, slots=True)
class SplitSizes:
    """Sequences in each split, and tokens in a sequence."""

    calibrate: int = 128  # the least-squares update needs 65,536 tokens
    search: int = 8  # 4,088 predicted tokens; measured some hundred times
    validate: int = 16
    report: int = 32
    sequence_length: int = 512

    def __post_init__(self) -> None:
        for split in SPLITS:
            if getattr(self, split) < 1:
                raise SettingError(f"Each split must have at least 1 sequence, but {split} has {getattr(self, split)}.")
        if self.sequence_length < 16:
            raise SettingError(f"sequence_length must be at least 16 tokens, but is {self.sequence_length}.")


@dataclass(frozen=True)
class Texts:
    """Token ids of the four splits, each (sequences, sequence_length) int64, and where each came from.

    `search:2` is called the beginning of a split, here its first two sequences: a text of its own, to measure on what
    may not be worth more.
    """

    tokens: dict[str, Tensor]
    sources: dict[str, str]

    def of(self, split: str) -> Tensor:
        """Return the token ids (sequences, sequence_length) of a split or of its beginning.

        Raises:
            SettingError: there is no such split, or it has fewer sequences.
        """
        name, _, first = split.partition(":")
        if name not in self.tokens or (first and not first.isdecimal()):
            raise SettingError(
                f"A split must be one of {', '.join(self.tokens)}, or its beginning as in search:2, but is {split!r}."
            )
        tokens = self.tokens[name]
        count = int(first) if first else len(tokens)
        if not 1 <= count <= len(tokens):
            raise SettingError(
                f"The beginning of {name} must be 1 to {len(tokens)} sequences, but is {count}; ask for less."
            )
        return tokens[:count]

    def source(self, split: str) -> str:
        """Return where a split came from."""
        return self.sources[split.partition(":")[0]]

    def fingerprint(self, split: str) -> str:
        """Return the first 16 hexadecimal digits of the SHA-256 of the token ids of a split or of its beginning."""
        tokens = self.of(split).contiguous()
        return hashlib.sha256(f"{tuple(tokens.shape)}".encode() + tokens.numpy().tobytes()).hexdigest()[:16]

    def save(self, file: Path) -> None:
        """Write the splits as safetensors."""
        beside = file.with_suffix(".partial")
        save_file(self.tokens, beside, metadata=self.sources)
        beside.replace(file)


def load_texts(file: Path) -> Texts:
    """Read splits written by `Texts.save`."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stream:
        sources = dict(stream.metadata())
    return Texts(load_file(file), sources)


def prepare_texts(
    dense: DenseModel,
    source: str,
    sizes: SplitSizes,
    seed: int,
    cache: Path,
    report_source: str | None = None,
    progress: Progress = lambda _: None,
) -> Texts:
    """Make the four splits.

    Args:
        dense: whose tokenizer reads, or who writes, the text.
        source: `self`, a .txt or .jsonl file, or `hub:DATASET[:CONFIG[:SPLIT]]`.
        sizes: of the splits.
        seed: chooses the sequences and drives generation.
        cache: folder for generated batches.
        report_source: another text for reporting; its leading sequences are taken. None reports on `source`.
        progress: told the tokens of each step of generation.

    Raises:
        TextError: a text is missing, unreadable or too short.
        SettingError: the sequences are longer than the model's positions.
    """
    if sizes.sequence_length > dense.longest_sequence:
        raise SettingError(
            f"sequence_length must be at most {dense.longest_sequence} tokens for this model, but is "
            f"{sizes.sequence_length}; lower it."
        )
    counts = _own_counts(source, sizes, report_source)
    make = _generated if source == SELF else _read
    tokens = make(dense, source, counts, sizes.sequence_length, seed, cache, progress)
    sources = dict.fromkeys(counts, "self-generated" if source == SELF else _named(source))
    if "report" not in counts:
        assert report_source is not None
        tokens["report"] = _leading(dense, report_source, sizes)
        sources["report"] = _named(report_source)
    return Texts(tokens, sources)


def text_to_write(source: str, sizes: SplitSizes, report_source: str | None = None) -> int:
    """Return the tokens that the dense model writes for `prepare_texts`."""
    if source != SELF:
        return 0
    counts = _own_counts(source, sizes, report_source)
    length = sizes.sequence_length
    return sum(tokens_to_write(sum(splits.values()), length, writing) for writing, splits in _writings(counts).items())


def _own_counts(source: str, sizes: SplitSizes, report_source: str | None) -> dict[str, int]:
    """Return the sequences of each split that `source` gives."""
    own = [split for split in SPLITS if split != "report" or _same(source, report_source)]
    return {split: getattr(sizes, split) for split in own}


def _same(source: str, report_source: str | None) -> bool:
    if report_source is None or report_source == source:
        return True
    files = not source.startswith(HUB_PREFIX) and source != SELF and not report_source.startswith(HUB_PREFIX)
    return files and Path(source).resolve() == Path(report_source).resolve()


def _named(source: str) -> str:
    return source if source.startswith(HUB_PREFIX) else Path(source).name


def _generated(
    dense: DenseModel, _: str, counts: dict[str, int], length: int, seed: int, cache: Path, progress: Progress
) -> dict[str, Tensor]:
    tokens: dict[str, Tensor] = {}
    for writing, splits in _writings(counts).items():
        written = generate_tokens(dense, sum(splits.values()), length, writing, seed, cache, progress)
        parts = written.split(list(splits.values()))
        tokens |= {split: part.clone() for split, part in zip(splits, parts, strict=True)}
    return tokens


def _writings(counts: dict[str, int]) -> dict[Writing, dict[str, int]]:
    """Return the sequences of each split by how they are written."""
    found: dict[Writing, dict[str, int]] = {}
    for split, count in counts.items():
        found.setdefault(CALIBRATION if split == "calibrate" else MEASURING, {})[split] = count
    return found


def _read(
    dense: DenseModel, source: str, counts: dict[str, int], length: int, seed: int, _: Path, __: Progress
) -> dict[str, Tensor]:
    """Cut a text into one region per split and draw each split's sequences from its region."""
    needed = sum(counts.values())
    stream = tokenise(dense, source, at_most=8 * needed * length if source.startswith(HUB_PREFIX) else None)
    sequences = _packed(stream, source, needed, length)
    # Regions share out what there is in proportion to what is asked, each at least as large as its split.
    edges = np.cumsum([0, *counts.values()]) * len(sequences) // needed
    rng = np.random.default_rng(seed)
    tokens = {}
    for (split, count), first, last in zip(counts.items(), edges[:-1], edges[1:], strict=True):
        chosen = np.sort(rng.choice(np.arange(first, last), size=count, replace=False))
        tokens[split] = sequences[torch.from_numpy(chosen)].clone()
    return tokens


def _leading(dense: DenseModel, source: str, sizes: SplitSizes) -> Tensor:
    if source == SELF:
        raise SettingError("A report on self-generated text must search on it as well; leave report_text out.")
    stream = tokenise(dense, source, at_most=None)
    return _packed(stream, source, sizes.report, sizes.sequence_length)[: sizes.report].clone()


def _packed(stream: Tensor, source: str, needed: int, length: int) -> Tensor:
    available = len(stream) // length
    if available < needed:
        raise TextError(
            f"A text must hold {needed} sequences of {length} tokens for its splits, but {source!r} holds {available}; "
            "give a longer text, fewer sequences or a shorter sequence_length."
        )
    return stream[: available * length].view(available, length)
