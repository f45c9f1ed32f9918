"""The Optuna study of one round: every trial is an architecture on the budget, its value what the predictor says.

The sampler proposes whole architectures instead of single parameters, since independent draws of 60 genes never land
on a budget: offspring of the best so far are screened by the predictor in one vectorised call, and the best one not
seen before becomes the trial. Study, storage and everything that reads them (optuna-dashboard) are Optuna's.
"""

import hashlib
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DatabaseError

from search.proposals import Score, mutate, offspring
from space import Architecture, Choice, Indices, RunFolderError, SearchSpace, sample

_PARENTS = 32
# Trials near what was measured: few sub-blocks away from the best few, where the predictor errs least.
_ELITES = 6
_NEAR_SWAPS = 2
_NOT_SEEN_TRIES = 8


class ArchitectureSampler(BaseSampler):
    """Proposes architectures by evolution that the predictor screens.

    Every other trial stays near the best measured architectures: proposals from anywhere are chosen from so many that
    the winner is as much the predictor's luckiest error as a good architecture, which near the measured ones it is not.

    A trial's proposal depends on the seed, the trial's number and the finished trials only, so a study repeated in
    another process gives the same trials.

    Args:
        space: the search space with its budgets.
        score: the predictor, lower is better.
        starts: (n, columns) measured architectures to breed from, best measured first; at least one.
        seen: fingerprints not to propose again (measured already).
        candidates: architectures screened per trial.
        seed: of all draws.
    """

    def __init__(
        self,
        space: SearchSpace,
        score: Score,
        starts: Indices,
        seen: Collection[str],
        candidates: int,
        seed: int,
    ) -> None:
        self._space = space
        self._score = score
        self._starts = starts
        self._seen = set(seen)
        self._count = candidates
        self._seed = seed
        self._names = parameter_names(space)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return one categorical parameter per sub-block."""
        return dict(distributions(self._space))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose the best of many candidates that nobody has proposed before."""
        rng = np.random.default_rng([self._seed, trial.number])
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        seen = self._seen | {str(done.user_attrs["fingerprint"]) for done in finished}
        for _ in range(_NOT_SEEN_TRIES):
            pool = np.unique(self._candidates_of(trial.number, finished, rng), axis=0)
            for index in np.argsort(self._score(pool), kind="stable"):
                [architecture] = self._space.decode(pool[index : index + 1])
                if architecture.fingerprint not in seen:
                    return {
                        name: label(self._space.choices[column][pool[index, column]])
                        for column, name in enumerate(self._names)
                    }
        # A space so small that all of it was seen: repeat a random one rather than fail.
        [row] = sample(self._space, 1, rng)
        return {name: label(self._space.choices[column][row[column]]) for column, name in enumerate(self._names)}

    def _candidates_of(self, number: int, finished: Sequence[FrozenTrial], rng: np.random.Generator) -> Indices:
        if not is_near(number):
            return offspring(self._space, self._parents(finished), self._count, rng)
        elites = self._starts[:_ELITES]
        return mutate(self._space, elites[rng.integers(len(elites), size=self._count)], rng, _NEAR_SWAPS)

    def _parents(self, finished: Sequence[FrozenTrial]) -> Indices:
        best = sorted(finished, key=lambda trial: (trial.value, trial.number))[:_PARENTS]
        bred = np.array([_indices(self._space, trial.params) for trial in best], dtype=np.int16)
        pool = np.concatenate([bred.reshape(-1, self._space.columns), self._starts])
        order = np.argsort(self._score(pool), kind="stable")[:_PARENTS]
        ordered: Indices = pool[order]
        return ordered

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Refuse: every parameter belongs to the architecture."""
        raise AssertionError(f"{param_name} is no parameter of an architecture")


def is_near(number: int) -> bool:
    """Return whether the trial of a number stays near the best measured architectures."""
    return number % 2 == 1


def label(choice: Choice) -> str:
    """Return how a choice is called in the study, e.g. `768` or `768 at 50 %`."""
    return f"{choice.width}" if choice.sparsity == 0 else f"{choice.width} at {100 * choice.sparsity:g} %"


def parameter_names(space: SearchSpace) -> list[str]:
    """Return the study's parameter of each column."""
    return [f"{column // 2:02d}.{'mlp' if column % 2 else 'attention'}" for column in range(space.columns)]


def distributions(space: SearchSpace) -> dict[str, CategoricalDistribution]:
    """Return the study's distribution of each column."""
    labels = [[label(choice) for choice in options] for options in space.choices]
    return {name: CategoricalDistribution(names) for name, names in zip(parameter_names(space), labels, strict=True)}


def _indices(space: SearchSpace, params: dict[str, Any]) -> list[int]:
    positions = [{label(choice): index for index, choice in enumerate(options)} for options in space.choices]
    return [position[params[name]] for name, position in zip(parameter_names(space), positions, strict=True)]


def run_study(
    file: Path,
    name: str,
    sampler: ArchitectureSampler,
    space: SearchSpace,
    score: Score,
    trials: int,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[list[Architecture], list[Architecture]]:
    """Run one round's study, or read it if it is finished.

    A study that was interrupted starts over: it takes seconds, and so gives what it would have given undisturbed.

    Args:
        file: SQLite file of all rounds' studies.
        name: of this round's study.
        sampler: proposes the architectures.
        space: the search space.
        score: the predictor, lower is better.
        trials: how many.
        progress: told 1 after each trial.

    Returns:
        The architectures proposed near the best measured ones, and those from anywhere, each best predicted first.

    Raises:
        RunFolderError: the file is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    key = _digest(sampler, trials)
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
        study = optuna.create_study(storage=storage, study_name=name, sampler=sampler, load_if_exists=True)
    except DatabaseError as error:
        if "full" in str(error):
            raise
        raise RunFolderError(
            f"{file.name} must be an intact SQLite file, but {str(file)!r} is not ({error.orig}); delete it, it is "
            "made anew."
        ) from error
    if study.user_attrs.get("finished") != key:
        optuna.delete_study(study_name=name, storage=storage)
        memory = optuna.storages.InMemoryStorage()
        _search(memory, name, sampler, space, score, trials, progress)
        optuna.copy_study(from_study_name=name, from_storage=memory, to_storage=storage, to_study_name=name)
        study = optuna.load_study(study_name=name, storage=storage)
        study.set_user_attr("finished", key)
    finished = sorted(study.get_trials(deepcopy=False), key=lambda trial: (trial.value, trial.number))
    storage.remove_session()
    near, anywhere = (
        [_indices(space, trial.params) for trial in finished if is_near(trial.number) == wanted]
        for wanted in (True, False)
    )
    return _decoded(space, near), _decoded(space, anywhere)


def _decoded(space: SearchSpace, rows: list[list[int]]) -> list[Architecture]:
    return space.decode(np.array(rows, dtype=np.int16).reshape(-1, space.columns))


def _search(
    storage: optuna.storages.InMemoryStorage,
    name: str,
    sampler: ArchitectureSampler,
    space: SearchSpace,
    score: Score,
    trials: int,
    progress: Callable[[int], None],
) -> None:
    """Run a study in memory: SQLite would commit each of a trial's parameters by itself, for most of the time."""
    study = optuna.create_study(storage=storage, study_name=name, sampler=sampler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # a label for the dashboard
        study.set_metric_names(["predicted KL"])
    choices: dict[str, BaseDistribution] = dict(distributions(space))
    for _ in range(trials):
        trial = study.ask(fixed_distributions=choices)
        row = np.array([_indices(space, trial.params)], dtype=np.int16)
        [architecture] = space.decode(row)
        trial.set_user_attr("fingerprint", architecture.fingerprint)
        study.tell(trial, float(score(row)[0]))
        progress(1)


def _digest(sampler: ArchitectureSampler, trials: int) -> str:
    """Return what the finished study of the same name must have been made from to be read instead of run."""
    content = [sampler._seed, sampler._count, trials, sorted(sampler._seen), sampler._starts.tolist()]
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]
