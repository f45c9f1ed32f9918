"""Runs' predictors, kept open and asked by many at once.

Whoever asks while a prediction is at work waits for the next, which answers all who came meanwhile together: a hundred
architectures take little longer than one.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from predictor import AccuracyPredictor, Prediction, sub_block_damages
from predictor.dataset import FloatArray
from search.folder import RunFolder
from search.service.pairs import stamp_of
from space import Architecture, PredictorError, RunFolderError, SearchSpace, costs_of_genes
from space.batch import Genes

_MOST_OPEN = 8  # runs; a predictor takes some megabytes
_FRESH_SECONDS = 0.5  # between looks at a run's files
_MOST_TOGETHER = 4096  # architectures of those who wait, so that nobody waits for a large batch of others


@dataclass(frozen=True)
class Opened:
    """A run, as it is asked.

    Args:
        space: whose costs are told.
        predictors: by what they predict, that of the loss first.
        winner: what is compared with; None where the run is not finished.
        dense: what the dense model costs, by metric.
        of_winner: what is predicted of the winner, by predictor.
    """

    space: SearchSpace
    predictors: Mapping[str, AccuracyPredictor]
    winner: Architecture | None
    dense: Mapping[str, float]
    of_winner: Mapping[str, float]


@dataclass(frozen=True)
class Answer:
    """What is said of architectures.

    Args:
        predicted: by predictor.
        costs: (architectures, metrics in the order of the space's).
    """

    predicted: Mapping[str, Prediction]
    costs: FloatArray

    def cut(self, part: slice, names: Sequence[str]) -> "Answer":
        """Return what was said of some of them by some of the predictors."""
        own = {name: self.predicted[name] for name in names}
        return Answer(
            {name: Prediction(each.value[part], each.lower[part], each.upper[part]) for name, each in own.items()},
            self.costs[part],
        )


# What is asked, of which predictors, and where the answer goes.
_Question = tuple[Genes, tuple[str, ...], asyncio.Future[Answer]]


@dataclass
class _Waiting:
    """Those who wait for one run's predictors."""

    opened: Opened
    asked: list[_Question] = field(default_factory=list)
    task: asyncio.Task[None] | None = None


class Oracle:
    """Answers what runs' predictors are asked. Belongs to one event loop."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, tuple[tuple[float, ...], _Waiting]] = OrderedDict()
        self._fresh: dict[str, float] = {}  # until when a run's files need no look
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="oracle")  # one core asks; the other serves

    async def open(self, run: RunFolder) -> Opened:
        """Return a run as it is asked, as its files are now.

        Raises:
            RunFolderError: the folder is no run, or has no predictor yet.
            PredictorError: its predictor is damaged.
        """
        return (await self._waiting(run)).opened

    async def _waiting(self, run: RunFolder) -> _Waiting:
        key, now = str(run.path), time.monotonic()
        known = self._open.get(key)
        if known is not None and now < self._fresh.get(key, 0.0):
            return known[1]
        stamp = stamp_of(run.best_file, run.predictor / "predictor.json", run.latency_file)
        self._fresh[key] = now + _FRESH_SECONDS
        if known is None or known[0] != stamp:
            opened = await asyncio.get_running_loop().run_in_executor(self._pool, _open, run)
            known = self._open[key] = stamp, _Waiting(opened)
            while len(self._open) > _MOST_OPEN:
                self._fresh.pop(self._open.popitem(last=False)[0], None)
        self._open.move_to_end(key)
        return known[1]

    async def predict(self, run: RunFolder, genes: Genes, targets: Sequence[str] = ()) -> Answer:
        """Return what a run's predictors say, and what architectures cost.

        Args:
            run: the run.
            genes: of the architectures to predict.
            targets: which predictors to ask; none of them asks all.

        Raises:
            RunFolderError: there is no such run, or no such predictor.
            PredictorError: as `AccuracyPredictor.predict_genes`.
        """
        waiting = await self._waiting(run)
        names = tuple(targets) or tuple(waiting.opened.predictors)
        for name in names:
            if name not in waiting.opened.predictors:
                known = ", ".join(waiting.opened.predictors)
                raise PredictorError(f"A target must be one of {known}, but is {name[:100]!r}; choose one.")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        waiting.asked.append((genes, names, future))
        if waiting.task is None or waiting.task.done():
            waiting.task = asyncio.create_task(self._answer(waiting))
        return await future

    async def _answer(self, waiting: _Waiting) -> None:
        loop = asyncio.get_running_loop()
        while waiting.asked:
            batch: list[_Question] = []
            size = 0
            while waiting.asked and (not batch or size + len(waiting.asked[0][0]) <= _MOST_TOGETHER):
                size += len(waiting.asked[0][0])
                batch.append(waiting.asked.pop(0))
            try:
                genes = np.concatenate([each for each, _, _ in batch]) if len(batch) > 1 else batch[0][0]
                names = tuple(dict.fromkeys(name for _, own, _ in batch for name in own))
                found = await loop.run_in_executor(self._pool, _predict, waiting.opened, genes, names)
            except Exception as error:  # whatever it is, it is told to whoever asked, and the next are answered
                for *_, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            first = 0
            for own, wanted, future in batch:
                part = slice(first, first + len(own))
                first += len(own)
                if not future.done():  # whoever asked may have gone
                    future.set_result(found.cut(part, wanted))

    async def damages(self, run: RunFolder, architecture: Architecture) -> FloatArray:
        """Return what each sub-block of an architecture does, (layers, attention and MLP), see `sub_block_damages`."""
        opened = await self.open(run)
        first = next(iter(opened.predictors.values()))
        return await asyncio.get_running_loop().run_in_executor(self._pool, sub_block_damages, first, architecture)

    def close(self) -> None:
        """Let go of the thread."""
        self._pool.shutdown(cancel_futures=True)


def _predict(opened: Opened, genes: Genes, names: Sequence[str]) -> Answer:
    predicted = {name: opened.predictors[name].predict_genes(genes) for name in names}
    return Answer(predicted, costs_of_genes(opened.space, genes))


def _open(run: RunFolder) -> Opened:
    space = run.search_space()
    if not run.predictor.is_dir():
        raise RunFolderError(
            f"A run must have a predictor to be asked, but {run.path.name!r} has none yet; it gets one when it is "
            "finished."
        )
    predictors = {each.target.title: each for each in map(AccuracyPredictor.load, run.predictors())}
    winner = Architecture.from_dict(run.best()["architecture"]) if run.best_file.exists() else None
    told = {name: float(each.predict([winner]).value[0]) for name, each in predictors.items()} if winner else {}
    return Opened(space, predictors, winner, space.amounts(Architecture.dense(space.layout)), told)
