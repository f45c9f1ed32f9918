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
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import DatabaseError

from evaluator import Database, is_forgotten, this_process, unreachable
from search.sampler import ArchitectureSampler, architecture_of, distributions, params_of
from space import Architecture, RunFolderError, SearchSpace

STUDY = "search"
_RECORD, _MADE_FROM, _WORKER = "round ", "made_from", "worker"

Measure = Callable[[Architecture, str], float]  # and why it is measured


class ArchitectureStudy:
    """The study of a run.

    Trials belong to rounds: 0 are those that a predictor first learns from, then come those that were proposed. What a
    finished round has to say of itself is kept with the study.

    Args:
        place: SQLite file or schema of a database, made if missing.
        space: the search space.
        sampler: proposes what to measure.
        made_from: fingerprint of all that the trials depend on; a study made from other things starts anew.

    Raises:
        RunFolderError: the file is damaged, or the database cannot be reached.
    """

    def __init__(
        self, place: Path | Database, space: SearchSpace, sampler: ArchitectureSampler, made_from: str
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._sampler = sampler
        try:
            self._storage = study_storage(place)
            self._study = self._open(made_from)
        except DatabaseError as error:
            if "full" in str(error):
                raise
            if isinstance(place, Database):
                raise unreachable(place, error) from None
            raise RunFolderError(
                f"{place.name} must be an intact SQLite file, but {str(place)!r} is not ({error.orig}); delete it, it "
                "is made anew."
            ) from error

    def _open(self, made_from: str) -> optuna.Study:
        study = self._create()
        if study.user_attrs.get(_MADE_FROM, made_from) != made_from:
            optuna.delete_study(study_name=STUDY, storage=self._storage)
            study = self._create()
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if _is_stale(trial):  # of a run that was killed
                study.tell(trial.number, state=TrialState.FAIL)
        if _MADE_FROM not in study.user_attrs:
            study.set_user_attr(_MADE_FROM, made_from)
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
        kept = [value for name, value in self._study.user_attrs.items() if name.startswith(_RECORD)]
        return sorted(kept, key=lambda record: record["round"])

    def finish_round(self, record: Mapping[str, Any]) -> None:
        """Keep what a round that is over, whose number is its `round`, says of itself."""
        self._study.set_user_attr(f"{_RECORD}{record['round']}", dict(record))

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
        """Measure what the sampler proposes next and return it; several processes may ask one study."""
        while True:
            architecture = self._sampler.propose(self._study)
            trial = self._begin(architecture, number, origin)
            if not self._is_taken(trial, architecture):
                break
            self._study.tell(trial, state=TrialState.FAIL)
        try:
            shares = self._sampler.ladder.shares([architecture])[0].tolist()
            self._study.tell(trial, [measure(architecture, origin), *shares])
        except BaseException:
            # Ctrl-C too: a trial that nobody finishes would keep its architecture from being proposed again.
            self._study.tell(trial, state=TrialState.FAIL)
            raise
        return architecture

    def _is_taken(self, number: int, architecture: Architecture) -> bool:
        """Return whether an earlier trial has an architecture: two that ask at once may be told the same."""
        others = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING))
        params = params_of(self._space, architecture)
        return any(each.number < number and each.params == params for each in others)

    def _begin(self, architecture: Architecture, number: int, origin: str) -> int:
        """Add a trial that is running and return its number.

        Added whole it is one transaction; `Study.ask` takes one for each parameter, each waiting for the disk.
        """
        attributes = {
            "fingerprint": architecture.fingerprint,
            "origin": origin,
            "round": number,
            _WORKER: this_process(),
        }
        choices: dict[str, BaseDistribution] = dict(distributions(self._space))
        params = params_of(self._space, architecture)
        self._study.add_trial(
            create_trial(state=TrialState.RUNNING, params=params, distributions=choices, user_attrs=attributes)
        )
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return max(each.number for each in running if each.user_attrs == attributes)

    def close(self) -> None:
        """Release the file."""
        self._storage.remove_session()
        self._storage.engine.dispose()


def study_storage(place: Path | Database) -> optuna.storages.RDBStorage:
    """Return Optuna's storage of the study that lies in a file or a schema; it keeps its version beside ours."""
    if isinstance(place, Path):
        return optuna.storages.RDBStorage(f"sqlite:///{place}")
    url = place.url.render_as_string(hide_password=False)
    return optuna.storages.RDBStorage(url, {"connect_args": place.connect_args, "pool_pre_ping": True})


def _is_stale(trial: FrozenTrial) -> bool:
    """Return whether the process that measured a trial is gone; it signs right after the trial has begun."""
    owner = trial.user_attrs.get(_WORKER)
    assert trial.datetime_start is not None
    # A container gives every process that it starts the same number.
    return owner in (None, this_process()) or is_forgotten(owner, trial.datetime_start.timestamp())
