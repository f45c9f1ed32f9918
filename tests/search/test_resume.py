"""Killed at any point, the same command goes on and ends where an undisturbed run ends."""

import json
import os
import signal
import sqlite3
import subprocess
import time

import pytest

from tests.search.command import start
from tests.search.test_run import pairs_of

PATIENCE = 300.0  # seconds; twenty times what it takes on an idle machine


def finish(process):
    """Wait for a process, and leave none behind; returns its exit code and standard error."""
    try:
        _, error = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, error


def count(file, query):
    """Return the number a query gives, 0 while the file is not there yet."""
    try:
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
            return connection.execute(query).fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def measuring(folder):
    return count(folder / "measurements.db", "SELECT count(*) FROM pairs") >= 20


def searching(folder):
    return count(folder / "study.db", "SELECT count(*) FROM trials") >= 3


def exporting(folder):
    return (folder / ".export.partial").exists() or (folder / "export").exists()


def stop_when(reached, folder, process, how):
    """Send a signal as soon as a run has come so far, and return its exit code and standard error."""
    until = time.monotonic() + PATIENCE
    while not reached(folder):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, f"never came to {reached.__name__}"
        time.sleep(0.002)
    os.kill(process.pid, how)
    return finish(process)


@pytest.mark.parametrize("reached", [measuring, searching, exporting])
def test_a_killed_run_ends_like_an_undisturbed_one(reached, small_config, finished_folder, tmp_path):
    folder = tmp_path / "run"
    command = ("run", "--config", small_config, "--out", folder)
    code, _ = stop_when(reached, folder, start(*command), signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not (folder / "best.json").exists()
    before = pairs_of(folder)
    assert before == pairs_of(finished_folder)[: len(before)]
    code, error = finish(start(*command))
    assert code == 0, error
    assert pairs_of(folder) == pairs_of(finished_folder)
    mine, undisturbed = (json.loads((path / "best.json").read_text()) for path in (folder, finished_folder))
    assert mine["architecture"] == undisturbed["architecture"]
    assert mine["predicted"] == undisturbed["predicted"]
    assert [path.name for path in folder.rglob("*") if "partial" in path.name or path.name.endswith(".old")] == []
    weights = [(path / "export" / "model.safetensors").read_bytes() for path in (folder, finished_folder)]
    assert weights[0] == weights[1]


def test_ctrl_c_says_one_sentence_and_the_run_goes_on(small_config, finished_folder, tmp_path):
    folder = tmp_path / "run"
    command = ("run", "--config", small_config, "--out", folder)
    code, error = stop_when(measuring, folder, start(*command), signal.SIGINT)
    assert code == 130
    assert error.endswith("Stopped; the same command goes on from here.\n")
    assert "Traceback" not in error
    assert "Aborted" not in error
    before = pairs_of(folder)
    assert before == pairs_of(finished_folder)[: len(before)]
    code, error = finish(start(*command))
    assert code == 0, error
    assert pairs_of(folder) == pairs_of(finished_folder)
