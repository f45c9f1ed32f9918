"""The sampler: whole architectures on the budget, better than what was measured, the same in every process."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest

from predictor import AccuracyPredictor
from search.objective import Elsewhere
from search.sampler import (
    ArchitectureSampler,
    Knowledge,
    architecture_of,
    distributions,
    label,
    parameter_names,
    params_of,
)
from space import Choice, build_space, sample
from tests.predictor.synthetic import SINGLES, SPACE, draw, measure
from tests.space.layouts import SMOLLM2_135M

ROOT = Path(__file__).parents[2]
MEASURED = draw(40, 0)
KL = dict(zip(MEASURED, measure(MEASURED, 0), strict=True))


@pytest.fixture(scope="module")
def knowledge():
    return learned()


def learned():
    pairs = SINGLES + MEASURED
    predictor = AccuracyPredictor.fit(SMOLLM2_135M, pairs, measure(pairs, 0), regressors=["gaussian_process"])
    return Knowledge(predictor, SPACE, Elsewhere.alike(SPACE))


def sampler(knowledge=None, seed=1):
    found = ArchitectureSampler(SPACE, seed, candidates=128, generations=12, batch=4)
    if knowledge:
        found.learn(knowledge)
    return found


def study_of(sampler):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=sampler)
    for architecture in MEASURED:
        trial = optuna.trial.create_trial(
            params=params_of(SPACE, architecture), distributions=distributions(SPACE), value=KL[architecture]
        )
        study.add_trial(trial)
    return study


def asked(study, count):
    found = []
    for _ in range(count):
        trial = study.ask(fixed_distributions=dict(distributions(SPACE)))
        [architecture] = [architecture_of(SPACE, trial.params)]
        study.tell(trial, measure([architecture], 0)[0])
        found.append(architecture)
    return found


def fingerprints(architectures):
    return [each.fingerprint for each in architectures]


def test_proposals_are_new_within_the_budget_and_better_than_what_was_measured(knowledge):
    found = asked(study_of(sampler(knowledge)), 8)
    assert len(set(found)) == 8
    assert not set(found) & set(MEASURED)
    assert SPACE.within(SPACE.encode(found)).all()
    values = measure(found, 0)
    assert np.median(values) < np.sort(list(KL.values()))[4]
    assert min(values) < min(KL.values())


def test_what_is_queued_comes_first_unless_a_trial_has_it(knowledge):
    own = sampler(knowledge)
    study = study_of(own)
    wanted = draw(2, 9)
    own.enqueue([wanted[0], MEASURED[3], wanted[1]])
    assert asked(study, 2) == wanted
    assert asked(study, 1)[0] not in {*MEASURED, *wanted}


def test_two_that_ask_at_the_same_time_do_not_get_the_same(knowledge):
    """As two workers on one storage do: the first has not been told when the second asks."""
    first, second = sampler(knowledge), sampler(knowledge)
    study = study_of(first)
    other = optuna.load_study(study_name=study.study_name, storage=study._storage, sampler=second)
    trials = [each.ask(fixed_distributions=dict(distributions(SPACE))) for each in (study, other, study, other)]
    assert len({architecture_of(SPACE, trial.params) for trial in trials}) == 4


def test_a_trial_that_another_is_still_asking_for_is_no_architecture_yet(knowledge):
    study = study_of(sampler(knowledge))
    half = study.ask()
    half.suggest_categorical("00.attention", distributions(SPACE)["00.attention"].choices)
    assert asked(study, 1)[0] not in MEASURED


def test_a_plan_says_what_it_expects_and_takes_nothing_that_is_taken(knowledge):
    own = sampler(knowledge)
    plan = own.plan(KL, KL, np.random.default_rng(0))
    assert len(plan) == 4
    gains = [gain for _, gain in plan]
    assert all(gain > 0 for gain in gains)
    assert gains[0] == max(gains)
    others = own.plan(KL, {*KL, *(architecture for architecture, _ in plan)}, np.random.default_rng(0))
    assert not {each for each, _ in plan} & {each for each, _ in others}


def test_the_same_seed_proposes_the_same_in_another_process(knowledge):
    here = fingerprints(asked(study_of(sampler(knowledge)), 3))
    code = (
        "from tests.search.test_sampler import asked, fingerprints, learned, sampler, study_of; "
        "print(*fingerprints(asked(study_of(sampler(learned())), 3)))"
    )
    there = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert there.stdout.split() == here
    assert fingerprints(asked(study_of(sampler(knowledge, seed=2)), 3)) != here


def test_with_nothing_learned_samples_are_proposed():
    found = asked(optuna.create_study(sampler=sampler()), 3)
    assert len(set(found)) == 3
    assert all(SPACE.allows(each) for each in found)


def test_parameters_say_an_architecture_and_back():
    for space in (SPACE, build_space(SMOLLM2_135M, SPACE.budgets, whole_blocks=True)):
        for architecture in space.decode(sample(space, 5, np.random.default_rng(0))):
            params = params_of(space, architecture)
            assert list(params) == parameter_names(space) == list(distributions(space))
            assert architecture_of(space, params) == architecture
    assert parameter_names(SPACE)[:2] == ["00.attention", "00.mlp"]
    assert parameter_names(space)[:2] == ["00.block", "01.block"]


def test_choices_have_distinct_labels():
    assert label(Choice(768)) == "768"
    assert label(Choice(768, 0.5)) == "768 at 50 %"
    for name, options in distributions(build_space(SMOLLM2_135M, sparsities=(0.0, 0.5))).items():
        assert len(set(options.choices)) == len(options.choices), name
