"""The Optuna study: architectures on the budget, the same in every process, read again when it is finished."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest

from search.study import ArchitectureSampler, distributions, label, parameter_names, run_study
from space import Budget, Choice, build_space, sample
from tests.space.layouts import PICO

ROOT = Path(__file__).parents[2]
SPACE = build_space(PICO, (Budget("parameters", 0.7),))
STARTS = sample(SPACE, 8, np.random.default_rng(0))


def score(indices):
    """Cutting costs its square, more in later sub-blocks; lower is better."""
    cut = 1 - indices / (SPACE.sizes - 1)
    return (cut**2 * np.arange(1, SPACE.columns + 1)).sum(axis=1)


def sampler(seed=1, seen=(), starts=STARTS, candidates=64):
    return ArchitectureSampler(SPACE, score, starts=starts, seen=seen, candidates=candidates, seed=seed)


def study_of(file, trials=6, told=None, **more):
    """Return all proposals of a study, best first."""
    progress = [].append if told is None else told.append
    near, anywhere = run_study(file, "round-1", sampler(**more), SPACE, score, trials, progress)
    return sorted(near + anywhere, key=lambda each: score(SPACE.encode([each]))[0])


def names(architectures):
    return [architecture.fingerprint for architecture in architectures]


def test_proposals_are_new_within_the_budget_and_best_first(tmp_path):
    told = []
    seen = names(study_of(tmp_path / "a.db"))
    found = study_of(tmp_path / "b.db", told=told, seen=seen[:2])
    assert told == [1] * 6
    assert len(set(names(found))) == 6
    assert not set(names(found)) & set(seen[:2])
    rows = SPACE.encode(found)
    assert SPACE.within(rows).all()
    assert (np.diff(score(rows)) >= 0).all()
    assert score(rows)[0] < score(STARTS).min()


def test_every_other_trial_stays_near_the_best_measured(tmp_path):
    order = np.argsort(score(STARTS))
    near, anywhere = run_study(tmp_path / "study.db", "round-1", sampler(starts=STARTS[order]), SPACE, score, 12)
    assert (len(near), len(anywhere)) == (6, 6)
    for found in (near, anywhere):
        assert (np.diff(score(SPACE.encode(found))) >= 0).all()
    elites = STARTS[order][:6]
    away = [min((row != elite).sum() for elite in elites) for row in SPACE.encode(near)]
    # Two steps down, two up, and what landing on the budget takes.
    assert max(away) <= 7


def test_a_study_is_the_same_in_another_process(tmp_path):
    here = names(study_of(tmp_path / "here.db"))
    code = (
        "import sys; from pathlib import Path; from tests.search.test_study import names, study_of; "
        "print(*names(study_of(Path(sys.argv[1]))))"
    )
    there = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "there.db")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert there.stdout.split() == here
    assert names(study_of(tmp_path / "other.db", seed=2)) != here


def test_a_finished_study_is_read_and_not_run(tmp_path):
    first_told, second_told = [], []
    first = study_of(tmp_path / "study.db", told=first_told)
    assert study_of(tmp_path / "study.db", told=second_told) == first
    assert (len(first_told), second_told) == (6, [])


@pytest.mark.parametrize("change", [{"seed": 2}, {"trials": 5}, {"seen": ["0123"]}, {"candidates": 32}])
def test_a_study_of_other_settings_is_run_again(tmp_path, change):
    study_of(tmp_path / "study.db")
    told = []
    study_of(tmp_path / "study.db", told=told, **change)
    assert len(told) == change.get("trials", 6)


def test_an_interrupted_study_starts_over(tmp_path):
    undisturbed = study_of(tmp_path / "whole.db")

    class Killed(BaseException):
        pass

    done = []

    def kill(_):
        done.append(1)
        if len(done) == 3:
            raise Killed

    with pytest.raises(Killed):
        run_study(tmp_path / "study.db", "round-1", sampler(), SPACE, score, 6, kill)
    told = []
    assert study_of(tmp_path / "study.db", told=told) == undisturbed
    assert len(told) == 6


def test_optuna_opens_the_file_and_reads_every_choice(tmp_path):
    found = study_of(tmp_path / "study.db")
    study = optuna.load_study(study_name="round-1", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert len(study.trials) == 6
    assert study.best_trial.user_attrs["fingerprint"] == found[0].fingerprint
    assert study.best_trial.value == pytest.approx(score(SPACE.encode(found[:1]))[0])
    assert sorted(study.best_trial.params) == sorted(parameter_names(SPACE))
    assert study.best_trial.params["02.mlp"] == str(found[0].layers[2].mlp_width)


def test_choices_have_distinct_labels():
    assert label(Choice(768)) == "768"
    assert label(Choice(768, 0.5)) == "768 at 50 %"
    for name, options in distributions(SPACE).items():
        assert len(set(options.choices)) == len(options.choices), name


def test_a_space_that_was_all_seen_repeats_instead_of_failing(tmp_path):
    class Everything(set):
        def __contains__(self, _):
            return True

    every = sampler()
    every._seen = type("All", (), {"__or__": lambda *_: Everything(), "__iter__": lambda _: iter(())})()
    near, [found] = run_study(tmp_path / "study.db", "round-1", every, SPACE, score, 1)
    assert near == []
    assert SPACE.allows(found)
