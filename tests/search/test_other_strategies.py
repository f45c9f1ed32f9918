"""Whole runs by other strategies, with a predictor where enough was measured, and without."""

import json

import pytest

from predictor import AccuracyPredictor
from search.config import load_config
from search.folder import RunFolder
from search.run import run_search
from search.session import rewrite_report

pytestmark = pytest.mark.usefixtures("checked_here")


def run_by(small_config, folder, **settings):
    overrides = {key.replace("__", "."): value for key, value in settings.items()}
    return run_search(load_config(small_config, overrides), folder)


def test_a_run_by_another_strategy_ends_like_any_other(small_config, tmp_path):
    best = run_by(small_config, tmp_path / "run", search__strategy="evolution", search__tokens=30_000)
    assert best["cost"]["parameters"] <= 0.7 * best["dense_cost"]["parameters"]
    assert best["rounds"] == []
    assert (tmp_path / "run" / "export" / "config.json").exists()
    assert AccuracyPredictor.load(tmp_path / "run" / "predictor").quality.pairs >= 20


def test_what_is_too_little_for_a_predictor_still_makes_a_run(small_config, tmp_path, capsys):
    settings = {"search__strategy": "random", "space__whole_blocks": True, "budget": ["parameters=0.6"]}
    best = run_by(small_config, tmp_path / "run", **settings)
    assert (best["quality"], best["predicted"], best["learned"]) == ({}, None, {})
    assert not (tmp_path / "run" / "predictor").exists()
    layers = best["architecture"]["layers"]
    assert {layer["kv_groups"] > 0 for layer in layers} == {True, False}
    assert all((layer["kv_groups"] == 0) == (layer["mlp_width"] == 0) for layer in layers)
    page = rewrite_report(RunFolder(tmp_path / "run")).read_text()
    assert "Would more pairs pay?" not in page
    assert json.loads((tmp_path / "run" / "best.json").read_text())["architecture"] == best["architecture"]
