"""The mathematics of Pareto sets against known values, chance and Optuna's own."""

import warnings

import numpy as np
import optuna
import pytest
from optuna.visualization import plot_hypervolume_history

from search.pareto import hypervolume, non_dominated, widest
from search.rules import Rule, chosen, knee_distances
from space import SettingError


def test_points_that_none_beats():
    values = [[1, 4], [2, 2], [2, 3], [4, 1], [4, 1], [5, 5], [1, 4.5]]
    assert non_dominated(values).tolist() == [True, True, False, True, True, False, False]
    assert non_dominated(np.zeros((0, 3))).tolist() == []


def test_known_volumes():
    assert hypervolume([[1.0, 1.0]], [3.0, 2.0]) == pytest.approx(2.0)
    assert hypervolume([[1, 2], [2, 1]], [3, 3]) == pytest.approx(3.0)
    assert hypervolume([[0, 0, 0], [0.5, 0.5, 0.5]], [1, 2, 3]) == pytest.approx(6.0)
    # Two boxes of 1 x 1 x 2 and 2 x 1 x 1 that share a cube of 1.
    assert hypervolume([[1, 1, 0], [0, 1, 1]], [2, 2, 2]) == pytest.approx(3.0)
    assert hypervolume([[3, 0], [0, 3.5]], [3, 3]) == 0.0
    assert hypervolume([], [1, 1]) == 0.0


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_volumes_are_what_chance_and_optuna_find(objectives):
    rng = np.random.default_rng(objectives)
    values = rng.random((25, objectives)) ** 0.5
    reference = np.full(objectives, 1.1)
    darts = 1.1 * rng.random((100_000, objectives))
    hit = np.zeros(len(darts), dtype=bool)
    for value in values:
        hit |= (darts >= value).all(axis=1)
    found = hypervolume(values, reference)
    assert found == pytest.approx(hit.mean() * 1.1**objectives, abs=0.01)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["minimize"] * objectives)
    for value in values:
        study.add_trial(optuna.trial.create_trial(values=value.tolist()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        history = plot_hypervolume_history(study, reference).data[0].y
    assert found == pytest.approx(history[-1])
    assert [hypervolume(values[: n + 1], reference) for n in range(25)] == pytest.approx(list(history))


def test_the_widest_reach_most_and_none_is_for_nothing():
    values = [[0.0, 0.9], [0.9, 0.0], [0.4, 0.4], [0.41, 0.41], [2.0, 2.0]]
    assert widest(values, [1, 1], 1) == [2]
    assert sorted(widest(values, [1, 1], 9)) == [0, 1, 2]
    assert widest(np.zeros((0, 2)), [1, 1], 3) == []


def test_rules_choose_as_they_say():
    values = np.array([[0.30, 0.80], [0.31, 0.75], [0.36, 0.60], [0.60, 0.55], [1.30, 0.50]])
    assert chosen(Rule.parse("knee"), values) == 2
    assert chosen(Rule.parse("cheapest=0.05"), values) == 1
    assert chosen(Rule.parse("cheapest=20%"), values) == 2
    assert chosen(Rule.parse("cheapest=0"), values) == 0
    assert chosen(Rule.parse("cheapest=9"), values) == 4
    # The knee is farthest below the line between the ends.
    scaled = (values - values.min(axis=0)) / np.ptp(values, axis=0)
    below = (1 - scaled.sum(axis=1)) / np.sqrt(2)
    assert below.argmax() == 2
    assert np.allclose(knee_distances(values), 0.5 - below / np.sqrt(2))
    assert chosen(Rule.parse("knee"), values[:1]) == 0
    # A second cost that goes with the first changes nothing: both together weigh as much as KL.
    assert chosen(Rule.parse("knee"), values[:, [0, 1, 1]]) == 2
    # Of equals the lower KL.
    assert chosen(Rule.parse("cheapest=0.5"), [[0.31, 0.7], [0.30, 0.7]]) == 1


def test_the_first_cost_is_that_of_cheapest():
    values = [[0.30, 0.8, 0.2], [0.30, 0.7, 0.9]]
    assert chosen(Rule.parse("cheapest=0.05"), values) == 1


@pytest.mark.parametrize(
    "text", ["best", "knee=0.1", "cheapest", "cheapest=", "cheapest=-1", "cheapest=a", "lowest_kl=1"]
)
def test_other_rules_are_refused(text):
    with pytest.raises(SettingError, match="must be lowest_kl, knee or cheapest=SHARE"):
        Rule.parse(text)
