"""The calibration set as a gene: which mix is chosen, that the run goes by it, what its winner measures under all."""

import json

import numpy as np
import pytest

from evaluator import CalibrationSet, PairStore
from search.calibration_words import calibration_in_words
from search.config import load_config
from search.folder import RunFolder
from search.run import run_search
from search.session import rewrite_report
from space import SettingError
from tests.checking import checking_here


@pytest.fixture(scope="module")
def run(small_config, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("mixes")
    lines = (data / "text" / "c4.jsonl").read_text().splitlines()[:60]
    (folder / "web.jsonl").write_text("\n".join(lines))
    (folder / "noise.txt").write_text(" ".join(np.random.default_rng(0).permutation(list("abcdefghij" * 800))))
    mixes = [str(folder / "noise.txt"), str(load_config(small_config, {}).text.source), f"self+{folder / 'web.jsonl'}"]
    config = load_config(small_config, {"calibration.mixes": mixes, "search.rounds": 1})
    with checking_here():
        best = run_search(config, folder / "run")
    return RunFolder(folder / "run"), best, mixes


def test_the_mix_under_which_allocations_lose_least_is_chosen(run):
    files, best, mixes = run
    told = best["calibration"]
    assert list(told["mixes"]) == mixes
    assert told["chosen"] == min(mixes, key=lambda mix: told["mixes"][mix]["kl"])
    assert told["chosen"] != mixes[0]  # noise
    assert told["mixes"][mixes[0]]["above_best"] > 2 * told["mixes"][mixes[0]]["above_best_standard_error"] > 0
    assert told["mixes"][told["chosen"]]["above_best"] == 0
    store = PairStore(files.measurements_file)
    by_calibration = {}
    for key, protocol in store.protocols().items():
        if protocol.split == "search:2":
            pairs = store.pairs(key, ["mix"])
            by_calibration[protocol.calibration] = np.exp(np.mean([np.log(pair.measurement.kl) for pair in pairs]))
    store.close()
    for mix in mixes:
        assert by_calibration[told["mixes"][mix]["hash"]] == pytest.approx(told["mixes"][mix]["kl"])


def test_the_run_is_calibrated_on_it_and_on_nothing_that_is_measured(run):
    files, best, mixes = run
    number = mixes.index(best["calibration"]["chosen"])
    chosen = CalibrationSet.load(files.mix_file(number))
    texts = files.texts()
    assert texts.tokens["calibrate"].tolist() == chosen.tokens.tolist()
    assert best["protocols"]["search"]["calibration"] == chosen.record["hash"]
    for other in range(len(mixes)):
        rows = {tuple(row) for row in CalibrationSet.load(files.mix_file(other)).tokens.tolist()}
        for split in ("search", "validate", "report"):
            assert not rows & {tuple(row) for row in texts.tokens[split].tolist()}


def test_the_winner_is_measured_under_each(run):
    _, best, mixes = run
    told = best["calibration"]["winner_under"]
    chosen = best["calibration"]["chosen"]
    assert list(told) == mixes
    assert told[chosen]["kl"] == best["measured"]["validate"]["kl"]
    for mix in set(mixes) - {chosen}:
        assert told[mix]["less_chosen"]["kl"] == pytest.approx(told[mix]["kl"] - told[chosen]["kl"])
        assert told[mix]["kl"] != told[chosen]["kl"]


def test_the_report_says_so(run):
    files, best, _ = run
    words = calibration_in_words(best["calibration"])
    assert "chosen, the winner's KL" in words["Calibration mixes"]
    assert words["Calibration mixes"].count("KL +") == 2
    assert "Calibration mixes" in files.report_file.read_text()
    rewrite_report(files)  # of pairs of one protocol, though the store has those of the mixes
    assert calibration_in_words({}) == {}


def test_a_run_that_was_stopped_chooses_again_from_what_it_measured(run):
    files, best, _ = run
    config = files.config()
    files.texts_file.unlink()
    files.best_file.unlink()
    before = json.loads(json.dumps(best["calibration"]))
    with checking_here():
        assert run_search(config, files.path)["calibration"] == before


@pytest.mark.parametrize(
    "settings",
    [
        {"calibration.mixes": ["self"]},
        {"calibration.mixes": ["self", "self"]},
        {"calibration.mixes": ["self", "c4"], "calibration.sources": ["self"]},
        {"calibration.mixes": ["self", "c4"], "calibration.set": "a.safetensors"},
    ],
)
def test_mixes_that_leave_no_choice_are_refused(small_config, settings):
    with pytest.raises(SettingError, match="two or more, different, to choose from"):
        load_config(small_config, settings)
