"""Recovering a pruned model: what to learn from, a short fine-tuning, the same measurement before and after, an export.

    export -> student -> [ examples | text ] -> samples -> fine-tune -> measure -> export

The dense model takes part where it writes text, rewrites answers, is distilled from, or is measured against.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from evaluator import SELF, Calibration, DenseModel, difference, gather_set, open_model
from evaluator.accuracy import Reference, make_reference
from evaluator.builtin import cache_folder
from evaluator.generation import MEASURING
from evaluator.measurement import Measurement
from evaluator.recovery.batches import samples_of
from evaluator.recovery.examples import Example, Sample, check_same_tokenizer, encode_examples, read_examples
from evaluator.recovery.finetune import Recipe, Recovery, fine_tune
from evaluator.recovery.selfdata import SelfData, rewrite
from evaluator.recovery.student import measure_student, open_student
from evaluator.sources import named, tokenise
from search.environment import describe_environment
from search.export import huggingface
from search.export.best import export_best
from search.folder import RunFolder
from search.progress import Reporter
from space import ExportError, ModelError, SettingError, TextError

_HELD_OUT, _MOST_HELD_OUT = 0.05, 64  # share of the samples to stop by, and their number at most
_LONGEST = 1024  # tokens of an example, beyond which it is left out
_REPORT_SEQUENCES = 32

Answers = Literal["self", "given"]


@dataclass(frozen=True, slots=True)
class RecoverySettings:
    """What a recovery learns from, and how.

    Args:
        recipe: of the fine-tuning.
        data: sources of examples, see `read_examples`.
        answers: `self`, the dense model's rewrites that pass the check (arXiv 2410.09982), or `given`, as they are.
        examples: to draw of each source; None for all.
        text: sources of plain text, see `evaluator.sources`; `self` is text that the dense model writes.
        text_length: tokens of a sequence of text.
        report: text to measure on before and after; None takes a run's report text, if the model is of a run.

    Raises:
        SettingError: there is nothing to learn from.
    """

    recipe: Recipe = field(default_factory=Recipe)
    data: tuple[str, ...] = ()
    answers: Answers = "self"
    examples: int | None = None
    text: tuple[str, ...] = ()
    text_length: int = 512
    report: str | None = None

    def __post_init__(self) -> None:
        if not self.data and not self.text:
            raise SettingError("A recovery must learn from examples or text, but has neither; give --data or --text.")

    @property
    def needs_teacher(self) -> bool:
        """Whether the dense model takes part in the training itself, or in what is learned from."""
        return bool(self.recipe.distillation or SELF in self.text or (self.data and self.answers == "self"))


def recover(
    source: str | Path,
    settings: RecoverySettings,
    *,
    out: Path | None = None,
    dense_name: str | None = None,
    device: str = "cpu",
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Fine-tune a pruned model and export it.

    What was written, rewritten and trained before goes on from there.

    Args:
        source: a finished run, whose winner is recovered, or a pruned model's folder.
        settings: what to learn from, and how.
        out: folder to make; None takes recovered/ in a run folder, else the model's own name and `-recovered`.
        dense_name: the dense model; None takes what the export says it was made of.
        device: a torch device.
        reporter: tells a person about the progress; None is quiet.

    Returns:
        What secateur.json of the new folder says.

    Raises:
        ModelError: a model cannot be opened, or the two have different vocabularies.
        TextError: there is nothing to learn from in what was given.
        SettingError: the settings do not fit the model.
        ExportError: the target holds something else, or the export did not verify.
    """
    reporter = reporter or Reporter(quiet=True)
    folder, target = _places(Path(source), out)
    _check_target(target)
    with RunFolder(target.with_name(f".{target.name}.training")).locked():
        student = open_student(folder, device=device)
        record = record_of(folder)
        dense = _dense_of(student, record, dense_name, settings, device)
        report = _report_text(Path(source), settings, student)
        learned = gather_samples(student, dense, settings, cache_folder() / "recovery", reporter)
        reference, before = None, None
        if dense is not None and report is not None:
            reporter.say(f"Measuring on {len(report[0])} sequences of {report[1]} before and after")
            reference = make_reference(dense, report[0])
            before = measure_student(student, reference, report[1], "none")
        told = train(student, dense, learned, settings.recipe, target.with_name(f".{target.name}.training"), reporter)
        found = _described(settings, learned, told)
        if reference is not None and before is not None and report is not None:
            found["measured"] = _compared(student, reference, before, report[1], dense)
        record = {**record, "recovery": found, "environment": describe_environment(student)}
        with reporter.stage("Exporting", 1, "models") as advance:
            huggingface.write_folder(student.model, student, target, record, _card(folder, found))
            advance(1)
    shutil.rmtree(target.with_name(f".{target.name}.training"), ignore_errors=True)
    return {"folder": str(target), **record}


def _places(source: Path, out: Path | None) -> tuple[Path, Path]:
    """Return the folder of the model to recover and the folder to make."""
    run = RunFolder(source)
    if not run.config_file.exists():
        return source, out or source.with_name(f"{source.resolve().name}-recovered")
    run.best()  # says what is missing of an unfinished one
    if not (run.export / "config.json").is_file():
        export_best(source)
    return run.export, out or run.path / "recovered"


def _check_target(target: Path) -> None:
    if target.exists() and not (target / huggingface.MARK).exists():
        raise ExportError(
            f"A recovered model must go to a new folder or replace an export of ours, but {str(target)!r} holds "
            "something else; choose another with --out."
        )


def record_of(folder: Path) -> dict[str, Any]:
    """Return what an export says of itself; nothing of another model's folder."""
    file = folder / huggingface.MARK
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ModelError(f"{file.name} of an export must be intact JSON, but {str(file)!r} is not; export it anew.")
    return found


def _dense_of(
    student: DenseModel, record: dict[str, Any], name: str | None, settings: RecoverySettings, device: str
) -> DenseModel | None:
    """Return the dense model, or None where it is not known and not needed."""
    name = name or record.get("model")
    if name is None:
        if settings.needs_teacher:
            raise SettingError(
                f"The dense model must be known to learn from it, but {student.name} does not name it; "
                "add --dense MODEL, or --answers given and text that is not its own."
            )
        return None
    dense = open_model(name, dtype=dtype_name(student), device=device)
    check_same_tokenizer(dense.tokenizer, student.tokenizer, dense.name, student.name)
    return dense


def dtype_name(student: DenseModel) -> Literal["float32", "bfloat16", "float16"]:
    for name in ("float32", "bfloat16", "float16"):
        if student.dtype == name:
            return name
    raise ModelError(f"A model's weights must be float32, bfloat16 or float16, but are {student.dtype}; convert them.")


def _report_text(source: Path, settings: RecoverySettings, student: DenseModel) -> tuple[Tensor, str] | None:
    """Return the text to measure on and what it is called."""
    if settings.report is not None:
        tokens, length = tokenise(student, settings.report), min(settings.text_length, student.longest_sequence)
        count = min(_REPORT_SEQUENCES, len(tokens) // length)
        if not count:
            raise TextError(
                f"A text to report on must hold {length} tokens, but {settings.report!r} holds {len(tokens)}; "
                "give a longer one."
            )
        return tokens[: count * length].view(count, length), named(settings.report)
    run = RunFolder(source)
    if run.config_file.exists() and run.texts_file.exists():
        texts = run.texts()
        return texts.of("report"), texts.source("report")
    return None


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
    student: DenseModel, dense: DenseModel | None, settings: RecoverySettings, cache: Path, reporter: Reporter
) -> Learned:
    """Return all that a recovery learns from.

    Args:
        student: the pruned model.
        dense: the dense model, where the settings need it.
        settings: what to learn from.
        cache: folder for what the dense model writes.
        reporter: tells a person about the progress.
    """
    samples: list[Sample] = []
    told: dict[str, Any] = {}
    longest = min(_LONGEST, settings.recipe.step_tokens, student.longest_sequence)
    for source in settings.data:
        examples = read_examples(source, settings.examples, settings.recipe.seed)
        if settings.answers == "self" and dense is not None:
            made = rewritten(dense, examples, settings.recipe.seed, cache, reporter)
            examples = list(made.examples)
            told.setdefault("rewritten", {})[named(source)] = {"share_kept": made.share_kept, "not_kept": made.counts}
        encoded = encode_examples(student.tokenizer, examples, longest)
        samples += encoded.samples
        told.setdefault("examples", {})[named(source)] = {
            "learned": len(encoded.samples),
            "too_long": encoded.too_long,
            "answers": settings.answers,
        }
    if settings.text:
        samples += _text_samples(dense or student, settings, cache, reporter, told)
    order = np.random.default_rng([settings.recipe.seed, 29]).permutation(len(samples)).tolist()
    count = min(_MOST_HELD_OUT, round(_HELD_OUT * len(samples)))
    chosen = [samples[index] for index in order]
    return Learned(chosen[count:], chosen[:count], {**told, "samples": len(samples) - count, "held_out_samples": count})


def rewritten(dense: DenseModel, examples: Sequence[Example], seed: int, cache: Path, reporter: Reporter) -> SelfData:
    """Let the dense model rewrite answers, with progress, and say how many were kept."""
    with reporter.stage("Rewriting answers", len(examples), "answers") as advance:
        made = rewrite(dense, examples, seed=seed, cache=cache, progress=advance)
    reporter.say(f"{made.share_kept:.0%} of {len(examples):,} rewritten answers passed the check and are learned")
    return made


def _text_samples(
    model: DenseModel, settings: RecoverySettings, cache: Path, reporter: Reporter, told: dict[str, Any]
) -> list[Sample]:
    """Return sequences of plain text, as many as the steps take."""
    length = min(settings.text_length, settings.recipe.step_tokens, model.longest_sequence)
    sequences = -(-settings.recipe.steps * settings.recipe.step_tokens // length)
    sequences = round(sequences / (1 - _HELD_OUT)) + 1
    writing = replace(MEASURING, document=min(MEASURING.document, length))
    recipe = Calibration(tuple((source, 1.0) for source in settings.text), writing)
    total = recipe.tokens_to_write(sequences, length)
    with reporter.stage("Writing text", total, "tokens") as advance:
        made = gather_set(model, recipe, sequences, length, settings.recipe.seed, cache, advance)
    told["text"] = {key: made.record[key] for key in ("hash", "sequences", "sequence_length", "parts")}
    return samples_of(made.tokens)


def train(
    student: DenseModel,
    dense: DenseModel | None,
    learned: Learned,
    recipe: Recipe,
    folder: Path | None,
    reporter: Reporter,
) -> Recovery:
    """Fine-tune with progress; see `fine_tune`."""
    with reporter.stage("Fine-tuning", recipe.steps, "steps") as advance:
        teacher = dense if recipe.distillation else None
        return fine_tune(student, learned.samples, learned.held_out, recipe, teacher, folder, advance)


def _described(settings: RecoverySettings, learned: Learned, told: Recovery) -> dict[str, Any]:
    return {"recipe": settings.recipe.to_dict(), **learned.told, **told.to_dict()}


def _compared(
    student: DenseModel, reference: Reference, before: Measurement, source: str, dense: DenseModel | None
) -> dict[str, Any]:
    """Return what the model measures before and after, and the paired difference."""
    after = measure_student(student, reference, source, "fine-tuned")
    assert dense is not None
    own = measure_student(dense, reference, source, "none")
    return {
        "text": source,
        "dense": own.to_dict(),
        "before": before.to_dict(),
        "after": after.to_dict(),
        "less": difference(after, before, same_text=True).to_dict(),
    }


def _card(folder: Path, found: dict[str, Any]) -> str:
    """Return the card of the model that was recovered, with what recovery did."""
    file = folder / "README.md"
    card = file.read_text(encoding="utf-8") if file.exists() else "# A pruned model\n"
    recipe = found["recipe"]
    how = f"low-rank additions of rank {recipe['rank']}" if recipe["rank"] else "all weights"
    lines = [
        "",
        "## Recovery",
        "",
        f"Fine-tuned for {found['steps']} steps of about {recipe['step_tokens']} tokens ({how}, learning rate "
        f"{recipe['learning_rate']:g}, {recipe['distillation']:.0%} of the loss distilled from the dense model); the "
        f"weights are those of step {found['best_step']}.",
    ]
    if "measured" in found:
        measured = found["measured"]
        lines += [
            "",
            f"| perplexity ({measured['text']}) | dense | pruned | recovered |",
            "| --- | --- | --- | --- |",
            "| | "
            + " | ".join(
                f"{measured[name]['perplexity']:.2f} ± {measured[name]['perplexity_standard_error']:.2f}"
                for name in ("dense", "before", "after")
            )
            + " |",
        ]
    return card.rstrip("\n") + "\n" + "\n".join(lines) + "\n"
