"""Asking models tasks: a seeded sample of items of each, every task's answers kept when it is done.

Items are drawn and prompts are made once for all models; what a model answered is kept by the hash of its weights, so a
run that was stopped goes on with the next task, and a model whose folder was renamed is not asked again.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from evaluator.checkpoint import DenseModel, quiet_transformers
from evaluator.harness.answers import Answers, Protocol, Score
from evaluator.harness.tasks import Asked, load_tasks, quiet_harness
from space import MeasurementError

FEWSHOT_SEED = 1234  # the harness' own

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Paper:
    """The items of one of the harness' tasks that are asked.

    Args:
        task: the harness' object.
        name: of the task.
        items: places of the items in the task, ascending.
        of: items that the task has.
        shots: examples before each.
        seed: of the sample; None where all are asked.
        requests: how many the model is sent.
        fingerprint: of their prompts and continuations.
    """

    task: Any
    name: str
    items: tuple[int, ...]
    of: int
    shots: int
    seed: int | None
    requests: int
    fingerprint: str


@dataclass(frozen=True)
class Exam:
    """A task or group as it was asked for.

    Args:
        asked: which.
        papers: of the tasks that items were drawn from.
        of: items that all its tasks have.
    """

    asked: Asked
    papers: tuple[Paper, ...]
    of: int

    @property
    def requests(self) -> int:
        """How many the model is sent."""
        return sum(paper.requests for paper in self.papers)


def set_exams(
    asked: Sequence[Asked],
    folder: Path | None,
    limit: int | None = None,
    seed: int = 0,
    leave: Mapping[str, frozenset[int]] | None = None,
    share: float = 1.0,
    progress: Progress = lambda _: None,
) -> list[Exam]:
    """Draw items and make prompts.

    Args:
        asked: tasks or groups.
        folder: of local files; None takes the harness' own data, from the hub or its cache.
        limit: items of each task or group at most, drawn over all of a group; None asks all.
        seed: of the draw.
        leave: by task, places of items that are not to be asked, as those that something was searched by.
        share: of the items of a task or group that are drawn at most, those to leave counted.
        progress: told 1 after each task or group.

    Raises:
        SettingError: there is no such task, or its data cannot be had.
    """
    found = []
    for each in asked:
        tasks = load_tasks(each, folder)
        left = leave or {}
        there = [(name, place) for name, task in tasks.items() for place in range(len(task.eval_docs))]
        every = [(name, place) for name, place in there if place not in left.get(name, ())]
        most = len(every) if share == 1 else max(2, int(share * len(there)))
        most = min(most, len(every) if limit is None else limit)
        chosen = every
        if most < len(every):
            rng = np.random.default_rng([seed, *each.task.encode()])
            chosen = [every[index] for index in sorted(rng.permutation(len(every))[:most].tolist())]
        places: dict[str, list[int]] = {}
        for name, place in chosen:
            places.setdefault(name, []).append(place)
        sampled = seed if len(chosen) < len(every) else None
        papers = [_paper(each, tasks[name], name, own, sampled) for name, own in places.items()]
        found.append(Exam(each, tuple(papers), len(every)))
        progress(1)
    return found


def _paper(asked: Asked, task: Any, name: str, places: Sequence[int], seed: int | None) -> Paper:
    shots = asked.shots if asked.shots is not None else int(task.get_config("num_fewshot") or 0)
    task.set_config("num_fewshot", shots)
    with quiet_harness():
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
        task.build_all_requests(samples=sample_of(places, len(task.eval_docs)))
    digest = hashlib.sha256()
    for instance in task.instances:
        digest.update(json.dumps(instance.args, default=str, ensure_ascii=False).encode())
    count = len(task.instances)
    task._instances = None  # made again when they are sent
    return Paper(task, name, tuple(places), len(task.eval_docs), shots, seed, count, digest.hexdigest()[:16])


def sample_of(places: Sequence[int], of: int) -> list[int] | None:
    """Return the places of items as the harness takes them, which is slow to look each up in a list of all."""
    return list(places) if len(places) < of else None


def answer(model: DenseModel, exams: Sequence[Exam], cache: Path, progress: Progress = lambda _: None) -> list[Score]:
    """Ask a model, or take what it answered before.

    Args:
        model: dense or pruned; pruned ones as models of their own, with the hash of their own weights.
        exams: what to ask.
        cache: folder of what models answered.
        progress: told the requests of each batch.

    Raises:
        MeasurementError: a task does not score its items by the metric that is asked for, or an item is too long.
    """
    from evaluator.harness.model import HarnessModel

    asking: HarnessModel | None = None
    scores = []
    for exam in exams:
        parts = []
        for paper in exam.papers:
            protocol = _protocol(model, paper)
            key = hashlib.sha256(json.dumps(asdict(protocol), sort_keys=True).encode()).hexdigest()[:16]
            file = cache / model.weights_hash / f"{paper.name}-{key}.json"
            known = Answers.load(file, protocol)
            if known is None:
                asking = asking or HarnessModel(model)
                with asking.telling(progress):
                    known = _ask(asking, paper, protocol)
                known.save(file)
            else:
                progress(paper.requests)
            parts.append(known)
        score = Score(exam.asked.task, exam.asked.metric, tuple(parts), exam.of)
        _ = score.values  # refuses a metric that is none
        scores.append(score)
    return scores


def _protocol(model: DenseModel, paper: Paper) -> Protocol:
    tokenizer: Any = model.tokenizer
    told = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else json.dumps(tokenizer.get_vocab())
    return Protocol(
        weights_hash=model.weights_hash,
        dtype=model.dtype,
        tokenizer=hashlib.sha256(told.encode()).hexdigest()[:16],
        task=paper.name,
        requests=paper.fingerprint,
        shots=paper.shots,
        items=len(paper.items),
        of=paper.of,
        seed=paper.seed,
        harness=version("lm-eval"),
    )


def _ask(asking: Any, paper: Paper, protocol: Protocol) -> Answers:
    from lm_eval.evaluator import evaluate

    started, before, cut = time.perf_counter(), asking.tokens, asking.cut
    sample = sample_of(paper.items, paper.of)
    with quiet_harness(), quiet_transformers():
        paper.task.set_fewshot_seed(seed=FEWSHOT_SEED)
        found: Any = evaluate(
            asking,
            {"tasks": {paper.name: paper.task}, "groups": {}, "group_map": {}},
            samples=None if sample is None else {paper.name: sample},
            bootstrap_iters=0,
        )
    rows = found["samples"][paper.name]
    paper.task._instances = None
    items = tuple(f"{paper.name}:{place}" for place in paper.items)
    return Answers(
        protocol,
        items,
        _scores(paper, rows),
        *_choices(paper, rows),
        cut=asking.cut - cut,
        tokens=asking.tokens - before,
        wall_seconds=time.perf_counter() - started,
    )


def _scores(paper: Paper, rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, ...]]:
    """Return the scores of each item by metric, those that are of single items; a filter is part of the name."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        for metric in row["metrics"]:
            value = row[metric]
            name = metric if row["filter"] == "none" else f"{metric},{row['filter']}"
            if isinstance(value, (int, float, np.number)):
                found.setdefault(name, {})[int(row["doc_id"])] = float(value)
    whole = {name: own for name, own in found.items() if set(own) == set(paper.items)}
    if not whole:
        raise MeasurementError(
            f"A task must score each of its items by a number, but {paper.name} does not; ask for another task."
        )
    return {name: tuple(own[place] for place in paper.items) for name, own in whole.items()}


def _choices(paper: Paper, rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[tuple[float, ...], ...], tuple[int, ...]]:
    """Return of multiple choice the log-likelihoods of each item's choices, and which is right."""
    if paper.task.OUTPUT_TYPE != "multiple_choice":
        return (), ()
    by_item = {int(row["doc_id"]): row for row in rows}
    loglikelihoods, gold = [], []
    for place in paper.items:
        row = by_item[place]
        right = paper.task.doc_to_text(row["doc"]) if paper.task.multiple_input else row["target"]
        if not isinstance(right, int):  # several are right
            return (), ()
        loglikelihoods.append(tuple(float(choice[0]) for choice in row["filtered_resps"]))
        gold.append(right)
    return tuple(loglikelihoods), tuple(gold)
