"""Killed at any point, the same command goes on and ends where an undisturbed run ends."""

import json
import os
import signal
import sqlite3
import time
from pathlib import Path

from tests.search.command import PATIENCE, forking
from tests.search.test_run import pairs_of


def count(file, query):
    """Return the number a query gives, 0 while the file is not there yet."""
    try:
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
            return connection.execute(query).fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def measuring(folder):
    return count(folder / "measurements.db", "SELECT count(*) FROM pairs") >= 20


def measuring_more(folder):
    return count(folder / "measurements.db", "SELECT count(*) FROM pairs") >= 40


def searching(folder):
    return count(folder / "study.db", "SELECT count(*) FROM trials") >= 3


def searching_more(folder):
    rounds = "SELECT count(*) FROM trial_user_attributes WHERE key = 'round' AND value_json = '1'"
    return count(folder / "study.db", rounds) >= 2


def exporting(folder):
    return (folder / ".export.partial").exists() or (folder / "export").exists()


def stop_when(reached, folder, commands, process, how):
    """Send a signal as soon as a run has come so far, and return its exit code and what it printed."""
    until = time.monotonic() + PATIENCE
    while not reached(folder):
        assert Path(f"/proc/{process}").exists(), commands.finish(process)
        assert time.monotonic() < until, f"never came to {reached.__name__}"
        time.sleep(0.002)
    os.kill(process, how)
    return commands.finish(process)


# In this order, each on what the one before left behind.
STOPS = [(measuring, signal.SIGKILL), (measuring_more, signal.SIGINT), (searching, signal.SIGKILL)]
STOPS += [(searching_more, signal.SIGKILL), (exporting, signal.SIGKILL)]


def test_a_run_that_is_stopped_again_and_again_ends_like_an_undisturbed_one(small_config, finished_folder, tmp_path):
    folder = tmp_path / "run"
    command = ("run", "--config", small_config, "--out", folder)
    came_to = []
    with forking(tmp_path / "log") as commands:
        for reached, how in STOPS:
            code, told = stop_when(reached, folder, commands, commands.start(*command), how)
            assert (reached.__name__, code) == (reached.__name__, 130 if how == signal.SIGINT else -how)
            if how == signal.SIGINT:
                assert told.endswith("Stopped; the same command goes on from here.\n")
                assert "Traceback" not in told
                assert "Aborted" not in told
            assert not (folder / "best.json").exists()
            came_to.append(pairs_of(folder))
            assert came_to[-1] == pairs_of(finished_folder)[: len(came_to[-1])]
        code, told = commands.finish(commands.start(*command))
    assert code == 0, told
    assert len(came_to[0]) < len(came_to[1]) < len(came_to[2])
    assert pairs_of(folder) == pairs_of(finished_folder)
    mine, undisturbed = (json.loads((path / "best.json").read_text()) for path in (folder, finished_folder))
    assert mine["architecture"] == undisturbed["architecture"]
    assert mine["predicted"] == undisturbed["predicted"]
    assert mine["measured"]["report"]["nll"] == undisturbed["measured"]["report"]["nll"]
    assert [path.name for path in folder.rglob("*") if "partial" in path.name or path.name.endswith(".old")] == []
    weights = [(path / "export" / "model.safetensors").read_bytes() for path in (folder, finished_folder)]
    assert weights[0] == weights[1]
