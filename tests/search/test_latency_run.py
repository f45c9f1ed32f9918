"""A budget on latency: sub-blocks are timed once, the search keeps to the table, and the winner is timed for real."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml

from search.another_budget import answer, config_of, known_latency
from search.config import load_config
from search.folder import RunFolder
from search.run import run_search
from space import Architecture, BudgetError, LatencyTable, RunFolderError
from tests.conftest import SMALL_RUN
from tests.search.command import ROOT, call, refusal
from tests.space.test_latency import CHECK
from tests.space.timings import made_up

TIMED = {
    "budget": ["latency=0.8"],
    "latency": {"sequence_length": 32, "repeats": 1},
    "search": {**SMALL_RUN["search"], "profile_pairs": 4, "guided_pairs": 6, "rounds": 1, "generations": 4},
}


@pytest.fixture(scope="module")
def timed_config(small_config, tmp_path_factory):
    file = tmp_path_factory.mktemp("config") / "timed.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(small_config.read_text()), **TIMED}))
    return file


@pytest.fixture(scope="module")
def timed_folder(timed_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("timed") / "run"
    run_search(load_config(timed_config, {}), folder)
    return RunFolder(folder)


@pytest.fixture
def timed_run(timed_folder, tmp_path):
    return RunFolder(shutil.copytree(timed_folder.path, tmp_path / "timed"))


def test_the_winner_is_within_the_budget_by_the_table(timed_folder):
    best, table = timed_folder.best(), timed_folder.latency()
    winner = Architecture.from_dict(best["architecture"])
    assert best["cost"]["latency"] == table.of(winner) <= 0.8 * table.dense
    assert best["dense_cost"]["latency"] == table.dense
    for name, model in best["baselines"].items():
        assert model["cost"]["latency"] == table.of(Architecture.from_dict(model["architecture"]))
        assert name == "dense" or model["cost"]["latency"] <= 0.8 * table.dense
    assert {"uniform", "block_influence", "best_random"} <= set(best["baselines"])
    assert table.conditions.sequence_length == 32


def test_the_winner_and_the_dense_model_were_timed_for_real(timed_folder):
    told, table = timed_folder.best()["latency"], timed_folder.latency()
    assert told["dense"]["table_ms"] == pytest.approx(table.dense / 1e6, abs=1e-3)
    for name in ("winner", "dense"):
        record = told[name]
        assert record["measured_ms"] > 0 <= record["standard_error_ms"]
        assert record["table_error"] == pytest.approx(record["table_ms"] / record["measured_ms"] - 1, abs=2e-4)
    assert len(told["check"]["models"]) == len(table.check.models) == 9
    page = timed_folder.report_file.read_text()
    for text in ("Latency is of a prefill of 1 x 32 tokens", "Lat", "% of the dense model&#x27;s latency"):
        assert text in page


def test_a_stopped_run_goes_on_with_its_table(timed_run, monkeypatch):
    table, best = timed_run.latency_file.read_bytes(), timed_run.best()
    timed_run.best_file.unlink()
    monkeypatch.setattr("search.latency.measure_latency", None)  # would fail if it were called
    again = run_search(timed_run.config(), timed_run.path)
    assert timed_run.latency_file.read_bytes() == table
    assert again["architecture"] == best["architecture"]


def test_another_budget_is_answered_by_the_same_table_without_a_model(timed_run):
    code = (
        "import json, sys; from pathlib import Path; "
        "from search.another_budget import answer, config_of, known_latency; "
        "from search.folder import RunFolder; old = RunFolder(Path(sys.argv[1])); "
        "config = config_of(old, {'budget': ['latency=0.7']}); "
        "told = answer(old, config, known_latency(old, RunFolder(Path('nowhere')), config)); "
        "assert not {'torch', 'transformers', 'evaluator'} & set(sys.modules); print(json.dumps(told))"
    )
    there = subprocess.run(
        [sys.executable, "-c", code, str(timed_run.path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    told, table = json.loads(there.stdout), timed_run.latency()
    assert told["cost"]["latency"] == table.of(Architecture.from_dict(told["architecture"])) <= 0.7 * table.dense


def test_a_table_of_other_conditions_is_not_taken_over(timed_run, tmp_path):
    new = RunFolder(tmp_path / "new")
    same = config_of(timed_run, {"budget": ["latency=0.7"]})
    assert known_latency(timed_run, new, same) == timed_run.latency()
    other = config_of(timed_run, {"budget": ["latency=0.7"], "latency.phase": "decode"})
    assert known_latency(timed_run, new, other) is None


def test_an_old_run_without_a_table_cannot_answer(finished_run, capsys):
    assert call("run", "--resume", finished_run, "--budget", "latency=0.7", "--predict-only") == 2
    assert "must have a table of timings" in refusal(capsys.readouterr().err)
    old = RunFolder(finished_run)
    with pytest.raises(BudgetError, match="secateur latency RUN"):
        answer(old, config_of(old, {"budget": ["latency=0.7"]}))


def test_a_run_that_is_refused_leaves_no_folder(timed_config, tmp_path, monkeypatch):
    monkeypatch.setattr("search.latency.measure_latency", lambda bench, *_: made_up(bench.dense.layout, check=CHECK))
    with pytest.raises(BudgetError, match=r"latency .* and latency=0\.01 allows"):
        run_search(load_config(timed_config, {"budget": ["latency=0.01"]}), tmp_path / "run")
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


def test_a_damaged_table_is_refused(timed_run, capsys):
    timed_run.latency_file.write_text('{"fixed": 3}')
    with pytest.raises(RunFolderError, match=r"latency\.json of a run folder must be intact.*delete it to time"):
        timed_run.latency()
