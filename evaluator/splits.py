"""Disjoint text for calibrating, searching, validating and reporting.

What is used to choose is never what is reported: the four splits come from separate regions of a text, or the report
from a text of its own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from evaluator.calibration_set import SELF, Calibration, CalibrationSet, fingerprint, gather_set
from evaluator.checkpoint import DenseModel
from evaluator.decoding import Progress
from evaluator.generation import MEASURING, generate_tokens, tokens_to_write
from evaluator.sources import is_hub, named, same_source, tokenise
from space import SettingError, TextError

SPLITS = ("calibrate", "search", "validate", "report")
_PASSAGE = 64  # tokens: more than two texts share by chance, and fewer than a loop of a model's own has
_RECORD = "calibration set"  # beside the splits' names in the metadata of a file


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

    `calibration` is the record of the calibration set, where one was made (see `evaluator.calibration_set`).

    `search:2` is called the beginning of a split, here its first two sequences: a text of its own, to measure on what
    may not be worth more.
    """

    tokens: dict[str, Tensor]
    sources: dict[str, str]
    calibration: Mapping[str, Any] = field(default_factory=dict)

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
        return fingerprint(self.of(split))

    def save(self, file: Path) -> None:
        """Write the splits as safetensors."""
        beside = file.with_suffix(".partial")
        save_file(self.tokens, beside, metadata={**self.sources, _RECORD: json.dumps(self.calibration)})
        beside.replace(file)


def load_texts(file: Path) -> Texts:
    """Read splits written by `Texts.save`."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stream:
        sources = dict(stream.metadata())
    return Texts(load_file(file), sources, json.loads(sources.pop(_RECORD, "{}")))


def prepare_texts(
    dense: DenseModel,
    source: str,
    sizes: SplitSizes,
    seed: int,
    cache: Path,
    report_source: str | None = None,
    progress: Progress = lambda _: None,
    calibration: Calibration | None = None,
) -> Texts:
    """Make the four splits.

    Args:
        dense: whose tokenizer reads, or who writes, the text.
        source: `self`, or a text as `evaluator.sources.tokenise` reads it.
        sizes: of the splits.
        seed: chooses the sequences and drives generation.
        cache: folder for generated batches.
        report_source: another text for reporting; its leading sequences are taken. None reports on `source`.
        progress: told the tokens of each step of generation.
        calibration: what to calibrate on; None, or one without sources, takes `source`, of which the calibration set
            then has a region of its own.

    Raises:
        TextError: a text is missing, unreadable or too short.
        SettingError: the sequences are longer than the model's positions, or a text is to calibrate on that is
            searched or reported on.
    """
    if sizes.sequence_length > dense.longest_sequence:
        raise SettingError(
            f"sequence_length must be at most {dense.longest_sequence} tokens for this model, but is "
            f"{sizes.sequence_length}; lower it."
        )
    recipe = resolved(calibration, source, report_source)
    texts, pools = measured_texts(dense, source, sizes, seed, cache, report_source, progress, [recipe])
    made = gather_set(dense, recipe, sizes.calibrate, sizes.sequence_length, seed, cache, progress, pools)
    return with_calibration(texts, recipe, made)


def with_calibration(texts: Texts, recipe: Calibration, made: CalibrationSet) -> Texts:
    """Return texts with the calibration set that a recipe made."""
    sources = {"calibrate": " and ".join(_title(each) for each, _ in recipe.sources), **texts.sources}
    return Texts({"calibrate": made.tokens, **texts.tokens}, sources, made.record)


def measured_texts(
    dense: DenseModel,
    source: str,
    sizes: SplitSizes,
    seed: int,
    cache: Path,
    report_source: str | None,
    progress: Progress,
    recipes: Sequence[Calibration],
) -> tuple[Texts, dict[str, Tensor]]:
    """Make all splits but that to calibrate on.

    Args:
        dense: whose tokenizer reads, or who writes, the text.
        source: as `prepare_texts`, and so what follows.
        sizes: of the splits.
        seed: chooses the sequences and drives generation.
        cache: folder for generated batches.
        report_source: another text for reporting.
        progress: told the tokens of each step of generation.
        recipes: of calibration sets that may take a part of `source`, which are never together.

    Returns:
        The texts, and by source the sequences that are left to calibrate on.

    Raises:
        TextError: a text is missing, unreadable or too short.
    """
    length, counts = sizes.sequence_length, _own_counts(source, sizes, report_source)
    pools = {}
    if source == SELF:
        written = generate_tokens(dense, sum(counts.values()), length, MEASURING, seed, cache, progress)
        parts = written.split(list(counts.values()))
        tokens = {split: part.clone() for split, part in zip(counts, parts, strict=True)}
    else:
        own = max(recipe.filters.needed(recipe.shares(sizes.calibrate).get(source, 0)) for recipe in recipes)
        tokens, pools[source] = _read(dense, source, {"calibrate": own, **counts}, length, seed)
    sources = dict.fromkeys(counts, _title(source))
    if "report" not in counts:
        assert report_source is not None
        tokens["report"] = _leading(dense, report_source, sizes)
        sources["report"] = named(report_source)
    return Texts(tokens, sources), pools


def text_to_write(
    source: str, sizes: SplitSizes, report_source: str | None = None, calibration: Calibration | None = None
) -> int:
    """Return the tokens that the dense model writes for `prepare_texts`."""
    recipe, length = resolved(calibration, source, report_source), sizes.sequence_length
    measured = sum(_own_counts(source, sizes, report_source).values()) if source == SELF else 0
    return recipe.tokens_to_write(sizes.calibrate, length) + tokens_to_write(measured, length, MEASURING)


def shared_passages(one: Tensor, other: Tensor) -> int:
    """Return how many passages of 64 tokens, or a sequence where that is shorter, two texts share.

    Args:
        one: (sequences, sequence_length) token ids.
        other: the same.
    """
    size = min(_PASSAGE, one.shape[1], other.shape[1])
    seen = {row.tobytes() for row in one.unfold(1, size, 1).flatten(0, 1).contiguous().numpy()}
    return sum(row.tobytes() in seen for row in other.unfold(1, size, 1).flatten(0, 1).contiguous().numpy())


def resolved(calibration: Calibration | None, source: str, report_source: str | None) -> Calibration:
    """Return a recipe with sources, of which none is a text that is searched or reported on.

    Raises:
        SettingError: one is.
    """
    recipe = calibration or Calibration()
    if not recipe.sources:
        return replace(recipe, sources=((source, 1.0),))
    for each, _ in recipe.sources:
        for use, other in (("searches", source), ("reports", report_source)):
            if each not in (SELF, source) and other not in (SELF, None) and same_source(each, other):
                raise SettingError(
                    f"A run must calibrate on other text than it {use} on, but {each!r} is both; give another, or "
                    "spell both alike, and each has a part of the text for itself."
                )
    return recipe


def _own_counts(source: str, sizes: SplitSizes, report_source: str | None) -> dict[str, int]:
    """Return the sequences of each split that `source` gives, calibration apart."""
    own = [split for split in SPLITS[1:] if split != "report" or _same(source, report_source)]
    return {split: getattr(sizes, split) for split in own}


def _same(source: str, report_source: str | None) -> bool:
    if report_source is None or report_source == source:
        return True
    return SELF not in (source, report_source) and not is_hub(source) and same_source(source, report_source)


def _title(source: str) -> str:
    return "self-generated" if source == SELF else named(source)


def _read(
    dense: DenseModel, source: str, counts: dict[str, int], length: int, seed: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Cut a text into one region per split and draw each split's sequences from its region.

    Returns:
        All splits but that to calibrate on, and its whole region.
    """
    needed = sum(counts.values())
    stream = tokenise(dense, source, at_most=8 * needed * length if is_hub(source) else None)
    sequences = packed(stream, source, needed, length)
    # Regions share out what there is in proportion to what is asked, each at least as large as its split.
    edges = np.cumsum([0, *counts.values()]) * len(sequences) // needed
    rng = np.random.default_rng(seed)
    tokens = {}
    for (split, count), first, last in zip(counts.items(), edges[:-1], edges[1:], strict=True):
        if split != "calibrate":
            chosen = np.sort(rng.choice(np.arange(first, last), size=count, replace=False))
            tokens[split] = sequences[torch.from_numpy(chosen)].clone()
    return tokens, sequences[: edges[1]]


def _leading(dense: DenseModel, source: str, sizes: SplitSizes) -> Tensor:
    if source == SELF:
        raise SettingError("A report on self-generated text must search on it as well; leave report_text out.")
    stream = tokenise(dense, source, at_most=None)
    return packed(stream, source, sizes.report, sizes.sequence_length)[: sizes.report].clone()


def packed(stream: Tensor, source: str, needed: int, length: int, use: str = "for its splits") -> Tensor:
    """Return a text as sequences (n, length).

    Args:
        stream: (tokens,) token ids.
        source: what it is called.
        needed: sequences that there must be.
        length: tokens of each.
        use: what they are for.

    Raises:
        TextError: the text is too short.
    """
    available = len(stream) // length
    if available < needed:
        raise TextError(
            f"A text must hold {needed} sequences of {length} tokens {use}, but {source!r} holds {available}; give a "
            "longer text, fewer sequences or a shorter sequence_length."
        )
    return stream[: available * length].view(available, length)
