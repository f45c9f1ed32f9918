"""An Optuna sampler that proposes whole architectures on the budget, by a predictor that learns from the study.

Independent draws of 60 parameters never meet a budget, and what a sub-block is worth depends on all others. So the
sampler breeds whole architectures from the study's trials, by mutation and crossover that keep the budget, screens some
ten thousands of them by the predictor in vectorised calls, and hands out those of the highest expected improvement.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from predictor import AccuracyPredictor, choose_batch
from predictor.threads import one_thread
from search.ladder import Ladder
from search.objective import Elsewhere, predictor_score
from search.proposals import Score, mutate, offspring
from space import Architecture, Choice, Indices, SearchSpace, genes_of, land, sample

_PARENTS = 32
# Candidates are near what was measured: half of them few sub-blocks away from the best few, where the predictor errs
# least, the others children of the best measured. Of proposals that are bred further, by what the predictor says alone,
# the winner is its luckiest error: at 60 % of SmolLM2-135M's parameters they measured 1.3 to 2.5 times the best. Only
# where costs are traded, and every rung needs some of its own, are they bred.
_ELITES = 6
_NEAR_SWAPS = 2
_MEASURED_PARENTS = 12
_FEWEST_GENERATIONS = 8  # on each rung, where there are several
_NEW_TRIES = 8  # samples among which a new one is sought


@dataclass(frozen=True)
class Knowledge:
    """What is known when a batch is planned.

    Args:
        predictor: fitted on the trials so far.
        space: to search in, the full one or a part of it.
        elsewhere: what to expect on other text.
    """

    predictor: AccuracyPredictor
    space: SearchSpace
    elsewhere: Elsewhere


class ArchitectureSampler(BaseSampler):
    """Proposes architectures that are expected to improve on the study's best, or on its Pareto set.

    First come those that are queued, then batches planned by what was learned last; with nothing learned, samples on
    the budget. An architecture that another trial has, finished or running, is not proposed. A plan depends on the
    seed, the finished trials and what was learned only.

    Args:
        space: the search space with its budgets.
        seed: of all draws.
        candidates: architectures screened at once.
        generations: of so many candidates for a batch.
        batch: architectures in a plan.
        ladder: the costs to trade the first objective against, which are the study's others; None trades nothing.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        candidates: int = 1024,
        generations: int = 48,
        batch: int = 5,
        ladder: Ladder | None = None,
    ) -> None:
        self._space = space
        self.ladder = ladder or Ladder(space)
        self.seed = seed
        self._candidates = candidates
        self._generations = generations
        self._batch = batch
        self._knowledge: Knowledge | None = None
        self._queue: deque[Architecture] = deque()
        self._known: dict[int, Architecture] = {}  # by the number of the trial

    def enqueue(self, architectures: Iterable[Architecture]) -> None:
        """Let the next trials be these."""
        self._queue.extend(architectures)

    def learn(self, knowledge: Knowledge) -> None:
        """Take what was learned from the trials so far, for the plans to come."""
        self._knowledge = knowledge

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return one categorical parameter for each sub-block, or for each layer in a space of whole blocks."""
        return dict(distributions(self._space))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose an architecture that no trial has."""
        return params_of(self._space, self.propose(study, trial.number))

    def propose(self, study: optuna.Study, number: int | None = None) -> Architecture:
        """Return an architecture that no trial has.

        Args:
            study: whose trials count.
            number: of the trial that it is for, where that is one of the study's already.
        """
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING))
        # A trial that another process asks for at this moment gets its parameters one by one.
        whole = len(self._space.units)
        others = [each for each in trials if each.number != number and len(each.params) == whole]
        taken = {self._architecture(each) for each in others}
        while self._queue:
            if (next_ := self._queue.popleft()) not in taken:
                return next_
        done = sorted((each for each in others if each.state == TrialState.COMPLETE), key=lambda each: each.number)
        rng = np.random.default_rng([self.seed, len(done)])  # a trial that failed has a number, and no part in this
        if self._knowledge is not None:
            population = {self._architecture(each): each.values[0] for each in done}
            self._queue.extend(pick for pick, _ in self.plan(population, taken, rng))
            if self._queue:
                return self._queue.popleft()
        rungs = self.ladder.rungs()
        for _ in range(_NEW_TRIES):
            [drawn] = self._space.decode(sample(rungs[len(done) % len(rungs)], 1, rng))
            if drawn not in taken:
                break
        return drawn  # in a space that was all seen, again

    def plan(
        self, population: dict[Architecture, float], taken: Iterable[Architecture], rng: np.random.Generator
    ) -> list[tuple[Architecture, float]]:
        """Return a batch of architectures that are worth measuring together, the most promising first.

        With each comes the improvement that is expected of it, as a share of the lowest KL.

        Args:
            population: measured architectures with their KL.
            taken: what not to propose.
            rng: where the randomness comes from.
        """
        assert self._knowledge is not None
        known = self._knowledge
        names = list(population)
        expected = np.array(list(population.values())) * known.elsewhere.factor(genes_of(names))
        inside = [index for index in np.argsort(expected, kind="stable") if known.space.allows(names[index])]
        starts = known.space.encode([names[index] for index in inside])
        rungs = self.ladder.rungs(known.space, rng)
        generations = min(self._generations, max(_FEWEST_GENERATIONS, self._generations // len(rungs)))
        found: list[Architecture] = []
        with one_thread():  # a thousand candidates at a time: a second thread takes twice the time
            for rung in rungs:
                score = predictor_score(rung, known.predictor, known.elsewhere)
                near = starts if len(rungs) == 1 else _landed(rung, starts, score, rng)
                found += self._screen(rung, score, near, {*taken, *names, *found}, generations, rng)
        if not found:
            return []
        genes = genes_of(found)
        measured = [index for index, each in enumerate(names) if self._space.allows(each)]
        best, within = self._to_improve([names[index] for index in measured], expected[measured], found)
        picks = choose_batch(known.predictor, genes, self._batch, best, known.elsewhere.factor(genes), within)
        return [(found[pick.index], pick.improvement) for pick in picks]

    def _to_improve(
        self, measured: list[Architecture], expected: NDArray[np.float64], found: list[Architecture]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_] | None]:
        """Return the lowest KL under each budget to improve on (budgets,), and which candidates are within each."""
        if not self.ladder.against:
            return expected.min(keepdims=True), None
        marks = self.ladder.marks
        known, new = ((self.ladder.shares(own)[:, None] <= marks).all(axis=2) for own in (measured, found))
        # Under a budget that nothing measured is within, the worst there is.
        lowest: NDArray[np.float64] = np.where(known, expected[:, None], expected.max()).min(axis=0)
        return lowest, np.asarray(new)

    def _screen(
        self,
        space: SearchSpace,
        score: Score,
        starts: Indices,
        taken: set[Architecture],
        generations: int,
        rng: np.random.Generator,
    ) -> list[Architecture]:
        """Return the best new architecture of each generation: by turns near the best measured, and their children."""
        breeding = bool(self.ladder.against) or not len(starts)
        seen = {tuple(row) for row in space.encode(each for each in taken if space.allows(each)).tolist()}
        bred = starts
        found: list[Indices] = []
        for generation in range(generations):
            if generation % 2 and len(starts):
                elites = starts[:_ELITES]
                pool = mutate(space, elites[rng.integers(len(elites), size=self._candidates)], rng, _NEAR_SWAPS)
            else:
                parents = _best(score, bred, _PARENTS) if len(bred) else sample(space, _PARENTS, rng)
                parents = parents if breeding else starts[:_MEASURED_PARENTS]
                pool = offspring(space, parents, self._candidates, rng, fresh=breeding)
            row = _first_new(score, np.unique(pool, axis=0), seen)
            if row is None:
                continue
            seen.add(tuple(row.tolist()))
            found.append(row)
            if generation % 2 == 0:
                bred = np.concatenate([bred, row[None]])
        return space.decode(np.array(found, dtype=np.int16).reshape(-1, space.columns))

    def _architecture(self, trial: FrozenTrial) -> Architecture:
        """Return a trial's architecture; the parameters of a trial never change."""
        if trial.number not in self._known:
            self._known[trial.number] = architecture_of(self._space, trial.params)
        return self._known[trial.number]

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Refuse: every parameter belongs to the architecture."""
        raise AssertionError(f"{param_name} is no parameter of an architecture")


def _landed(rung: SearchSpace, rows: Indices, score: Score, rng: np.random.Generator) -> Indices:
    """Return what was measured anywhere in the range, moved onto a rung, the most promising first."""
    return _best(score, np.unique(land(rung, rows, rng), axis=0), len(rows))


def _best(score: Score, rows: Indices, count: int) -> Indices:
    best: Indices = rows[np.argsort(score(rows), kind="stable")[:count]]
    return best


def _first_new(score: Score, pool: Indices, seen: set[tuple[int, ...]]) -> Indices | None:
    for index in np.argsort(score(pool), kind="stable"):
        if tuple(pool[index].tolist()) not in seen:
            row: Indices = pool[index]
            return row
    return None


def label(choice: Choice) -> str:
    """Return how a choice is called in the study, e.g. `768` or `768 at 50 %`."""
    return f"{choice.width}" if choice.sparsity == 0 else f"{choice.width} at {100 * choice.sparsity:g} %"


def parameter_names(space: SearchSpace) -> list[str]:
    """Return the study's parameter of each unit of columns, e.g. `03.mlp`, or `03.block` where a layer goes whole."""
    parts = ("block",) if space.whole_blocks else ("attention", "mlp")
    return [f"{layer:02d}.{part}" for layer in range(space.layout.layers) for part in parts]


def distributions(space: SearchSpace) -> dict[str, CategoricalDistribution]:
    """Return the study's distribution of each parameter."""
    labels = [[label(choice) for choice in space.choices[unit[-1]]] for unit in space.units]
    return {name: CategoricalDistribution(names) for name, names in zip(parameter_names(space), labels, strict=True)}


def params_of(space: SearchSpace, architecture: Architecture) -> dict[str, str]:
    """Return an architecture as the parameters of a trial."""
    [row] = space.encode([architecture])
    chosen = (label(space.choices[unit[-1]][row[unit[-1]]]) for unit in space.units)
    return dict(zip(parameter_names(space), chosen, strict=True))


def architecture_of(space: SearchSpace, params: dict[str, Any]) -> Architecture:
    """Return the architecture that the parameters of a trial say."""
    row = np.zeros((1, space.columns), dtype=np.int16)
    for name, unit in zip(parameter_names(space), space.units, strict=True):
        own = [label(choice) for choice in space.choices[unit[-1]]].index(params[name])
        row[0, unit] = own
    return space.decode(row)[0]
