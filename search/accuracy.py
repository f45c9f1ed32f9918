"""Accuracy of models side by side: each asked the same items of lm-eval's tasks, with errors and paired tests.

What is told of a run lies in its accuracy.json: the dense model, the uniform baseline, the winner and, where there is
one, the recovered winner. Other models are compared with the first, a lone export with what it was made of.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from evaluator import DenseModel, open_model
from evaluator.builtin import cache_folder
from evaluator.recovery.student import OWN_TYPE, open_student
from search.accuracy_settings import AccuracySettings
from search.environment import describe_environment
from search.export.place import record_of
from search.folder import RunFolder, write_json
from search.progress import Reporter
from search.session import open_evaluator
from search.settings import DTypeName
from space import Architecture, SettingError

if TYPE_CHECKING:
    from evaluator.harness.answers import Score
    from evaluator.harness.evaluation import Exam


def evaluate(
    models: Sequence[str | Path],
    settings: AccuracySettings,
    *,
    architectures: Mapping[str, Architecture] | None = None,
    device: str = "cpu",
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Ask models tasks; what they answered before is not asked again.

    Args:
        models: a finished run alone, or names or folders of models, of which the first is what the others are compared
            with; one export alone is compared with the dense model that it was made of.
        settings: what is asked.
        architectures: of a run, others to ask by name, pruned by its criterion.
        device: where models are that belong to no run.
        reporter: tells a person about the progress; None is quiet.

    Returns:
        What accuracy.json says of these settings.

    Raises:
        ModelError: a model cannot be opened.
        SettingError: a preset, a task or its data cannot be had, or architectures are given without a run.
        MeasurementError: a task does not score its items.
    """
    from evaluator.harness.evaluation import set_exams
    from evaluator.harness.tasks import asked_for

    reporter = reporter or Reporter(quiet=True)
    run = RunFolder(Path(models[0]))
    of_run = len(models) == 1 and run.config_file.exists()
    if of_run:
        run.best()  # says what is missing of an unfinished one
    elif architectures:
        raise SettingError(
            "--architecture is of a run, whose criterion it is pruned by, but no run is given; give one."
        )
    asked = asked_for(settings.ask)
    with reporter.stage("Making prompts", len(asked), "tasks") as advance:
        exams = set_exams(asked, settings.data, settings.limit, settings.seed, _seen(models), progress=advance)
    opened = _of_run(run, architectures or {}, device) if of_run else _of_names(list(map(str, models)), device)
    answered: dict[str, list[Score]] = {}
    told: dict[str, dict[str, Any]] = {}
    for name, model in opened:
        answered[name] = _answered(name, model, exams, reporter)
        told[name] = {"weights_hash": model.weights_hash, "environment": describe_environment(model)}
    found = record(settings, answered, told, "winner" if of_run else None)
    if of_run:
        with run.locked():
            write_json(run.accuracy_file, {**run.accuracy(), settings.title: found})
    return found


def _seen(models: Sequence[str | Path]) -> dict[str, frozenset[int]]:
    """Return the places of items that models were searched by, by task: none of them is asked of any of the models."""
    found: dict[str, frozenset[int]] = {}
    for model in map(Path, models):
        told = RunFolder(model).best() if (model / "best.json").is_file() else record_of(model)
        for task, places in (told.get("aim") or {"seen": {}})["seen"].items():
            found[task] = found.get(task, frozenset()).union(places)
    return found


def _answered(name: str, model: DenseModel, exams: Sequence["Exam"], reporter: Reporter) -> list["Score"]:
    from evaluator.harness.evaluation import answer

    requests = sum(exam.requests for exam in exams)
    with reporter.stage(f"Asking {name}", requests, "requests") as advance:
        return answer(model, exams, cache_folder() / "answers", advance)


def _of_run(run: RunFolder, architectures: Mapping[str, Architecture], device: str) -> Iterator[tuple[str, DenseModel]]:
    """Yield a run's models by name, each good until the next is asked for."""
    best = run.best()
    wanted = {"winner": Architecture.from_dict(best["architecture"]), **architectures}
    if uniform := best["baselines"].get("uniform"):
        wanted = {"uniform": Architecture.from_dict(uniform["architecture"]), **wanted}
    with open_evaluator(run) as judge:
        yield "dense", judge.dense
        for name, architecture in wanted.items():
            yield name, judge.model_of(architecture)
        judge.surgeon.restore()
    if (run.path / "recovered" / "config.json").is_file():
        yield "recovered", open_student(run.path / "recovered", device=device)


def _of_names(names: list[str], device: str) -> Iterator[tuple[str, DenseModel]]:
    """Yield models by name; before a lone export the dense model that it was made of."""
    if len(names) == 1 and (dense := _made_of(names[0])):
        student = _opened(names[0], device)  # of which the dense model has the dtype
        yield dense, open_model(dense, dtype=cast(DTypeName, student.dtype), device=device)
        yield names[0], student
        return
    for name in names:
        yield name, _opened(name, device)


def _made_of(name: str) -> str | None:
    """Return what an export says it was made of, where that can still be opened."""
    told = record_of(Path(name)).get("model") if Path(name).is_dir() else None
    return str(told) if told and (not str(told).startswith(("/", ".", "~")) or Path(told).exists()) else None


def _opened(name: str, device: str) -> DenseModel:
    if (Path(name) / "best.json").is_file():
        name = str(RunFolder(Path(name)).export)
    config = Path(name) / "config.json"
    ours = config.is_file() and f'"{OWN_TYPE}' in config.read_text(encoding="utf-8")
    return open_student(name, device=device) if ours else open_model(name, device=device)


def record(
    settings: AccuracySettings,
    answered: Mapping[str, Sequence["Score"]],
    told: Mapping[str, Mapping[str, Any]],
    compared: str | None,
) -> dict[str, Any]:
    """Return models side by side as plain values for JSON.

    Args:
        settings: what was asked.
        answered: scores of all tasks by model.
        told: what else there is to say of each model.
        compared: the model that all others are compared with; None takes the first, and compares the others with it.

    Raises:
        MeasurementError: two models answered other items.
    """
    from evaluator.harness.answers import mean_flips, mean_over

    whole = next(iter(answered))  # of a run the dense model
    first = compared or whole
    return {
        "title": settings.title,
        "asked": {**asdict(settings), "data": None if settings.data is None else settings.data.name},
        "compared": first,
        "tasks": [score.task for score in next(iter(answered.values()))],
        "models": {
            name: {
                **told[name],
                "scores": [score.to_dict() for score in scores],
                "mean": asdict(mean_over(scores)),
                # Below 0 where the model that all are compared with is the better one.
                "less": None if name == first else _less(scores, answered[first]),
                "flips": None if name == whole else asdict(mean_flips(scores, answered[whole])),
            }
            for name, scores in answered.items()
        },
    }


def _less(scores: Sequence["Score"], others: Sequence["Score"]) -> dict[str, Any]:
    from evaluator.harness.answers import less, mean_less

    single = [asdict(less(one, other)) for one, other in zip(scores, others, strict=True)]
    return {"tasks": single, "mean": asdict(mean_less(scores, others))}
