"""What a run calibrates on: its own text, others by weight, or a set that is made; never what it measures on."""

import json

import pytest
import torch

from evaluator import Calibration, Filters, gather_set, open_model
from evaluator.calibration_set import fingerprint
from search.config import load_config
from search.folder import RunFolder
from search.progress import Reporter
from search.run import run_search
from search.session import open_dense
from search.settings import CalibrationConfig
from search.texts import calibration_of, texts_of
from space import SettingError, TextError

QUICK = {"search.strategy": "random", "search.tokens": 1}


def read(small_config, tmp_path, name="run", **changes):
    """Return the texts of a run with other settings."""
    config = load_config(small_config, changes)
    files = RunFolder(tmp_path / name)
    files.prepare(config)
    return texts_of(config, files, open_dense(config), Reporter(quiet=True))


def test_a_run_tells_what_it_calibrated_on(small_config, tmp_path, checked_here):
    changes = {"calibration.sources": ["self=1", "self.txt=3"], "calibration.drop_perplexity": 0.25}
    text = tmp_path / "self.txt"
    text.write_text(" ".join(f"The {colour} dog {verb} home." for colour in COLOURS for verb in VERBS))
    changes["calibration.sources"][1] = f"{text}=3"
    best = run_search(load_config(small_config, {**QUICK, **changes}), tmp_path / "run")
    told = best["calibration"]
    assert [(part["source"], part["sequences"]) for part in told["parts"]] == [("self", 2), ("self.txt", 6)]
    assert told["recipe"]["filters"]["perplexity"] == 0.25
    assert best["texts"]["calibrate"].startswith("self-generated and self.txt, 512 tokens")
    assert best["texts"]["search"].startswith("tinystories.txt")
    assert best["protocols"]["search"]["calibration"] == told["hash"]
    again = RunFolder(tmp_path / "run").texts()
    assert again.calibration == told == json.loads((tmp_path / "run" / "best.json").read_text())["calibration"]


COLOURS = ("red", "blue", "green", "old", "big", "small", "happy", "sad", "wet", "dry", "kind", "shy", "loud", "calm")
VERBS = ("ran", "walked", "went", "came", "swam", "flew", "hopped", "danced", "rode", "drove", "crept", "limped")


def test_settings_say_the_recipe():
    assert calibration_of(CalibrationConfig()) == Calibration()
    settings = CalibrationConfig(
        sources="c4=2", temperatures=0.8, document=64, prefix="bos", top_k=50, near_duplicates=0.8, language="en"
    )
    recipe = calibration_of(settings)
    assert recipe.sources == (("c4", 2.0),)
    assert (recipe.writing.temperatures, recipe.writing.document, recipe.writing.prefix) == ((0.8,), 64, "bos")
    assert recipe.filters == Filters(near=0.8, language="en")


def test_filters_of_the_runs_own_text_draw_more_of_its_region(small_config, tmp_path):
    plain = read(small_config, tmp_path, "a")
    filtered = read(small_config, tmp_path, "b", **{"calibration.drop_perplexity": 0.5})
    assert plain.tokens["calibrate"].shape == filtered.tokens["calibrate"].shape
    assert filtered.calibration["parts"][0]["candidates"] == 16
    assert filtered.calibration["parts"][0]["dropped"]["perplexity"] == 8
    everything = [tuple(row) for tokens in filtered.tokens.values() for row in tokens.tolist()]
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize("use", ["report", "search"])
def test_what_is_measured_on_is_not_calibrated_on(small_config, tmp_path, data, use):
    copied = tmp_path / "x" / ".." / "text.txt"
    (tmp_path / "x").mkdir()
    (tmp_path / "text.txt").write_text((data / "text" / "tinystories.txt").read_text())
    setting = {"report": "text.report", "search": "text.source"}[use]
    changes = {setting: str(tmp_path / "text.txt"), "calibration.sources": [str(copied)]}
    with pytest.raises(SettingError, match=rf"must calibrate on other text than it {use}"):
        read(small_config, tmp_path, **changes)


def test_a_set_that_is_made_is_taken_as_it_is(small_config, tmp_path, stories, data):
    dense = open_model(str(stories), dtype="float32")
    recipe = Calibration((("self", 1.0),), filters=Filters(perplexity=0.2))
    made = gather_set(dense, recipe, 5, 48, 0, tmp_path / "cache")
    made.save(tmp_path / "set.safetensors")
    texts = read(small_config, tmp_path, **{"calibration.set": str(tmp_path / "set.safetensors")})
    assert torch.equal(texts.tokens["calibrate"], made.tokens)
    assert texts.calibration == json.loads(json.dumps(made.record))
    assert texts.sources["calibrate"] == "self"
    plain = read(small_config, tmp_path, "plain")
    for split in ("search", "validate", "report"):
        assert texts.tokens[split].shape == plain.tokens[split].shape


def test_a_set_that_holds_what_is_measured_on_is_refused(small_config, tmp_path, stories, data):
    dense = open_model(str(stories), dtype="float32")
    source = str(data / "text" / "tinystories.txt")
    changes = {"calibration.set": str(tmp_path / "set.safetensors")}
    gather_set(dense, Calibration((("self", 1.0),)), 2, 64, 0, tmp_path).save(tmp_path / "set.safetensors")
    report = read(small_config, tmp_path, "good", **changes).tokens["report"]
    made = gather_set(dense, Calibration(((source, 1.0),)), 2, 64, 0, tmp_path, pools={source: report})
    made.save(tmp_path / "set.safetensors")
    with pytest.raises(SettingError, match="must hold nothing that is measured on, but it has passages of the report"):
        read(small_config, tmp_path, "bad", **changes)


def test_a_set_of_another_models_tokens_is_refused(small_config, tmp_path, stories):
    dense = open_model(str(stories), dtype="float32")
    made = gather_set(dense, Calibration((("self", 1.0),)), 2, 64, 0, tmp_path)
    foreign = type(made)(made.tokens + dense.layout.vocabulary, made.record)
    foreign.save(tmp_path / "set.safetensors")
    with pytest.raises(TextError, match="was changed"):
        read(small_config, tmp_path, "a", **{"calibration.set": str(tmp_path / "set.safetensors")})
    honest = type(made)(foreign.tokens, {**made.record, "hash": fingerprint(foreign.tokens)})
    honest.save(tmp_path / "set.safetensors")
    with pytest.raises(SettingError, match="must be of the model's own tokens"):
        read(small_config, tmp_path, "b", **{"calibration.set": str(tmp_path / "set.safetensors")})


def test_sources_beside_a_set_are_refused(small_config):
    with pytest.raises(SettingError, match="leave sources out"):
        load_config(small_config, {"calibration.set": "a.safetensors", "calibration.sources": ["self"]})
