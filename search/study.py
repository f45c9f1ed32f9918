"""The Optuna study of a run: every whole architecture that it measured is a trial, its value the measured KL.

Where a run searches against costs, the study has several objectives: KL first, then the costs as shares of the dense
model's; its `best_trials` are the Pareto set.

Study, storage, dashboard (`optuna-dashboard sqlite:///study.db`) and resuming are Optuna's: a run that was killed goes
on with the trials that are there, and ends as if it had not been.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DatabaseError

from search.sampler import ArchitectureSampler, architecture_of, distributions
from space import Architecture, RunFolderError, SearchSpace

STUDY = "search"
_RECORDS, _MADE_FROM = "rounds", "made_from"

Measure = Callable[[Architecture, str], float]  # and why it is measured


class ArchitectureStudy:
    """The study of a run.

    Trials belong to rounds: 0 are those that a predictor first learns from, then come those that were proposed. What a
    finished round has to say of itself is kept with the study.

    Args:
        file: SQLite file, made if missing.
        space: the search space.
        sampler: proposes what to measure.
        made_from: fingerprint of all that the trials depend on; a study made from other things starts anew.

    Raises:
        RunFolderError: the file is damaged.
    """

    def __init__(self, file: Path, space: SearchSpace, sampler: ArchitectureSampler, made_from: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._sampler = sampler
        try:
            self._storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
            self._study = self._open(made_from)
        except DatabaseError as error:
            if "full" in str(error):
                raise
            raise RunFolderError(
                f"{file.name} must be an intact SQLite file, but {str(file)!r} is not ({error.orig}); delete it, it is "
                "made anew."
            ) from error

    def _open(self, made_from: str) -> optuna.Study:
        study = self._create()
        if study.user_attrs.get(_MADE_FROM, made_from) != made_from:
            optuna.delete_study(study_name=STUDY, storage=self._storage)
            study = self._create()
        for stale in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(stale.number, state=TrialState.FAIL)  # of a run that was killed
        if _MADE_FROM not in study.user_attrs:
            study.set_user_attr(_MADE_FROM, made_from)
            study.set_user_attr(_RECORDS, [])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # a label for the dashboard
                costs = [f"{metric}, share of dense" for metric in self._sampler.ladder.against]
                study.set_metric_names(["measured KL", *costs])
        return study

    def _create(self) -> optuna.Study:
        """Return the study of this name, a new one if there is none."""
        return optuna.create_study(
            storage=self._storage,
            study_name=STUDY,
            sampler=self._sampler,
            directions=["minimize"] * (1 + len(self._sampler.ladder.against)),
            load_if_exists=True,
        )

    @property
    def records(self) -> list[dict[str, Any]]:
        """What the finished rounds said of themselves."""
        return list(self._study.user_attrs[_RECORDS])

    def finish_round(self, record: Mapping[str, Any]) -> None:
        """Keep what a round that is over says of itself."""
        self._study.set_user_attr(_RECORDS, [*self.records, dict(record)])

    def trials(self, number: int) -> list[tuple[Architecture, str]]:
        """Return the measured architectures of a round and why each was measured, in order."""
        done = [each for each in self._finished() if each.user_attrs["round"] == number]
        return [(architecture_of(self._space, each.params), each.user_attrs["origin"]) for each in done]

    def plan(self, number: int) -> list[tuple[Architecture, float]]:
        """Return what the sampler would measure in a round, by what it learned and the trials of the rounds before.

        Args:
            number: of the round, from 1; the same trials before it give the same plan.

        Returns:
            Architectures, and the improvement that is expected of each, as a share of the lowest KL; with costs, the
            mean share over the range of costs.
        """
        before = [each for each in self._finished() if each.user_attrs["round"] < number]
        population = {architecture_of(self._space, each.params): each.values[0] for each in before}
        return self._sampler.plan(population, population, np.random.default_rng([self._sampler.seed, 8, number]))

    def _finished(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def measure(
        self,
        number: int,
        planned: Sequence[Architecture],
        origin: str,
        measure: Measure,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Measure architectures as trials of a round; those that are trials already are not measured again.

        Args:
            number: of the round.
            planned: what to measure, all in the space.
            origin: why.
            measure: measures one.
            progress: told 1 after each.
        """
        done = {architecture for architecture, _ in self.trials(number)}
        for architecture in planned:
            if architecture in done:
                measure(architecture, origin)  # as it is known, for the order of the pairs
            else:
                self._sampler.enqueue([architecture])
                self.ask(number, origin, measure)
            progress(1)

    def ask(self, number: int, origin: str, measure: Measure) -> Architecture:
        """Measure what the sampler proposes next and return it."""
        choices: dict[str, BaseDistribution] = dict(distributions(self._space))
        trial = self._study.ask(fixed_distributions=choices)
        architecture = architecture_of(self._space, trial.params)
        try:
            for name, value in (("fingerprint", architecture.fingerprint), ("origin", origin), ("round", number)):
                trial.set_user_attr(name, value)
            shares = self._sampler.ladder.shares([architecture])[0].tolist()
            self._study.tell(trial, [measure(architecture, origin), *shares])
        except BaseException:
            # Ctrl-C too: a trial that nobody finishes would keep its architecture from being proposed again.
            self._study.tell(trial, state=TrialState.FAIL)
            raise
        return architecture

    def close(self) -> None:
        """Release the file."""
        self._storage.remove_session()
        self._storage.engine.dispose()
