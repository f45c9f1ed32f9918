"""A new budget on an old run: answered at once without a model, and searched without measuring anything twice."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from search.another_budget import answer, begin_from, config_of
from search.folder import RunFolder
from search.run import run_search
from space import Architecture, Budget, SettingError, cost_of
from tests.search.command import ROOT

NEW = {"budget": ["parameters=0.6"]}


def test_the_answer_is_on_the_budget_and_needs_no_model(finished_run):
    code = (
        "import json, sys; from pathlib import Path; from search.another_budget import answer, config_of; "
        "from search.folder import RunFolder; old = RunFolder(Path(sys.argv[1])); "
        "told = answer(old, config_of(old, {'budget': ['parameters=0.6']})); "
        "assert not {'torch', 'transformers', 'evaluator'} & set(sys.modules); print(json.dumps(told))"
    )
    there = subprocess.run(
        [sys.executable, "-c", code, str(finished_run)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    told = json.loads(there.stdout)
    old = RunFolder(finished_run)
    assert told == answer(old, config_of(old, NEW))
    layout, architecture = old.layout(), Architecture.from_dict(told["architecture"])
    dense = cost_of(layout, Architecture.dense(layout))
    assert cost_of(layout, architecture).parameters <= Budget("parameters", 0.6).limit(dense)
    assert told["cost"] == cost_of(layout, architecture).to_dict()
    kl = told["predicted"]["kl"]
    assert kl["lower"] < kl["value"] < kl["upper"]
    assert kl["value"] > old.best()["measured"]["search"]["kl"]  # less is kept


@pytest.mark.usefixtures("checked_here")
def test_the_run_that_follows_measures_nothing_twice(finished_run, tmp_path):
    old, new = RunFolder(finished_run), RunFolder(tmp_path / "new")
    config = config_of(old, {**NEW, "search.rounds": 1})
    told = answer(old, config)
    begin_from(old, new, config, told)
    assert json.loads((new.path / "answer.json").read_text()) == told
    before = rows(old)
    best = run_search(config, new.path)
    after = rows(new)
    assert after[: len(before)] == [(*row[:2], "prior" if row[2] == "prior" else "earlier") for row in before]
    assert "prior" not in {origin for *_, origin in after[len(before) :]}
    layout = new.layout()
    dense = cost_of(layout, Architecture.dense(layout))
    assert cost_of(layout, Architecture.from_dict(best["architecture"])).parameters <= 0.6 * dense.parameters
    begin_from(old, new, config, told)  # a finished run stays as it is
    assert RunFolder(new.path).best()["architecture"] == best["architecture"]


def rows(run):
    with closing(sqlite3.connect(run.measurements_file)) as connection:
        return connection.execute("SELECT fingerprint, protocol, origin FROM pairs ORDER BY id").fetchall()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({}, "must have another budget, but both have parameters=0.7"),
        ({**NEW, "seed": 3}, "must measure as that one did, but has another seed"),
        ({**NEW, "text.search": 2}, "must measure as that one did, but has another text"),
        ({**NEW, "criterion.widths": "flap"}, "must measure as that one did, but has another criterion"),
    ],
)
def test_refusals(finished_run, overrides, message):
    with pytest.raises(SettingError, match=message):
        config_of(RunFolder(finished_run), overrides)


def test_what_a_killed_copy_left_does_not_matter(finished_run, tmp_path):
    old, new = RunFolder(finished_run), RunFolder(tmp_path / "new")
    config = config_of(old, NEW)
    left = tmp_path / ".new.partial"
    left.mkdir()
    (left / "texts.safetensors").write_bytes(b"half")
    begin_from(old, new, config, answer(old, config))
    assert not left.exists()
    assert new.config() == config
    assert rows(new)
