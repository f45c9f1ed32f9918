import json
import re

import numpy as np
import pandas as pd
import pytest

from predictor import AccuracyPredictor
from search.folder import RunFolder
from search.prompt import Prompt
from space import Architecture, genes_of, sample
from tests.search.command import call


@pytest.fixture
def answers(finished_run, monkeypatch, capsys):
    """Return what `secateur predict RUN --ask` prints for lines that a person types, without the greeting."""

    def asked(*lines):
        typed = iter(lines)

        def read(_):
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)
        assert call("predict", finished_run, "--ask") == 0
        return capsys.readouterr().out.splitlines()

    return asked


def value_of(line):
    return float(re.match(r"KL ([\d.]+)", line)[1])


def test_changes_undo_and_reset(answers, finished_run):
    start, hint, changed, more, undone, reset = answers("1.mlp_width=0", "2.mlp_width=0", "undo", "reset")
    assert "help" in hint
    winner = Architecture.from_dict(RunFolder(finished_run).best()["architecture"])
    predictor = AccuracyPredictor.load(finished_run / "predictor")
    told = predictor.predict([winner, winner.replace(1, mlp_width=0)]).value
    assert [value_of(start), value_of(changed)] == pytest.approx(told.tolist(), rel=1e-3)
    assert value_of(undone) == value_of(changed)
    assert value_of(reset) == value_of(start)
    assert value_of(more) != value_of(changed)
    assert "% against the start" in changed


def test_the_rest_of_the_conversation(answers):
    lines = answers("why", "what 1.mlp_width", "show", "3.mlp_width=7", "nonsense", "help", "quit", "never asked")
    text = "\n".join(lines)
    assert "layer 1: attention" in text
    assert "mlp_width 0: " in text
    assert any(line.startswith("{") and "layers" in line for line in lines)
    assert "--set must be" in text or "must be one of the search space's values" in text
    assert "LAYER.GENE=VALUE" in text
    assert "undo, reset" in text
    assert "never" not in text


def test_an_answer_takes_milliseconds(finished_run):
    run = RunFolder(finished_run)
    space = run.config().search_space(run.layout())
    predictor = AccuracyPredictor.load(run.predictor)
    start = Architecture.from_dict(run.best()["architecture"])
    prompt = Prompt([predictor], space, start, lambda before, words: before.replace(1, mlp_width=0))
    assert re.search(r"\[\d+ ms\]$", prompt.answer("1.mlp_width=0"))


def test_pairs_from_a_table_make_a_predictor_of_their_own(finished_run, tmp_path, capsys):
    run = RunFolder(finished_run)
    space = run.config().search_space(run.layout())
    architectures = space.decode(sample(space, 40, np.random.default_rng(0)))
    lost = (1 - genes_of(architectures)[:, :, 2] / run.layout().mlp_width).sum(axis=1)
    table = pd.DataFrame({"architecture": [each.to_json() for each in architectures], "arc": 0.5 - 0.02 * lost})
    table.to_csv(tmp_path / "pairs.csv", index=False)
    ask = ("--pairs", tmp_path / "pairs.csv", "--value", "arc", "--target", "accuracy", "--dense", 0.5)
    before = (finished_run / "predictor" / "predictor.json").read_bytes()
    assert call("fit", finished_run, *ask, "--json") == 0
    assert json.loads(capsys.readouterr().out)["quality"]["pairs"] > 20
    assert (finished_run / "predictor" / "predictor.json").read_bytes() == before
    assert call("predict", finished_run, "--by", finished_run / "predictor-arc", "--json") == 0
    [told] = json.loads(capsys.readouterr().out)["results"]
    assert list(told["predicted"]) == ["arc"]
    assert told["predicted"]["arc"]["value"] < 0.5
    assert call("fit", finished_run, "--pairs", tmp_path / "none.csv") == 2
    assert "CSV or Parquet" in capsys.readouterr().err
    assert call("fit", finished_run, *ask[:4], "--target", "speed") == 2
    assert "must be one of kl" in capsys.readouterr().err
