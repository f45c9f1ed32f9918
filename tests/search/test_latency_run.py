"""A budget on latency: sub-blocks are timed once, the search keeps to the table, and the winner is timed for real."""

import json
import subprocess
import sys

import pytest
import torch

from search.another_budget import answer, config_of, known_latency
from search.config import load_config
from search.folder import RunFolder
from search.latency import timed_model
from search.progress import Reporter
from search.run import run_search
from search.session import open_dense
from space import Architecture, BudgetError, LatencyTable, RunFolderError
from tests.checking import checking_here
from tests.search.command import ROOT, call, refusal
from tests.space.test_latency import CHECK
from tests.space.timings import made_up

QUICK = {
    "budget": "latency=0.9",
    "latency.sequence_length": 256,  # of so small a model less would be Python alone
    "latency.repeats": 1,
    "text.search": 2,
    "search.strategy": "random",
    "search.tokens": 3000,
    "search.finalists": 2,
}


@pytest.fixture(scope="module")
def timed_folder(small_config, tmp_path_factory):
    """One real run with a budget on latency, timings and all; not to be changed."""
    folder = tmp_path_factory.mktemp("timed") / "run"
    with checking_here():
        run_search(load_config(small_config, QUICK), folder)
    return RunFolder(folder)


@pytest.fixture
def old_run(finished_run):
    """A finished run under another budget, whose sub-blocks were timed since."""
    old = RunFolder(finished_run)
    old.keep_latency(made_up(old.layout(), check=CHECK))
    return old


def test_the_winner_is_within_the_budget_by_the_table(timed_folder):
    best, table = timed_folder.best(), timed_folder.latency()
    winner = Architecture.from_dict(best["architecture"])
    assert best["cost"]["latency"] == table.of(winner) <= 0.9 * table.dense
    assert best["dense_cost"]["latency"] == table.dense
    for name, model in best["baselines"].items():
        assert model["cost"]["latency"] == table.of(Architecture.from_dict(model["architecture"]))
        assert name == "dense" or model["cost"]["latency"] <= 0.9 * table.dense
    assert {"uniform", "block_influence", "best_random"} <= set(best["baselines"])
    assert (table.conditions.sequence_length, table.conditions.torch) == (256, torch.__version__)
    assert len(table.check.models) == 9


def test_the_winner_and_the_dense_model_were_timed_for_real(timed_folder):
    told, table = timed_folder.best()["latency"], timed_folder.latency()
    assert told["dense"]["table_ms"] == pytest.approx(table.dense / 1e6, abs=1e-3)
    for name in ("winner", "dense"):
        record = told[name]
        assert record["measured_ms"] > 0 <= record["standard_error_ms"]
        assert record["table_error"] == pytest.approx(record["table_ms"] / record["measured_ms"] - 1, abs=2e-4)
    assert len(told["check"]["models"]) == len(table.check.models)
    page = timed_folder.report_file.read_text()
    for text in ("Latency is of a prefill of 1 x 256 tokens", "Lat", "% of the dense model&#x27;s latency"):
        assert text in page


def test_a_run_that_goes_on_keeps_its_table(old_run, monkeypatch, capsys):
    config = load_config(old_run.config_file, {"budget": "latency=0.9"})
    monkeypatch.setattr("search.latency.measure_latency", None)  # would fail if it were called
    assert timed_model(config, old_run, open_dense(config), Reporter()) == old_run.latency()
    told = " ".join(capsys.readouterr().err.split())
    assert "The sub-blocks were timed with processor A Processor (here " in told
    assert told.endswith("; the budget goes by those timings")


def test_another_budget_is_answered_by_the_same_table_without_a_model(old_run):
    code = (
        "import json, sys; from pathlib import Path; "
        "from search.another_budget import answer, config_of, known_latency; "
        "from search.folder import RunFolder; old = RunFolder(Path(sys.argv[1])); "
        "config = config_of(old, {'budget': ['latency=0.7']}); "
        "told = answer(old, config, known_latency(old, RunFolder(Path('nowhere')), config)); "
        "assert not {'torch', 'transformers', 'evaluator'} & set(sys.modules); print(json.dumps(told))"
    )
    there = subprocess.run(
        [sys.executable, "-c", code, str(old_run.path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    told, table = json.loads(there.stdout), old_run.latency()
    assert told["cost"]["latency"] == table.of(Architecture.from_dict(told["architecture"])) <= 0.7 * table.dense


def test_an_old_run_without_a_table_is_timed_before_it_answers(finished_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("search.commands.searching._run", lambda *_: None)  # searching has its own tests
    settings = [f"latency.{name}" for name in ("sequence_length=256", "repeats=1")]
    asked = ("run", "--resume", finished_run, "--budget", "latency=0.9", "--out", tmp_path / "new")
    assert call(*asked, "--set", settings[0], "--set", settings[1]) == 0
    assert "Nothing measured yet; for latency=0.9 the predictor promises" in capsys.readouterr().out
    table = RunFolder(tmp_path / "new").latency()
    told = json.loads((tmp_path / "new" / "answer.json").read_text())
    assert told["cost"]["latency"] == table.of(Architecture.from_dict(told["architecture"])) <= 0.9 * table.dense
    assert RunFolder(finished_run).latency() is None


def test_a_table_of_other_conditions_is_not_taken_over(old_run, tmp_path):
    new = RunFolder(tmp_path / "new")
    same = config_of(old_run, {"budget": ["latency=0.7"]})
    assert known_latency(old_run, new, same) == old_run.latency()
    other = config_of(old_run, {"budget": ["latency=0.7"], "latency.phase": "decode"})
    assert known_latency(old_run, new, other) is None


def test_an_old_run_without_a_table_cannot_answer(finished_run, capsys):
    assert call("run", "--resume", finished_run, "--budget", "latency=0.7", "--predict-only") == 2
    assert "must have a table of timings" in refusal(capsys.readouterr().err)
    old = RunFolder(finished_run)
    with pytest.raises(BudgetError, match="secateur latency RUN"):
        answer(old, config_of(old, {"budget": ["latency=0.7"]}))


def test_a_run_that_is_refused_leaves_no_folder(small_config, tmp_path, monkeypatch):
    monkeypatch.setattr("search.latency.measure_latency", lambda bench, *_: made_up(bench.dense.layout, check=CHECK))
    with pytest.raises(BudgetError, match=r"latency .* and latency=0\.01 allows"):
        run_search(load_config(small_config, {**QUICK, "budget": "latency=0.01"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_tells_table_and_clock(finished_run, capsys):
    settings = RunFolder(finished_run).config_file
    short = "sequence_length: 32\n  repeats: 1"
    settings.write_text(settings.read_text().replace("sequence_length: 512\n  repeats: 5", short))
    assert call("latency", finished_run, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in told["results"]] == ["dense", "winner"]
    table = LatencyTable.from_dict(told["table"])
    assert table == RunFolder(finished_run).latency()
    assert table.conditions.sequence_length == 32
    assert told["results"][0]["table_ms"] == pytest.approx(table.dense / 1e6, abs=1e-3)


def test_a_damaged_table_is_refused(old_run):
    old_run.latency_file.write_text('{"fixed": 3}')
    with pytest.raises(RunFolderError, match=r"latency\.json of a run folder must be intact.*delete it to time"):
        old_run.latency()
