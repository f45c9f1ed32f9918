"""The study: a trial for every architecture measured, gone on with where it was stopped."""

import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

from search.sampler import architecture_of, distributions
from search.study import STUDY, ArchitectureStudy
from space import RunFolderError
from tests.predictor.synthetic import SPACE, draw, measure
from tests.search.test_sampler import MEASURED, learned, sampler

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def knowledge():
    return learned()


class Meter:
    """Measures and remembers what it was asked for; breaks when told to."""

    def __init__(self, most=None):
        self.asked, self._most = [], most

    def __call__(self, architecture, origin):
        if self._most is not None and len(self.asked) >= self._most:
            raise KeyboardInterrupt
        self.asked.append((architecture, origin))
        return measure([architecture], 0)[0]


def opened(folder, knowledge=None, made_from="here"):
    return ArchitectureStudy(folder / "study.db", SPACE, sampler(knowledge), made_from)


def test_every_measurement_is_a_trial_that_optuna_reads(tmp_path):
    study, meter, told = opened(tmp_path), Meter(), []
    study.measure(0, MEASURED[:3], "random", meter, told.append)
    study.measure(1, MEASURED[3:5], "searched", meter)
    study.finish_round({"round": 1, "best_kl": 0.25})
    study.close()
    assert told == [1, 1, 1]
    found = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert [trial.value for trial in found.trials] == [measure([each], 0)[0] for each in MEASURED[:5]]
    assert [architecture_of(SPACE, trial.params) for trial in found.trials] == MEASURED[:5]
    assert [trial.user_attrs["fingerprint"] for trial in found.trials] == [each.fingerprint for each in MEASURED[:5]]
    assert [trial.user_attrs["round"] for trial in found.trials] == [0, 0, 0, 1, 1]
    assert found.best_trial.params["02.mlp"] == str(architecture_of(SPACE, found.best_trial.params).layers[2].mlp_width)


def test_others_see_a_trial_whole_while_it_is_measured(tmp_path):
    study, commits = opened(tmp_path), []
    sqlalchemy.event.listen(study._storage.engine, "commit", commits.append)

    def look(architecture, origin):
        other = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{tmp_path / 'study.db'}")
        [trial] = other.get_trials(states=(TrialState.RUNNING,))
        assert architecture_of(SPACE, trial.params) == architecture
        assert (trial.user_attrs["round"], trial.user_attrs["origin"]) == (2, origin)
        return 0.5

    study.measure(2, MEASURED[:2], "searched", look)
    assert 0 < len(commits) < len(distributions(SPACE))  # each waits for the disk


def test_a_study_goes_on_where_it_was_stopped(tmp_path):
    first = opened(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        first.measure(0, MEASURED[:6], "random", Meter(most=4))
    first.close()
    second, meter = opened(tmp_path), Meter()
    assert second.trials(0) == [(each, "random") for each in MEASURED[:4]]
    second.measure(0, MEASURED[:6], "random", meter)
    assert meter.asked == [(each, "random") for each in MEASURED[:6]]  # those that are known for their order
    assert second.trials(0) == [(each, "random") for each in MEASURED[:6]]
    rounds = [{"round": number, "best_kl": 1 / number} for number in (1, 2, 10)]
    for record in rounds:
        second.finish_round(record)
    second.close()
    assert opened(tmp_path).records == rounds


def test_a_plan_does_not_depend_on_what_its_round_measured_already(tmp_path, knowledge):
    study = opened(tmp_path, knowledge)
    study.measure(0, MEASURED[:30], "random", Meter())
    plan = [architecture for architecture, _ in study.plan(1)]
    study.measure(1, plan[:2], "searched", Meter())
    study.close()
    again = opened(tmp_path, knowledge)
    assert [architecture for architecture, _ in again.plan(1)] == plan
    assert not set(plan) & {architecture for architecture, _ in again.plan(2)}
    meter = Meter()
    again.measure(1, plan, "searched", meter)
    assert [architecture for architecture, _ in again.trials(1)] == plan


def test_what_a_killed_run_left_running_is_proposed_again(tmp_path):
    study = opened(tmp_path)
    study._sampler.enqueue([MEASURED[0]])
    study._study.ask(fixed_distributions=dict(sampler().infer_relative_search_space(None, None)))
    study.close()
    again, meter = opened(tmp_path), Meter()
    again.measure(0, MEASURED[:1], "random", meter)
    assert meter.asked == [(MEASURED[0], "random")]
    assert again.trials(0) == [(MEASURED[0], "random")]


def test_a_study_made_from_other_things_starts_anew(tmp_path):
    study = opened(tmp_path)
    study.measure(0, MEASURED[:2], "random", Meter())
    study.finish_round({"round": 1})
    study.close()
    other = opened(tmp_path, made_from="elsewhere")
    assert other.trials(0) == []
    assert other.records == []


def test_a_file_that_is_no_study_is_refused(tmp_path):
    (tmp_path / "study.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(RunFolderError, match=r"intact SQLite file, but .* delete it, it is made anew"):
        opened(tmp_path)


def test_values_and_order_survive(tmp_path):
    study = opened(tmp_path)
    rng = np.random.default_rng(0)
    order = [draw(6, 3)[index] for index in rng.permutation(6)]
    study.measure(0, order, "random", Meter())
    study.close()
    with sqlite3.connect(tmp_path / "study.db") as connection:
        states = {row[0] for row in connection.execute("SELECT state FROM trials")}
    assert states == {"COMPLETE"}
    assert [architecture for architecture, _ in opened(tmp_path).trials(0)] == order


# Forked after the imports, which take longer than all else, and begun together.
_WORKERS = """
import os, sys, time
from pathlib import Path
from search.study import ArchitectureStudy
from tests.predictor.synthetic import SPACE, measure
from tests.search.test_sampler import sampler

folder, *logs = map(Path, sys.argv[1:])


def work(log):
    def told(architecture, origin):
        with log.open("a") as stream:
            stream.write(architecture.fingerprint + "\\n")
        time.sleep(0.05)
        return measure([architecture], 0)[0]

    study = ArchitectureStudy(folder / "study.db", SPACE, sampler(), "here")
    os.write(ready[1], b"r")
    os.read(go[0], 1)
    for _ in range(8):
        study.ask(0, "random", told)


ready, go = os.pipe(), os.pipe()
workers = []
for log in logs:
    if not (process := os.fork()):
        work(log)
        os._exit(0)
    workers.append(process)
for _ in workers:
    os.read(ready[0], 1)
os.write(go[1], b"g" * len(workers))
assert [os.waitpid(process, 0)[1] for process in workers] == [0] * len(workers)
"""


def test_two_workers_on_one_study_measure_nothing_twice(tmp_path):
    """With the same seed, at the same time: without care they ask for the same."""
    opened(tmp_path).close()
    logs = [tmp_path / "first", tmp_path / "second"]
    subprocess.run([sys.executable, "-c", _WORKERS, *map(str, (tmp_path, *logs))], cwd=ROOT, check=True, timeout=120)
    measured = [log.read_text().split() for log in logs]
    assert [len(own) for own in measured] == [8, 8]
    assert len(set(measured[0] + measured[1])) == 16
    assert len(opened(tmp_path).trials(0)) == 16


def test_a_trial_of_a_process_that_lives_is_left_alone(tmp_path):
    study = opened(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        number = study._begin(MEASURED[0], 0, "random")
        study._study._storage.set_trial_user_attr(
            study._study.get_trials(deepcopy=False)[number]._trial_id, "worker", f"{socket.gethostname()}:{living.pid}"
        )
        study.close()
        states = {trial.state.name for trial in opened(tmp_path)._study.get_trials()}
        assert states == {"RUNNING"}
        living.communicate(b"\n")
    assert {trial.state.name for trial in opened(tmp_path)._study.get_trials()} == {"FAIL"}
