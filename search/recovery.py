"""Recovering a pruned model: what to learn from, a short fine-tuning, the same measurement before and after, an export.

    export -> student -> [ examples | text ] -> samples -> fine-tune -> measure -> export

The dense model takes part where it writes text, rewrites answers, is distilled from, or is measured against.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from evaluator import DenseModel, difference, hash_weights, open_model
from evaluator.accuracy import make_reference
from evaluator.builtin import cache_folder
from evaluator.recovery.examples import check_same_tokenizer
from evaluator.recovery.finetune import Recipe, Recovery, fine_tune
from evaluator.recovery.student import measure_student, open_student
from evaluator.sources import named, tokenise
from search.environment import describe_environment
from search.export import huggingface
from search.export.best import export_best
from search.export.card import licence_of
from search.export.place import check_target, record_of
from search.folder import RunFolder
from search.progress import Reporter
from search.recovery_data import Learned, RecoverySettings, gather_samples
from search.scratch import kept_beside
from space import ModelError, SettingError, TextError

_REPORT_SEQUENCES = 32


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
    check_target(target)
    student = open_student(folder, device=device)
    with kept_beside(target.with_name(f".{target.name}.training")) as beside:
        record = record_of(folder)
        dense = _dense_of(student, record, dense_name, settings, device)
        report = _report_text(Path(source), settings, student)
        cache, apart_from = cache_folder() / "recovery", report[0] if report else None
        learned = gather_samples(student, dense, settings, cache, reporter, apart_from)
        comparison = None
        if dense is not None and report is not None:
            comparison = _Comparison(dense, student, *report, reporter)
        told = train(student, dense, learned, settings.recipe, beside, reporter)
        student = replace(student, weights_hash=hash_weights(student.model))
        found = _described(settings, learned, told)
        if comparison is not None:
            found["measured"] = comparison.with_after(student)
        made_of = {} if dense is None else {"model": dense.name, "licence": licence_of(dense.name)}
        record = {**made_of, **record, "recovery": found, "environment": describe_environment(student)}
        with reporter.stage("Exporting", 1, "models") as advance:
            huggingface.write_folder(student.model, student, target, record)
            advance(1)
        shutil.rmtree(beside)
    return {"folder": str(target), **record_of(target)}


def _places(source: Path, out: Path | None) -> tuple[Path, Path]:
    """Return the folder of the model to recover and the folder to make."""
    run = RunFolder(source)
    if not run.config_file.exists():
        named_source = source if source.name.strip(".") else source.resolve()  # not where it is . or ..
        return source, out or named_source.with_name(f"{named_source.name}-recovered")
    run.best()  # says what is missing of an unfinished one
    if not (run.export / "config.json").is_file():
        export_best(source)
    return run.export, out or run.path / "recovered"


def _dense_of(
    student: DenseModel, record: dict[str, Any], name: str | None, settings: RecoverySettings, device: str
) -> DenseModel | None:
    """Return the dense model, or None where it is not known and not needed."""
    name = name or record.get("model")
    if name is None:
        if settings.needs_teacher:
            raise SettingError(
                f"The dense model must be known to learn from it, but {student.name} does not name it; add --dense "
                "MODEL, or learn from given answers or text, without --distill."
            )
        if settings.report is not None:
            raise SettingError(
                f"The dense model must be known to measure against it, but {student.name} does not name it; add "
                "--dense MODEL, or leave --report out."
            )
        return None
    dense = open_model(name, dtype=dtype_name(student), device=device)
    check_same_tokenizer(dense.tokenizer, student.tokenizer, dense.name, student.name)
    if dense.layout.vocabulary != student.layout.vocabulary:  # which may be more than its tokenizer's words
        raise ModelError(
            f"A pruned model must have as many output tokens as its dense model, but {student.name} has "
            f"{student.layout.vocabulary} and {dense.name} {dense.layout.vocabulary}; take the model that it was made "
            "from."
        )
    return dense


def dtype_name(student: DenseModel) -> Literal["float32", "bfloat16", "float16"]:
    """Return the dtype that a model's weights have, for its dense model to be opened in.

    Raises:
        ModelError: it is another than models are opened in.
    """
    for name in ("float32", "bfloat16", "float16"):
        if student.dtype == name:
            return name
    raise ModelError(f"A model's weights must be float32, bfloat16 or float16, but are {student.dtype}; convert them.")


def _report_text(source: Path, settings: RecoverySettings, student: DenseModel) -> tuple[Tensor, str] | None:
    """Return the text to measure on and what it is called."""
    if settings.report is not None:
        length = min(settings.text_length, student.longest_sequence)
        tokens = tokenise(student, settings.report, _REPORT_SEQUENCES * length)
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


class _Comparison:
    """The same measurement before and after a recovery.

    Args:
        dense: the model to measure against.
        student: the pruned model, before.
        tokens: (sequences, sequence_length) token ids of the text.
        source: of the text, as people call it.
        reporter: tells a person about the progress.
    """

    def __init__(self, dense: DenseModel, student: DenseModel, tokens: Tensor, source: str, reporter: Reporter) -> None:
        self._source, self._reporter = source, reporter
        predicted = tokens.shape[0] * (tokens.shape[1] - 1)
        with reporter.stage(f"Measuring before, on {source}", 3 * predicted, "tokens") as advance:
            self._reference = make_reference(dense, tokens, progress=advance)
            self._dense = measure_student(dense, self._reference, source, "none", advance)
            self._before = measure_student(student, self._reference, source, "none", advance)

    def with_after(self, student: DenseModel) -> dict[str, Any]:
        """Return what the model measures before and after, and the paired difference."""
        with self._reporter.stage(
            f"Measuring after, on {self._source}", self._reference.predicted, "tokens"
        ) as advance:
            after = measure_student(student, self._reference, self._source, "fine-tuned", advance)
        return {
            "text": self._source,
            "dense": self._dense.to_dict(),
            "before": self._before.to_dict(),
            "after": after.to_dict(),
            "less": difference(after, self._before, same_text=True).to_dict(),
        }
