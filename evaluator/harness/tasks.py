"""Tasks by name: the harness' own from the hub, or the same over local files, and the presets that people ask for.

A folder of local files is laid out as `definitions/` says: `arc_easy.jsonl`, `piqa.jsonl`, `openbook_qa.jsonl`,
`winogrande.jsonl`, `boolq.jsonl`, `copa.jsonl`, `mmlu/{dev,test}/SUBJECT_{dev,test}.csv`, `gsm8k/{train,test}.jsonl`.
Prompts, metrics and few-shot counts are those of the harness' tasks of the same names.
"""

import contextlib
import functools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from space import SettingError

DEFINITIONS = Path(__file__).with_name("definitions")
MMLU = "mmlu"


@dataclass(frozen=True, slots=True)
class Asked:
    """A task as a preset asks for it.

    Args:
        task: the harness' name of a task or group.
        shots: examples before each question; None leaves what the task says.
        metric: what counts as its accuracy, in the harness' names.
    """

    task: str
    shots: int | None = None
    metric: str = "acc"


PRESETS: dict[str, tuple[Asked, ...]] = {
    # Zero-shot, as papers on pruning report them.
    "commonsense": tuple(map(Asked, ("arc_easy", "piqa", "openbookqa", "winogrande", "boolq", "copa"))),
    "mmlu": (Asked(MMLU, 5),),
    # Hugging Face, Open LLM Leaderboard v1 (2023).
    "openllm-v1": (
        Asked("arc_challenge", 25, "acc_norm"),
        Asked("hellaswag", 10, "acc_norm"),
        Asked(MMLU, 5),
        Asked("truthfulqa_mc2", 0),
        Asked("winogrande", 5),
        Asked("gsm8k", 5, "exact_match,strict-match"),
    ),
}
_METRICS = {asked.task: asked.metric for asked in PRESETS["openllm-v1"]}


def asked_for(names: Sequence[str]) -> list[Asked]:
    """Return the tasks of presets and those named one by one, each once.

    Args:
        names: of presets, or of the harness' tasks as NAME or NAME@SHOTS.

    Raises:
        SettingError: nothing is named, or a number of shots is none.
    """
    found: dict[str, Asked] = {}
    for text in names:
        name, _, shots = text.partition("@")
        if not name or (shots and not shots.isdecimal()):
            raise SettingError(f"A task must be NAME or NAME@SHOTS, but is {text!r}; write for example mmlu@5.")
        alone = Asked(name, int(shots) if shots else None, _METRICS.get(name, "acc"))
        for asked in PRESETS.get(text, (alone,)):
            found.setdefault(asked.task, asked)
    if not found:
        raise SettingError("Something must be asked, but no preset and no task is given; try --preset commonsense.")
    return list(found.values())


def load_tasks(asked: Asked, folder: Path | None) -> dict[str, Any]:
    """Return the harness' tasks of a task or group by name: one, or MMLU's 57 subjects.

    Args:
        asked: which.
        folder: of local files; None takes the harness' own data, from the hub or its cache.

    Raises:
        SettingError: there is no such task, or its data cannot be had.
    """
    with quiet_harness():
        if folder is not None:
            from lm_eval.api.task import ConfigurableTask

            return {each["task"]: ConfigurableTask(config=each) for each in _local(asked, folder)}
        manager = _manager()
        if asked.task not in {*manager.all_tasks}:
            raise SettingError(
                f"A task must be a preset ({', '.join(PRESETS)}) or one of the harness', but {asked.task!r} is none; "
                "`lm-eval ls tasks` lists them."
            )
        try:
            found: dict[str, Any] = manager.load([asked.task])["tasks"]
        except (OSError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            raise SettingError(
                f"The data of task {asked.task} must come from the hub or its cache, but cannot be had ({reason}); "
                "give --task-data a folder that holds it, or ask for other tasks."
            ) from error
        return found


@functools.cache  # it reads the first lines of some ten thousand files
def _manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _local(asked: Asked, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the definitions of a task over files of a folder."""
    file = DEFINITIONS / f"{asked.task}.yaml"
    subject = asked.task.removeprefix(f"{MMLU}_")
    one_of_mmlu = subject != asked.task
    if one_of_mmlu:
        file = DEFINITIONS / f"{MMLU}.yaml"
    if not file.exists():
        known = ", ".join(sorted(each.stem for each in DEFINITIONS.glob("*.yaml")))
        raise SettingError(
            f"A task over local files must be a preset ({', '.join(PRESETS)}) or one of {known}, but {asked.task!r} is "
            "none; leave --task-data out to take it from the hub."
        )
    definition = yaml.safe_load(file.read_text(encoding="utf-8"))
    if file.stem != MMLU:
        yield _placed(asked, definition, folder)
        return
    names = [subject] if one_of_mmlu else _subjects(folder)
    for name in names:
        filled = json.loads(json.dumps(definition).replace("SUBJECT", name))
        filled["description"] = definition["description"].replace("SUBJECT", name.replace("_", " "))
        yield _placed(asked, filled, folder)


def _subjects(folder: Path) -> list[str]:
    found = sorted(file.stem.removesuffix("_test") for file in (folder / MMLU / "test").glob("*_test.csv"))
    if not found:
        raise SettingError(
            f"A folder with MMLU must hold mmlu/test/SUBJECT_test.csv, but {str(folder)!r} has none; check --task-data."
        )
    return found


def _placed(asked: Asked, definition: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a definition with its files where they are."""
    files = {split: folder / name for split, name in definition["dataset_kwargs"]["data_files"].items()}
    if asked.shots and definition["num_fewshot"] == 0:
        raise SettingError(
            f"{asked.task} over local files has no examples to show before a question, but {asked.shots} are asked "
            "for; ask for none, or leave --task-data out to take it from the hub."
        )
    for file in files.values():
        if not file.is_file():
            raise SettingError(f"Task {asked.task} needs {str(file)!r}, which is not there; check --task-data.")
    placed: dict[str, Any] = {**definition["dataset_kwargs"], "data_files": {k: str(v) for k, v in files.items()}}
    if definition["dataset_path"] == "csv":
        from datasets import Features, Value

        # Read as text: of a column of numbers the prompt would show 1.0 where the file has 1.
        placed["features"] = Features({name: Value("string") for name in placed["column_names"]})
    shots = definition["num_fewshot"] if asked.shots is None else asked.shots
    return {**definition, "dataset_kwargs": placed, "num_fewshot": shots}


@contextlib.contextmanager
def quiet_harness() -> Iterator[None]:
    """Keep the notices and bars of the harness and of data sets from mixing with ours."""
    import datasets
    from lm_eval.api import task as making

    loggers = {name: logging.getLogger(name) for name in ("lm_eval", "datasets")}
    levels: Mapping[str, int] = {name: each.level for name, each in loggers.items()}
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    bar: Any = making.tqdm  # which tasks show while they make prompts, with no way to leave it out
    making.tqdm = functools.partial(bar, disable=True)
    for each in loggers.values():
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        making.tqdm = bar
        for name, each in loggers.items():
            each.setLevel(levels[name])
        if not bars:
            datasets.enable_progress_bars()
