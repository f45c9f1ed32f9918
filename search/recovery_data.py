"""What a recovery learns from: examples, given or rewritten, and plain text, as samples; and what is set about it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from evaluator import SELF, Calibration, DenseModel, gather_set
from evaluator.generation import MEASURING
from evaluator.recovery.batches import samples_of
from evaluator.recovery.examples import Example, Sample, encode_examples, read_examples
from evaluator.recovery.finetune import Recipe
from evaluator.recovery.selfdata import SelfData, rewrite
from evaluator.sources import is_hub, named, tokenise
from evaluator.splits import shared_passages
from search.progress import Reporter
from space import SettingError, TextError

_HELD_OUT, _MOST_HELD_OUT = 0.05, 64  # share of the samples to stop by, and their number at most
_LONGEST = 1024  # tokens of an example, beyond which it is left out
_REWRITE_TOKENS = 256  # of a rewritten answer at most
# Added to the seed of text that the dense model writes: a run's own text, which is reported on, has the same recipe.
_APART = 1_000_000

Answers = Literal["self", "given"]


@dataclass(frozen=True, slots=True)
class RecoverySettings:
    """What a recovery learns from, and how.

    Args:
        recipe: of the fine-tuning.
        data: sources of examples, see `read_examples`.
        answers: `self`, the dense model's rewrites that pass the check (arXiv 2410.09982), or `given`, as they are.
        check_working: whether a rewrite's way to its number is looked at as well; see `rewrite`.
        examples: to draw of each source; None for all.
        text: sources of plain text, see `evaluator.sources`; `self` is text that the dense model writes.
        text_length: tokens of a sequence of text.
        report: text to measure on before and after; None takes a run's report text, if the model is of a run.

    Raises:
        SettingError: there is nothing to learn from, or the text to measure on would be written, not read.
    """

    recipe: Recipe = field(default_factory=Recipe)
    data: tuple[str, ...] = ()
    answers: Answers = "self"
    check_working: bool = False
    examples: int | None = None
    text: tuple[str, ...] = ()
    text_length: int = 512
    report: str | None = None

    def __post_init__(self) -> None:
        if not self.data and not self.text:
            raise SettingError("A recovery must learn from examples or text, but has neither; give --data or --text.")
        if self.report == SELF:
            raise SettingError(
                f"A text to report on must be a file or a data set of the hub, but is {SELF!r}; give one with --report."
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether the dense model takes part in the training itself, or in what is learned from."""
        return bool(self.recipe.distillation or SELF in self.text or (self.data and self.answers == "self"))


@dataclass(frozen=True)
class Learned:
    """What a fine-tuning learns from and stops by.

    Args:
        samples: to learn from.
        held_out: to stop by.
        told: how they came about.
    """

    samples: Sequence[Sample]
    held_out: Sequence[Sample]
    told: dict[str, Any]


def gather_samples(
    student: DenseModel,
    dense: DenseModel | None,
    settings: RecoverySettings,
    cache: Path,
    reporter: Reporter,
    report: Tensor | None = None,
) -> Learned:
    """Return all that a recovery learns from.

    Args:
        student: the pruned model.
        dense: the dense model, where the settings need it.
        settings: what to learn from.
        cache: folder for what the dense model writes.
        reporter: tells a person about the progress.
        report: token ids (sequences, sequence_length) to measure on, of which no plain text that is learned has any.
    """
    samples: list[Sample] = []
    told: dict[str, Any] = {}
    longest = min(_LONGEST, settings.recipe.step_tokens, student.longest_sequence)
    for source in settings.data:
        examples = read_examples(source, settings.examples, settings.recipe.seed)
        if settings.answers == "self" and dense is not None:
            made = rewritten(dense, examples, settings, cache, reporter)
            examples = list(made.examples)
            told.setdefault("rewritten", {})[named(source)] = {
                "share_kept": made.share_kept,
                "not_kept": made.counts,
                "check_working": settings.check_working,
            }
        encoded = encode_examples(student.tokenizer, examples, longest)
        samples += encoded.samples
        told.setdefault("examples", {})[named(source)] = {
            "learned": len(encoded.samples),
            "too_long": encoded.too_long,
            "answers": settings.answers,
        }
    if settings.text:
        samples += _text_samples(dense or student, settings, cache, reporter, told, report)
    order = np.random.default_rng([settings.recipe.seed, 29]).permutation(len(samples)).tolist()
    count = min(_MOST_HELD_OUT, round(_HELD_OUT * len(samples)))
    chosen = [samples[index] for index in order]
    return Learned(chosen[count:], chosen[:count], {**told, "samples": len(samples) - count, "held_out_samples": count})


def rewritten(
    dense: DenseModel, examples: Sequence[Example], settings: RecoverySettings, cache: Path, reporter: Reporter
) -> SelfData:
    """Let the dense model rewrite answers, with progress, and say how many were kept."""
    with reporter.stage("Rewriting answers", len(examples) * _REWRITE_TOKENS, "tokens") as advance:
        made = rewrite(
            dense,
            examples,
            most_tokens=_REWRITE_TOKENS,
            seed=settings.recipe.seed,
            check_working=settings.check_working,
            cache=cache,
            progress=advance,
        )
    reporter.say(f"{made.share_kept:.0%} of {len(examples):,} rewritten answers passed the check and are learned")
    return made


def _text_samples(
    model: DenseModel,
    settings: RecoverySettings,
    cache: Path,
    reporter: Reporter,
    told: dict[str, Any],
    report: Tensor | None,
) -> list[Sample]:
    """Return sequences of plain text, as many as the steps take or the text has."""
    seed, length = settings.recipe.seed, min(settings.text_length, settings.recipe.step_tokens, model.longest_sequence)
    wanted = -(-settings.recipe.steps * settings.recipe.step_tokens // length)
    wanted = round(wanted / (1 - _HELD_OUT)) + 1
    files = [source for source in settings.text if source != SELF and not is_hub(source)]
    pools = {source: _sequences(model, source, length) for source in files}
    # Of a shorter text each sequence is learned more than once, as examples are.
    sequences = min([wanted, *(len(settings.text) * len(pool) for pool in pools.values())])
    writing = replace(MEASURING, document=min(MEASURING.document, length))
    recipe = Calibration(tuple((source, 1.0) for source in settings.text), writing)
    total = recipe.tokens_to_write(sequences, length)
    with reporter.stage("Writing text" if total else "Reading text", total, "tokens") as advance:
        made = gather_set(model, recipe, sequences, length, seed + _APART, cache, advance, pools)
    tokens = made.tokens if report is None else _apart_from(report, made.tokens)
    told["text"] = {key: made.record[key] for key in ("hash", "sequences", "sequence_length", "parts")}
    told["text"]["left_out_of_the_report"] = len(made.tokens) - len(tokens)
    return samples_of(tokens)


def _sequences(model: DenseModel, source: str, length: int) -> Tensor:
    """Return a text's sequences (n, length), at least one."""
    tokens = tokenise(model, source)
    if len(tokens) < length:
        raise TextError(
            f"A text to learn from must hold {length} tokens, but {source!r} holds {len(tokens)}; give a longer one, "
            "or lower --step-tokens."
        )
    return tokens[: len(tokens) // length * length].view(-1, length)


def _apart_from(report: Tensor, tokens: Tensor) -> Tensor:
    """Return the sequences that share no passage with the text that is measured on."""
    if not shared_passages(report, tokens):
        return tokens
    found = tokens[torch.tensor([not shared_passages(report, row[None]) for row in tokens])]
    if not len(found):
        raise TextError(
            f"Text to learn from must be other text than is measured on, but all {len(tokens)} sequences have passages "
            "of that; give other text, or another --report."
        )
    return found
