"""Text that the dense model writes itself, no data needed: prefixes, sampling, batches that are kept as they are done.

Every document has the size in tokens that its recipe says, and ends up packed like any other text: without BOS.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from evaluator.checkpoint import DenseModel
from evaluator.decoding import Progress, Sampling, decode, start_of
from evaluator.openings import OPENINGS
from evaluator.sources import documents
from space import SettingError, TextError

BATCH_TOKENS = 16_384  # of the documents that are written at once, whose keys and values are in memory
_GPU_BATCH = 256  # on a GPU, which takes as long for one as for these
_PREFIX_OF_TEXT, _MOST_PREFIXES = 2, 5000  # tokens, and lines of a text: as many as arXiv 2410.17711 takes
BUILT_IN_PREFIXES = ("openings", "bos", "token")


@dataclass(frozen=True, slots=True)
class Writing:
    """How the model writes text.

    Args:
        document: tokens of each document, at most a sequence.
        temperatures: of the documents by turns.
        prefix: what a document begins with: `openings`, one of our many; `bos`, nothing but the token that begins a
            text; `token`, one drawn from the vocabulary; or a text's source, whose lines' first words it takes.
        prefix_tokens: of the prefix, at most; None takes half of the document, or 2 of a text, as arXiv 2410.17711.
        top_p: share of the probability that is drawn from.
        top_k: most likely tokens that are drawn from; 0 for all.
        repetition_penalty: of tokens that the document has already; 1 for none.

    Raises:
        SettingError: a number is out of range.
    """

    document: int
    temperatures: tuple[float, ...] = (1.0,)
    prefix: str = "openings"
    prefix_tokens: int | None = None
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, good, rule in (
            ("document", self.document >= 2, "at least 2 tokens"),
            ("temperatures", bool(self.temperatures) and min(self.temperatures) > 0, "above 0"),
            ("prefix_tokens", 0 < (self.prefix_tokens or 1) < self.document, "above 0 and below document"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
        ):
            if not good:
                raise SettingError(f"{name} must be {rule}, but is {getattr(self, name)}; change it.")


# Tried on SmolLM2-135M, 32 sequences of 512 tokens each to calibrate on: KL of uniform widths at 80 % with the ends
# whole, on WikiText-2 validation and C4 (8 sequences each; calibrated on other C4 text: 0.580 and 0.506).
#   512 tokens from BOS, temperature 1 or 1, 0.9 and 0.8 in turn     0.67 and 0.62, 0.63 and 0.61
#   128 tokens from BOS, temperature 1                               0.61 and 0.57
#   128 tokens from a random token, temperature 1                    0.66 and 0.64
#   512 tokens from an opening, temperature 1                        0.62 and 0.59
#   128 tokens from an opening, temperature 1 or 1, 0.9, 0.8         0.56 and 0.55, 0.58 and 0.54
#   64 tokens from an opening, temperature 1                         0.56 and 0.55
#   128 tokens from BOS and an opening, temperature 1                0.58 and 0.55
CALIBRATION = Writing(document=128, temperatures=(1.0,))
# To measure on, short documents are a fault: they never show what attention over longer distances is worth, and a
# search on them cuts KV groups too deep. Long ones at temperature 1 drift into noise (perplexity 46 to the model that
# wrote them, where WikiText-2 has 21) and make first layers look dear and middle ones cheap; at 0.9 it is the other way
# round. KL of an MLP cut to a third, as a multiple of the same on WikiText-2 validation, median over layers 1:
#   layer               1     4     7     10    13    16    19    22    25    28
#   temperature 1      1.41  1.24  1.09  1.16  1.05  0.78  0.87  0.95  0.89  0.95
#   temperature 0.9    0.90  0.74  0.82  1.31  1.32  1.16  1.31  1.03  0.76  0.97
#   C4                 0.89  0.98  0.92  1.05  1.07  0.90  1.01  1.07  0.99  1.19
# What a KV group is worth differs between C4 and WikiText-2 as much as between either and text of any temperature.
MEASURING = Writing(document=512, temperatures=(1.0, 0.9))


def tokens_to_write(count: int, length: int, writing: Writing) -> int:
    """Return the tokens that `generate_tokens` writes for `count` sequences of `length` tokens."""
    each, size = documents_of(length, writing)
    return count * each * size


def documents_of(length: int, writing: Writing) -> tuple[int, int]:
    """Return how many documents make a sequence of `length` tokens, and their size."""
    size = min(writing.document, length)
    return -(-length // size), size


def generate_tokens(
    dense: DenseModel,
    count: int,
    length: int,
    writing: Writing,
    seed: int,
    cache: Path,
    progress: Progress = lambda _: None,
) -> Tensor:
    """Let the dense model write sequences, each made of documents of its own.

    Args:
        dense: the model.
        count: sequences to write.
        length: tokens of each.
        writing: the recipe.
        seed: of the sampling and the order of prefixes.
        cache: folder for the batches.
        progress: told the tokens written by each step.

    Returns:
        (count, length) token ids, int64.

    Raises:
        TextError: there is no prefix to begin with.
    """
    each, size = documents_of(length, writing)
    written = write_documents(dense, count * each, size, writing, seed, cache, progress)
    return written.view(count, each * size)[:, :length].clone()


def write_documents(
    dense: DenseModel,
    count: int,
    size: int,
    writing: Writing,
    seed: int,
    cache: Path,
    progress: Progress = lambda _: None,
    first: int = 0,
) -> Tensor:
    """Let the dense model write documents from its BOS token and a prefix each.

    Batches are saved as they are done, so that an interrupted generation goes on where it stopped; each batch has its
    own seed, so the text does not depend on where it was interrupted. Text written in another way is other text,
    whatever the seed.

    Args:
        dense: the model.
        count: documents to write.
        size: tokens of each.
        writing: the recipe.
        seed: of the sampling and the order of prefixes.
        cache: folder for the batches.
        progress: told the tokens written by each step.
        first: documents of the same seed that were written before, which these go on from.

    Returns:
        (count, size) token ids, int64.

    Raises:
        TextError: there is no prefix to begin with.

    Source: arXiv 2410.17711, section 4 (self-generation), whose prefixes are the first words of Wikipedia texts.
    """
    cache.mkdir(parents=True, exist_ok=True)
    prompts = _prompts(dense, first + count, size, writing, f"{seed} {size}")[first:]
    found = torch.empty(len(prompts), size, dtype=torch.int64)
    turns = len(writing.temperatures)
    for turn, temperature in enumerate(writing.temperatures):
        own = prompts[turn::turns]
        salt = f"{seed} {size} {temperature}" + (f" {first}" if first else "")
        together = _GPU_BATCH if dense.model.device.type == "cuda" else max(1, BATCH_TOKENS // size)
        parts = [own[start : start + together] for start in range(0, len(own), together)]
        batches = [
            _batch(dense, part, size, writing, temperature, f"{salt} {index}", cache, progress)
            for index, part in enumerate(parts)
        ]
        if batches:
            found[turn::turns] = torch.cat(batches)
    return found


def _batch(
    dense: DenseModel,
    prompts: list[list[int]],
    size: int,
    writing: Writing,
    temperature: float,
    salt: str,
    cache: Path,
    progress: Progress,
) -> Tensor:
    """Return documents (prompts, size), written now or before."""
    sampling = Sampling(temperature, writing.top_p, writing.top_k, writing.repetition_penalty)
    recipe = json.dumps([dense.weights_hash, prompts, salt, asdict(sampling)])
    file = cache / f"{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.safetensors"
    if file.exists():
        progress(len(prompts) * size)
    else:
        written = decode(dense, prompts, size, sampling, _seed(salt), progress)
        beside = file.with_suffix(".partial")
        save_file({"tokens": written}, beside)
        beside.replace(file)
    return load_file(file)["tokens"]


def _prompts(dense: DenseModel, count: int, size: int, writing: Writing, salt: str) -> list[list[int]]:
    """Return the prefixes' token ids in a random order, all of them before any comes again."""
    rng = np.random.default_rng(_seed(salt))
    if writing.prefix == "bos":
        if start_of(dense) is None:
            raise TextError(
                f"Text can begin with BOS where the tokenizer has such a token, but that of {dense.name} has none; "
                "begin with openings."
            )
        return [[]] * count
    if writing.prefix == "token":
        plain = sorted(set(range(len(dense.tokenizer))) - set(dense.tokenizer.all_special_ids))
        return [[int(token)] for token in rng.choice(plain, count)]
    prefixes = _prefixes(dense, size, writing)
    if not prefixes:
        raise TextError(
            f"Self-generated text must begin with words that the tokenizer knows, but {dense.name} knows none of "
            f"{writing.prefix}; give a text file instead."
        )
    rounds = -(-count // len(prefixes))
    order = np.concatenate([rng.permutation(len(prefixes)) for _ in range(rounds)])
    return [prefixes[index] for index in order[:count]]


def _prefixes(dense: DenseModel, size: int, writing: Writing) -> list[list[int]]:
    """Return the token ids of our openings, or of the first words of a text's lines that are longer than these."""
    if writing.prefix in BUILT_IN_PREFIXES:
        longest = min(writing.prefix_tokens or size // 2, size - 1)
        read = (dense.tokenizer(opening, add_special_tokens=False)["input_ids"][:longest] for opening in OPENINGS)
        return [ids for ids in read if ids]
    longest = min(writing.prefix_tokens or _PREFIX_OF_TEXT, size - 1)
    lines = [line.strip() for text in documents(writing.prefix, _MOST_PREFIXES * size) for line in text.splitlines()]
    read = (dense.tokenizer(line[: 16 * longest], add_special_tokens=False)["input_ids"] for line in lines if line)
    found = dict.fromkeys(tuple(ids[:longest]) for ids in islice(read, _MOST_PREFIXES) if len(ids) >= longest)
    return [list(ids) for ids in found]


def _seed(salt: str) -> int:
    return int.from_bytes(hashlib.sha256(f"generate {salt}".encode()).digest()[:6])
