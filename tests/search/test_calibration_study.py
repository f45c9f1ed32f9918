"""Sources against settings over repeated draws: what is compared, kept, refused and told."""

from dataclasses import replace

import numpy as np
import pytest

from evaluator import Calibration, Filters, Writing, open_model
from evaluator.sources import tokenise
from search.calibration_setting import Setting
from search.calibration_study import Study, described, run_study, summary, winners
from search.progress import Reporter
from space import BudgetError, SettingError
from tests.evaluator.test_texts import sentences

OWN = Calibration((("self", 1.0),), Writing(16))
TWO = (Setting.parse("wanda:0.5"), Setting.parse("sparsegpt:2:4"))


@pytest.fixture
def study(pico, tmp_path):
    (tmp_path / "a.txt").write_text(sentences(60))
    (tmp_path / "other.txt").write_text(sentences(40, first=500))
    stream = tokenise(pico, str(tmp_path / "other.txt"))
    texts = {"one": stream[:64].view(4, 16), "two": stream[64:128].view(4, 16)}
    sources = {"a": Calibration(((str(tmp_path / "a.txt"), 1.0),)), "self": OWN}
    return Study(sources, TWO, texts, 4, 16)


def test_every_draw_of_every_source_is_measured_under_every_setting(pico, study, tmp_path):
    rows = run_study(pico, study, range(2), tmp_path / "study")
    assert [(row["source"], row["setting"], row["draw"]) for row in rows] == [
        (source, setting, draw)
        for source in ("a", "self")
        for setting in ("wanda:0.5", "sparsegpt:2:4")
        for draw in (0, 1)
    ]
    assert len({row["calibration"] for row in rows}) == 4  # one for each draw, whatever the setting
    assert len({row["perplexity"]["one"] for row in rows}) == 8
    assert all(row["kl"]["two"] > 0 for row in rows)
    told = described(study, range(2))
    assert told["sources"]["a"]["sources"] == [["a.txt", 1.0]]
    assert told["draws"] == [0, 1]


def test_a_study_that_was_stopped_measures_what_is_missing(pico, study, tmp_path):
    folder = tmp_path / "study"
    seen = []

    def also(judge, architecture, draw):
        if len(seen) == 5:
            raise KeyboardInterrupt
        seen.append((draw, str(judge.criterion)))
        return {"accuracy": 0.5 + 0.1 * draw}

    with pytest.raises(KeyboardInterrupt):
        run_study(pico, study, range(2), folder, also=also)
    seen.clear()
    rows = run_study(pico, study, range(2), folder, also=also)
    assert len(seen) == 3
    assert [row["accuracy"] for row in rows] == [0.5, 0.6] * 4
    again = run_study(pico, study, range(2), folder, also=lambda *_: pytest.fail("all is there"))
    assert again == rows
    undisturbed = run_study(pico, study, range(2), tmp_path / "other", also=lambda *_: {})
    assert [row["perplexity"] for row in undisturbed] == [row["perplexity"] for row in rows]


def test_what_changes_a_row_makes_it_another(pico, study, tmp_path):
    folder = tmp_path / "study"
    run_study(pico, study, [0], folder)
    (tmp_path / "a.txt").write_text(sentences(60, first=900))
    filtered = {**study.sources, "self": replace(OWN, filters=Filters(perplexity=0.2))}
    changed = replace(study, sources=filtered, settings=TWO[:1])
    measured = []
    run_study(pico, changed, [0], folder, also=lambda *_: measured.append(1) or {})
    assert len(measured) == 2  # other text in the file, and another filter


def test_settings_prune_as_they_say(stories, tmp_path):
    dense = open_model(str(stories), dtype="float32")
    (tmp_path / "other.txt").write_text("Tom had a ball. " * 40)
    texts = {"one": tokenise(dense, str(tmp_path / "other.txt"))[:128].view(2, 64)}
    names = ("wanda:0.6", "owl-wanda:0.6", "wanda:2:4", "wanda:parameters=0.8", "magnitude:0.3")
    settings = [Setting.parse(name) for name in names]
    found = {}

    def also(judge, architecture, draw):
        found[str(setting_of[len(found)])] = (str(judge.criterion), architecture)
        return {}

    setting_of = dict(enumerate(settings))
    run_study(dense, Study({"self": OWN}, settings, texts, 4, 64), [0], tmp_path / "study", also=also)
    assert {name: criterion.split("weights ")[1] for name, (criterion, _) in found.items()} == {
        "wanda:0.6": "wanda",
        "owl-wanda:0.6": "wanda",
        "wanda:2:4": "wanda 2:4",
        "wanda:parameters=0.8": "wanda",
        "magnitude:0.3": "magnitude",
    }
    zeros = {name: {layer.mlp_sparsity for layer in architecture.layers} for name, (_, architecture) in found.items()}
    assert zeros["wanda:0.6"] == {0.6}
    assert zeros["wanda:2:4"] == {0.5}
    assert zeros["magnitude:0.3"] == {0.3}
    assert len(zeros["owl-wanda:0.6"]) > 1
    assert zeros["wanda:parameters=0.8"] == {0.0}
    assert {layer.mlp_width for layer in found["wanda:parameters=0.8"][1].layers} != {dense.layout.mlp_width}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wanda", "must be CRITERION:LEVEL, but is 'wanda'"),
        ("wanda:", "must be CRITERION:LEVEL"),
        ("wanda:much", "must be a share of zeros, N:M or a budget, but is 'much'"),
        ("wanda:1.5", "must be a share of zeros"),
        ("oracle:0.5", "must be one of .*wanda.*, but is 'oracle'"),
        ("sparsegpt:parameters=0.8", "must be one of .*flap.*, but is 'sparsegpt'"),
        ("taylor:parameters=0.8", "must be one of .*, but is 'taylor'"),
        ("owl-wanda:2:4", "OWL allots shares of zeros"),
    ],
)
def test_settings_that_cannot_be_are_refused(text, message):
    with pytest.raises(SettingError, match=message):
        Setting.parse(text)


def test_a_budget_that_cannot_be_met_is_refused_before_anything_is_drawn(pico, study, tmp_path, monkeypatch):
    monkeypatch.setattr("search.calibration_study.gather_set", lambda *_, **__: pytest.fail("drawn"))
    hopeless = replace(study, settings=[Setting.parse("wanda:parameters=0.01")])
    with pytest.raises(BudgetError):
        run_study(pico, hopeless, [0], tmp_path / "study")


def test_text_that_a_source_holds_is_refused(pico, study, tmp_path):
    (tmp_path / "copy.txt").write_text((tmp_path / "other.txt").read_text())
    copied = replace(study, sources={"copy": Calibration(((str(tmp_path / "copy.txt"), 1.0),))})
    stream = study.texts["one"]
    with pytest.raises(SettingError, match="copy has passages of one"):
        run_study(pico, replace(copied, texts={"one": stream}, sequences=30), [0], tmp_path / "study")
    for name in ("a:b", "calibrate"):
        with pytest.raises(SettingError, match="no colon and be none of"):
            replace(study, texts={name: stream})


def test_progress_is_told_by_draw(pico, study, tmp_path, capsys):
    run_study(pico, study, [0], tmp_path / "study", Reporter())
    told = capsys.readouterr().err
    assert "a, draw 0: 2 measurements" in told
    assert "Writing text: 64 tokens" in told


def test_summary_means_and_winners():
    def row(source, draw, one, two, accuracy):
        measured = {"perplexity": {"one": one, "two": two}, "accuracy": accuracy}
        return {"setting": "wanda:0.6", "source": source, "draw": draw, **measured}

    rows = [row("a", 0, 10, 40, 0.4), row("a", 1, 20, 20, 0.5), row("b", 0, 10, 30, 0.3)]
    told = summary(rows)["wanda:0.6"]
    assert told["a"]["draws"] == 2
    assert told["a"]["perplexity"]["one"] == pytest.approx(np.sqrt(200), abs=1e-3)
    assert told["a"]["perplexity"]["all"] == pytest.approx(20, abs=1e-3)
    assert told["a"]["perplexity_deviation"]["all"] == pytest.approx(0, abs=1e-4)
    assert told["a"]["perplexity_deviation"]["one"] == pytest.approx(np.log(2) / np.sqrt(2), abs=1e-4)
    assert told["a"]["accuracy"] == 0.45
    assert told["b"]["accuracy_deviation"] is None
    assert winners(summary(rows)) == {"wanda:0.6": "b"}
