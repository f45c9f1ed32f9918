"""Sliders say an architecture, and the panel what the predictor predicts of it."""

import pytest

from predictor import AccuracyPredictor
from search.folder import RunFolder
from search.sliders import Sliders, open_sliders
from space import Architecture, SettingError


@pytest.fixture
def run(finished_folder):
    return RunFolder(finished_folder)


def test_they_begin_with_the_winner_and_follow_each_move(run):
    panel = open_sliders(run)
    winner = Architecture.from_dict(run.best()["architecture"])
    assert panel.architecture == winner
    assert "within" in panel.told.value
    predictor = AccuracyPredictor.load(run.predictor)
    layer = next(i for i, each in enumerate(winner.layers) if each.mlp_width)
    slider = panel.sliders[2 * layer + 1]
    slider.value = slider.options[0][1]
    assert panel.architecture == winner.replace(layer, mlp_width=slider.value.width)
    assert f"{predictor.predict([panel.architecture]).value[0]:.4f}" in panel.told.value
    assert f"{predictor.predict([winner]).value[0]:.4f}" not in panel.told.value
    panel.reset()
    assert panel.architecture == winner


def test_what_is_over_the_budget_is_told(run):
    panel = open_sliders(run)
    for slider in panel.sliders:
        slider.value = slider.options[-1][1]
    assert panel.architecture == Architecture.dense(run.layout())
    assert "<b>over</b>" in panel.told.value


def test_every_sub_block_has_one(run):
    panel = open_sliders(run)
    assert len(panel.sliders) == 2 * run.layout().layers
    shown = [
        child for row in panel.panel.children[1:3] for column in row.children[1].children for child in column.children
    ]
    assert all(slider in shown for slider in panel.sliders)


def test_without_ipywidgets_it_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ipywidgets", None)
    space = run.config().search_space(run.layout())
    with pytest.raises(SettingError, match=r"secateur\[notebooks\]"):
        Sliders(AccuracyPredictor.load(run.predictor), space, Architecture.dense(run.layout()))
