"""Calibration sets: what a criterion sees of the model's inputs, from which sources, by which recipe, with a record.

A set is packed sequences of token ids. Each source gives units (documents that the model wrote, or packed sequences of
a given text), which filters may leave out; sources are mixed by weights, sequence by sequence by turns, so that the
beginning of a set has all of them.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from evaluator.accuracy import unit_losses
from evaluator.checkpoint import DenseModel
from evaluator.decoding import Progress
from evaluator.filters import Filters, Sieve
from evaluator.generation import CALIBRATION, Writing, documents_of, write_documents
from evaluator.set_statistics import statistics
from evaluator.sources import identity, is_hub, named, tokenise
from space import SettingError, TextError

SELF = "self"
_SPARE = 4  # times the units needed that are drawn of a hub's text, for filters to choose from
_MOST_ROUNDS = 20  # of writing more documents in place of those that filters left out


@dataclass(frozen=True, slots=True)
class Calibration:
    """What to calibrate on, whatever the size.

    Args:
        sources: (source, weight) of each, see `evaluator.sources`, or `self`; none takes the run's text.
        writing: how the model writes its own.
        filters: what to leave out.

    Raises:
        SettingError: a weight is not positive, or a source is there twice.
    """

    sources: tuple[tuple[str, float], ...] = ()
    writing: Writing = CALIBRATION
    filters: Filters = field(default_factory=Filters)

    def __post_init__(self) -> None:
        names = [source for source, _ in self.sources]
        if len(set(names)) < len(names):
            raise SettingError(
                f"Calibration text counts a source once, but has {', '.join(names)}; add up the weights."
            )
        for source, weight in self.sources:
            if not 0 < weight < math.inf:
                raise SettingError(f"A source's weight must be above 0, but {source} has {weight}; leave it out.")

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as records tell it: files without their folders, writing where the model writes."""
        told = asdict(self)
        told["sources"] = [[named(source), weight] for source, weight in self.sources]
        told["writing"] |= {"prefix": named(self.writing.prefix), "temperatures": list(self.writing.temperatures)}
        if SELF not in [source for source, _ in self.sources]:
            del told["writing"]
        return told

    def fingerprint(self) -> str:
        """Return what tells the recipe from others on any machine: files by their content, writing where there is."""
        own = SELF in [source for source, _ in self.sources]
        writing = replace(self.writing, prefix=identity(self.writing.prefix)) if own else None
        content = [[(identity(source), weight) for source, weight in self.sources], writing, self.filters]
        return hashlib.sha256(str(content).encode()).hexdigest()[:16]

    @staticmethod
    def parse_source(text: str) -> tuple[str, float]:
        """Return source and weight of SOURCE or SOURCE=WEIGHT.

        Raises:
            SettingError: the weight is no number.
        """
        source, equals, weight = text.rpartition("=")
        if not equals:
            return text, 1.0
        try:
            return source, float(weight)
        except ValueError:
            raise SettingError(
                f"A source must be SOURCE or SOURCE=WEIGHT, but is {text!r}; write for example c4=0.5."
            ) from None

    @staticmethod
    def parts_of(mix: str) -> list[str]:
        """Return the sources of a mix that are joined with +; a file may have one in its name."""
        return [mix] if Path(mix).is_file() else mix.split("+")

    def shares(self, sequences: int) -> dict[str, int]:
        """Return the sequences of each source, by the largest remainders."""
        weights = np.array([weight for _, weight in self.sources])
        exact = sequences * weights / weights.sum()
        counts = np.floor(exact).astype(int)
        order = np.argsort(counts - exact, kind="stable")
        counts[order[: sequences - counts.sum()]] += 1
        return {source: int(count) for (source, _), count in zip(self.sources, counts, strict=True)}

    def tokens_to_write(self, sequences: int, length: int) -> int:
        """Return the tokens that the model writes for a set, if filters leave out none but the least likely."""
        count = self.shares(sequences).get(SELF, 0)
        each, size = documents_of(length, self.writing)
        return self.filters.needed(count * each) * size if count else 0


@dataclass(frozen=True)
class CalibrationSet:
    """A calibration set with its record.

    Args:
        tokens: (sequences, sequence_length) int64.
        record: hash, model, recipe, seed, sizes, parts and statistics.
        losses: (sequences,) nats per token under the dense model; none where nobody asked.
    """

    tokens: Tensor
    record: dict[str, Any] = field(repr=False)
    losses: Tensor | None = None

    def save(self, file: Path) -> None:
        """Write the set as safetensors, its record in the header."""
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(".partial")
        tensors = {"tokens": self.tokens} | ({} if self.losses is None else {"losses": self.losses})
        save_file(tensors, beside, {"calibration": json.dumps(self.record)})
        beside.replace(file)

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read a set that `save` wrote.

        Raises:
            TextError: there is no such file, or it holds something else.
        """
        try:
            with safe_open(file, "pt") as saved:
                record = json.loads((saved.metadata() or {})["calibration"])
                losses = saved.get_tensor("losses") if "losses" in set(saved.keys()) else None
                found = cls(saved.get_tensor("tokens"), record, losses)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise TextError(
                f"A calibration set must be a file that `secateur calibrate` wrote, but {str(file)!r} is not "
                f"({type(error).__name__}); make it anew."
            ) from None
        if record["hash"] != fingerprint(found.tokens):
            raise TextError(f"A calibration set must be as it was made, but {str(file)!r} was changed; make it anew.")
        return found


def fingerprint(tokens: Tensor) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of token ids and their shape."""
    content = tokens.contiguous()
    return hashlib.sha256(f"{tuple(content.shape)}".encode() + content.numpy().tobytes()).hexdigest()[:16]


def gather_set(
    dense: DenseModel,
    calibration: Calibration,
    sequences: int,
    length: int,
    seed: int,
    cache: Path,
    progress: Progress = lambda _: None,
    pools: Mapping[str, Tensor] | None = None,
    judged: bool = False,
) -> CalibrationSet:
    """Make a calibration set: the same recipe, seed and model make the same set.

    Args:
        dense: the model.
        calibration: the recipe, with at least one source.
        sequences: in all.
        length: tokens of each.
        seed: of the draws.
        cache: folder for what the model writes.
        progress: told the tokens that are written.
        pools: by source, the sequences (n, length) to draw from where they are not all of it.
        judged: whether each sequence's loss under the dense model is told.

    Raises:
        TextError: a source cannot be read, or is too short for what is asked.
        SettingError: the sequences are longer than the model's positions, a library for a filter is not installed, or
            a language is unknown.
    """
    if length > dense.longest_sequence:
        raise SettingError(
            f"sequence_length must be at most {dense.longest_sequence} tokens for this model, but is {length}; "
            "lower it."
        )
    parts, records = [], []
    for source, count in calibration.shares(sequences).items():
        if not count:
            continue
        if source == SELF:
            part, record = _written(dense, calibration, count, length, seed, cache, progress)
        else:
            pool = (pools or {}).get(source)
            part, record = _drawn(dense, source, calibration, count, length, seed, pool)
        parts.append(part)
        records.append({"source": named(source), "sequences": count, **record})
    # By turns: each part's sequences at even distances.
    places = np.concatenate([(np.arange(len(part)) + 0.5) / len(part) for part in parts])
    tokens = torch.cat(parts)[torch.from_numpy(np.argsort(places, kind="stable"))].contiguous()
    losses = unit_losses(dense, tokens) if judged else None
    return CalibrationSet(tokens, _record(dense, calibration, seed, tokens, records, losses), losses)


def _written(
    dense: DenseModel, calibration: Calibration, count: int, length: int, seed: int, cache: Path, progress: Progress
) -> tuple[Tensor, dict[str, Any]]:
    """Return sequences (count, length) of documents that the model wrote and the filters left, and how that went."""
    writing, filters = calibration.writing, calibration.filters
    each, size = documents_of(length, writing)
    sieve, wanted, asked = Sieve(dense, filters), filters.needed(count * each), 0
    found = torch.empty(0, size, dtype=torch.int64)
    for _ in range(_MOST_ROUNDS):
        missing = wanted - len(found)
        if missing <= 0:
            break
        more = write_documents(dense, missing, size, writing, seed, cache, progress, first=asked)
        asked += missing
        found = torch.cat([found, sieve.pass_on(more)])
    if len(found) < wanted:
        raise TextError(
            f"Filters must leave {wanted} documents of those that {dense.name} writes, but left {len(found)} of "
            f"{asked} ({_told(sieve)}); ask for less of them."
        )
    chosen = sieve.likeliest(found, count * each)
    return chosen.reshape(count, each * size)[:, :length].clone(), {"candidates": asked, "dropped": sieve.dropped}


def _drawn(
    dense: DenseModel,
    source: str,
    calibration: Calibration,
    count: int,
    length: int,
    seed: int,
    pool: Tensor | None,
) -> tuple[Tensor, dict[str, Any]]:
    """Return sequences (count, length) drawn from a text of those that the filters leave, and how that went."""
    filters = calibration.filters
    wanted = filters.needed(count)
    if pool is None:
        at_most = 2 * _SPARE * wanted * length if is_hub(source) else None
        stream = tokenise(dense, source, at_most, filters.shortest)
        pool = stream[: len(stream) // length * length].view(-1, length)
    order = torch.from_numpy(np.random.default_rng([seed, 31]).permutation(len(pool)))
    sieve = Sieve(dense, filters)
    found, asked = pool[:0], 0
    while len(found) < wanted and asked < len(pool):
        more = pool[order[asked : asked + wanted - len(found)]]
        asked += len(more)
        found = torch.cat([found, sieve.pass_on(more)])
    if len(found) < wanted:
        dropped = f", of which filters leave {len(found)} ({_told(sieve)})" if sum(sieve.dropped.values()) else ""
        raise TextError(
            f"A text must hold {wanted} sequences of {length} tokens to calibrate on, but {source!r} holds {len(pool)}"
            f"{dropped}; give a longer text, fewer sequences or a shorter sequence_length."
        )
    return sieve.likeliest(found, count), {"candidates": asked, "dropped": sieve.dropped}


def _told(sieve: Sieve) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in sieve.dropped.items() if count) or "none"


def _record(
    dense: DenseModel,
    calibration: Calibration,
    seed: int,
    tokens: Tensor,
    parts: list[dict[str, Any]],
    losses: Tensor | None,
) -> dict[str, Any]:
    return {
        "hash": fingerprint(tokens),
        "model": dense.name,
        "weights_hash": dense.weights_hash,
        "seed": seed,
        "sequences": len(tokens),
        "sequence_length": tokens.shape[1],
        "recipe": calibration.to_dict(),
        "parts": parts,
        "statistics": statistics(dense, tokens, losses),
    }
