"""Sliders say an architecture, and the panel what the predictor predicts of it."""

import re
from dataclasses import replace

import pytest

from predictor import AccuracyPredictor
from search.folder import RunFolder
from search.sliders import Sliders, open_sliders
from space import Architecture, ArchitectureError, Budget, SettingError, build_space, cost_of


@pytest.fixture
def run(finished_folder):
    return RunFolder(finished_folder)


@pytest.fixture
def predictor(run):
    return AccuracyPredictor.load(run.predictor)


@pytest.fixture
def wide(run):
    """The layout of another model, for which the run's predictor has no answer."""
    return replace(run.layout(), mlp_width=11008)


@pytest.fixture
def asked(monkeypatch):
    """How many times a predictor was asked."""
    calls = []
    predict = AccuracyPredictor.predict

    def counted(self, *arguments):
        calls.append(arguments)
        return predict(self, *arguments)

    monkeypatch.setattr(AccuracyPredictor, "predict", counted)
    return calls


def test_they_begin_with_the_winner_and_follow_each_move(run, predictor):
    panel = open_sliders(run)
    winner = Architecture.from_dict(run.best()["architecture"])
    assert panel.architecture == winner
    assert "within" in panel.told.value
    layer = next(i for i, each in enumerate(winner.layers) if each.mlp_width)
    slider = panel.sliders[2 * layer + 1]
    slider.value = slider.options[0][1]
    assert panel.architecture == winner.replace(layer, mlp_width=slider.value.width)
    assert f"{predictor.predict([panel.architecture]).value[0]:.4f}" in panel.told.value
    assert f"{predictor.predict([winner]).value[0]:.4f}" not in panel.told.value
    panel.reset()
    assert panel.architecture == winner


@pytest.mark.parametrize("way", [str, lambda path: path, RunFolder])
def test_a_run_is_named_by_its_path_or_its_folder(finished_folder, way):
    panel = open_sliders(way(finished_folder))
    assert panel.architecture == Architecture.from_dict(RunFolder(finished_folder).best()["architecture"])


def test_going_back_or_moving_one_asks_once(run, asked):
    panel = open_sliders(run)
    begun = panel.told.value
    for slider in panel.sliders:
        slider.index = 0
    assert len(asked) > 1
    asked.clear()
    panel.reset()
    assert len(asked) == 1
    assert panel.told.value == begun
    panel.sliders[1].index = 0
    assert len(asked) == 2


def test_what_is_over_the_budget_is_told(run):
    panel = open_sliders(run)
    for slider in panel.sliders:
        slider.value = slider.options[-1][1]
    assert panel.architecture == Architecture.dense(run.layout())
    assert "<b>over</b>" in panel.told.value


def test_each_budget_is_told_by_its_own_metric(run, predictor):
    layout = run.layout()
    dense = Architecture.dense(layout)
    space = build_space(layout, [Budget("kv_cache_bytes_per_token", 0.5), Budget("weight_bytes", 1.0)])
    panel = Sliders(predictor, space, dense.replace(0, mlp_width=0))
    share = cost_of(layout, panel.architecture).weight_bytes / cost_of(layout, dense).weight_bytes
    lines = panel.told.value.split("<br>")[1:]
    assert lines[0].startswith("100.0 % of the dense model's KV cache bytes per token, <b>over</b> the budget")
    assert lines[1].startswith(f"{100 * share:.1f} % of the dense model's weight bytes, within the budget")
    assert len(lines) == 2


def test_without_a_budget_the_parameters_are_told(run, predictor):
    layout = run.layout()
    removed = Architecture.dense(layout).replace(0, kv_groups=0)
    panel = Sliders(predictor, build_space(layout), removed)
    share = cost_of(layout, removed).parameters / cost_of(layout, Architecture.dense(layout)).parameters
    assert f"<br>{100 * share:.1f} % of the dense model's decoder parameters" in panel.told.value
    assert "budget" not in panel.told.value


def test_a_dense_start_whose_kl_is_zero_has_no_percentage(run, predictor):
    dense = Architecture.dense(run.layout())
    panel = Sliders(predictor, build_space(run.layout()), dense)
    assert "+0.0000 against the start" in panel.told.value
    panel.sliders[0].index = 0
    value = predictor.predict([dense.replace(0, kv_groups=0)]).value[0]
    assert f"+{value:.4f} against the start" in panel.told.value


def test_a_prediction_that_fails_is_told(predictor, wide):
    panel = Sliders(predictor, build_space(wide, [Budget("parameters", 0.7)]), Architecture.dense(wide))
    assert "no prediction:</b> Architecture 0 must fit the predictor&#x27;s model" in panel.told.value
    assert "100.0 % of the dense model's decoder parameters, <b>over</b> the budget" in panel.told.value


def test_a_whole_block_moves_together_and_is_judged_by_the_budget_alone(run, predictor, asked):
    layout = run.layout()
    dense = Architecture.dense(layout)
    space = build_space(layout, [Budget("parameters", 1.0)], whole_blocks=True)
    panel = Sliders(predictor, space, dense)
    asked.clear()
    for moved, kept in ((2, 0), (3, 1)):
        panel.sliders[moved].index = kept
        assert panel.sliders[2].index == panel.sliders[3].index == kept
        assert _lines(panel.readouts[2])[0] == str(panel.sliders[2].value.width)
        assert _lines(panel.readouts[3])[0] == str(panel.sliders[3].value.width)
        assert "within" in panel.told.value
    assert len(asked) == 2
    with pytest.raises(ArchitectureError, match="half of layer 1"):
        Sliders(predictor, space, dense.replace(1, mlp_width=0))


def test_every_sub_block_has_one(run):
    panel = open_sliders(run)
    assert len(panel.sliders) == 2 * run.layout().layers
    rows = [row.children[1].children for row in panel.panel.children[1:3]]
    shown = [child for row in rows for column in row for child in column.children]
    assert all(slider in shown for slider in panel.sliders)
    assert all(readout in shown for readout in panel.readouts)
    assert "title='layer 1, attention'" in rows[0][1].children[1].value
    assert "title='layer 2, MLP'" in rows[1][2].children[1].value
    # What only a browser shows: without these it cuts off a handle at the top and what a readout says.
    assert all(slider.layout.margin.startswith("8px") and not slider.readout for slider in panel.sliders)
    # A browser does not draw a box with a tooltip.
    assert not any(box.tooltip for row in rows for box in row)


def test_a_readout_names_width_and_layer_and_follows(run):
    panel = open_sliders(run)
    slider, readout = panel.sliders[3], panel.readouts[3]
    for index in range(len(slider.options)):
        slider.index = index
        assert _lines(readout) == [str(slider.value.width), "L1"]
    panel.reset()
    assert _lines(readout) == [str(slider.value.width), "L1"]


def test_a_readout_names_the_sparsity_where_there_are_some(run, predictor):
    space = build_space(run.layout(), sparsities=(0.0, 0.125, 0.5), width_step=run.layout().mlp_width)
    panel = Sliders(predictor, space, Architecture.dense(run.layout()))
    slider, readout = panel.sliders[1], panel.readouts[1]
    told = []
    for index in range(len(slider.options)):
        slider.index = index
        told.append(_lines(readout))
    width = str(run.layout().mlp_width)
    assert told == [["0", "–", "L0"], [width, "50 %", "L0"], [width, "12.5 %", "L0"], [width, "0 %", "L0"]]


def test_a_wide_readout_has_no_comma(predictor, wide):
    panel = Sliders(predictor, build_space(wide), Architecture.dense(wide))
    assert _lines(panel.readouts[1]) == ["11008", "L0"]


def test_every_percentage_has_a_space(run):
    panel = open_sliders(run)
    assert re.findall(r"\S+ % ", panel.told.value)
    assert not re.search(r"\d%", panel.told.value)


def test_without_ipywidgets_it_says_what_to_install(run, predictor, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ipywidgets", None)
    space = run.config().search_space(run.layout())
    with pytest.raises(SettingError, match=r"secateur\[notebooks\]"):
        Sliders(predictor, space, Architecture.dense(run.layout()))


def _lines(readout):
    """What a person reads under a slider."""
    return [re.sub("<[^>]*>", "", line) for line in readout.value.split("<br>")]
