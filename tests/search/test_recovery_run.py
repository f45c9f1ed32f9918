"""A search that aims at the recovered model: its pairs, its choice, and what is told of them."""

import json

import pytest

from evaluator import PairStore
from search.config import load_config
from search.folder import RunFolder
from search.run import run_search
from search.session import refit
from space import SettingError
from tests.checking import checking_here
from tests.search.command import call, refusal

RECOVERY = {
    "search.prior_sequences": 1,
    "search.slopes": None,
    "search.rounds": 1,
    "recovery.steps": 2,
    "recovery.step_tokens": 128,
    "recovery.rank": 2,
}


@pytest.fixture(scope="module")
def folder(small_config, tmp_path_factory):
    path = tmp_path_factory.mktemp("recovery") / "run"
    with checking_here():
        run_search(load_config(small_config, RECOVERY), path)
    return RunFolder(path)


def test_pairs_are_of_recovered_models_and_the_report_of_the_exported_one(folder):
    store = PairStore(folder.measurements_file)
    recovered = {protocol.split: protocol.recovery for protocol in store.protocols().values()}
    store.close()
    told = "2 steps of 128 tokens, rank 2, rate 0.002, seed 0"
    assert recovered == {"search": told, "validate": told, "search:1": "none", "report": "none"}
    best = json.loads(folder.best_file.read_text())
    assert best["quality"]["pairs"] > 20
    assert best["recovery"] == told
    page = folder.report_file.read_text()
    assert told in page
    assert "secateur recover" in page


def test_the_predictor_is_of_recovered_models(folder):
    before = folder.best()["quality"]
    assert refit(folder)["quality"]["pairs"] == before["pairs"]


def test_slopes_are_refused_beside_a_recovery(small_config, tmp_path, capsys):
    with pytest.raises(SettingError, match=r"leave search\.slopes out"):
        load_config(small_config, {**RECOVERY, "search.slopes": True})
    own = ["--set", "recovery.steps=2", "--set", "search.slopes=true"]
    assert call("run", "--config", small_config, *own, "--out", tmp_path / "run") == 2
    assert "leave search.slopes out" in refusal(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
