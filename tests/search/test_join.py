"""A second process does what the first has not begun, and the run ends as if it had been alone."""

import json

import pytest

from evaluator import Evaluator, PairStore
from search.config import load_config
from search.join import join_search
from search.run import run_search
from space import RunFolderError
from tests.search.command import fingerprints
from tests.search.test_run import pairs_of


class StoppedError(Exception):
    """What ends a run in the middle."""


def run_until(monkeypatch, config, folder, measured):
    """Run until so many architectures are measured."""
    before = Evaluator._measure

    def counted(self, *arguments):
        if self.measured >= measured:
            raise StoppedError
        return before(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "_measure", counted)
        with pytest.raises(StoppedError):
            run_search(config, folder)


def test_who_joins_measures_all_that_is_left(small_config, finished_folder, tmp_path, monkeypatch, checked_here):
    config, folder = load_config(small_config, {}), tmp_path / "run"
    all_of_it = pairs_of(finished_folder)
    run_until(monkeypatch, config, folder, 60)
    begun = len(pairs_of(folder))
    study = (folder / "study.db").read_bytes()
    assert join_search(folder) == len(all_of_it) - begun
    assert (folder / "study.db").read_bytes() == study
    assert not (folder / "best.json").exists()
    assert sorted(pairs_of(folder)) == sorted(all_of_it)
    with monkeypatch.context() as patch:
        patch.delattr(Evaluator, "_measure")  # nothing is left to measure
        run_search(config, folder)
    ours, alone = (json.loads((path / "best.json").read_text()) for path in (folder, finished_folder))
    assert ours["architecture"] == alone["architecture"]
    assert ours["predicted"] == alone["predicted"]


def test_a_run_that_is_finished_or_has_not_begun_is_not_joined(finished_run, tmp_path):
    before = fingerprints(finished_run)
    with pytest.raises(RunFolderError, match=r"must be at work, but .* is finished"):
        join_search(finished_run)
    assert fingerprints(finished_run) == before
    (finished_run / "best.json").unlink()
    (finished_run / "measurements.db").unlink()
    PairStore(finished_run / "measurements.db").close()  # as while it calibrates
    with pytest.raises(RunFolderError, match="must have begun to measure"):
        join_search(finished_run)
    with pytest.raises(RunFolderError, match=r"config\.yaml"):
        join_search(tmp_path)
