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

from search.proposals import Score, offspring
from space import Architecture, Choice, Indices, RunFolderError, SearchSpace, sample

_PARENTS = 32
_NOT_SEEN_TRIES = 8


class ArchitectureSampler(BaseSampler):
    """Proposes architectures by evolution that the predictor screens.

    A trial's proposal depends on the seed, the trial's number and the finished trials only, so a study repeated in
    another process gives the same trials.

    Args:
        space: the search space with its budgets.
        score: the predictor, lower is better.
        starts: (n, columns) architectures to breed from before there are trials, best first.
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
        self._candidates = candidates
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
        parents = self._parents(finished)
        for _ in range(_NOT_SEEN_TRIES):
            pool = np.unique(offspring(self._space, parents, self._candidates, rng), axis=0)
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
) -> list[Architecture]:
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
        The proposed architectures, best predicted first.

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
        study = optuna.create_study(storage=storage, study_name=name, sampler=sampler)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # a label for the dashboard
            study.set_metric_names(["predicted KL"])
        space_distributions: dict[str, BaseDistribution] = dict(distributions(space))
        for _ in range(trials):
            trial = study.ask(fixed_distributions=space_distributions)
            row = np.array([_indices(space, trial.params)], dtype=np.int16)
            [architecture] = space.decode(row)
            trial.set_user_attr("fingerprint", architecture.fingerprint)
            study.tell(trial, float(score(row)[0]))
            progress(1)
        study.set_user_attr("finished", key)
    finished = sorted(study.get_trials(deepcopy=False), key=lambda trial: (trial.value, trial.number))
    rows = np.array([_indices(space, trial.params) for trial in finished], dtype=np.int16)
    storage.remove_session()
    return space.decode(rows)


def _digest(sampler: ArchitectureSampler, trials: int) -> str:
    """Return what the finished study of the same name must have been made from to be read instead of run."""
    content = [sampler._seed, sampler._candidates, trials, sorted(sampler._seen), sampler._starts.tolist()]
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]
