"""A real run that several real processes work on, with measurements as slow as we like: what the simulation must meet.

Model, store, claims, study, fits and plans are those of `secateur run` and `secateur join`, on a tiny model; each
measurement and each slope only sleeps before it is taken, as long as a large model would keep a GPU busy. So two cores
are enough for several workers, as long as they sleep most of the time.

    python -m tests.benchmarks.scale_joined

lets one and two work on such a run and keeps what they took beside the results. Their cores should have nothing else to
do. With `run|join FOLDER SECONDS` it is one of the processes.
"""

import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from evaluator import Evaluator
from evaluator.slopes import slopes
from search.config import load_config
from search.find import find
from search.folder import RunFolder
from search.join import join_search
from search.run import run_search
from tests.benchmarks.record import RESULTS, ROOT
from tests.benchmarks.scale_plan import Stage

FILE = RESULTS / "measured" / "scale-joined.json"
_PROCESSES, _SLEPT = (1, 2), 0.3  # and seconds that a measurement sleeps
_SLOPES = 3  # times as long as a measurement
_SETTINGS = {
    "budget": "parameters=0.7",
    "dtype": "float32",
    "text.sequence_length": 64,
    "text.calibrate": 8,
    "text.search": 4,
    "text.validate": 4,
    "text.report_sequences": 6,
    "search.random_pairs": 10,
    "search.rounds": 2,
    "search.generations": 8,
    "search.candidates": 64,
    "search.gate": -1,
}
_PATIENCE_SECONDS = 900.0


def together(folder: Path, processes: int, seconds: float) -> tuple[float, list[Stage]]:
    """Let processes work on one run, which one of them begins.

    Args:
        folder: where the tiny model and the run go; empty.
        processes: how many.
        seconds: that a measurement sleeps.

    Returns:
        Seconds from the first measurement to the last, and the stages that the first process went through.
    """
    from tests.pico import save_pico

    save_pico(folder / "model")
    command = [sys.executable, "-m", "tests.benchmarks.scale_joined"]
    tails = [["run"], *[["join"]] * (processes - 1)]
    started = [
        subprocess.Popen([*command, *tail, str(folder), str(seconds)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for tail in tails
    ]
    try:
        told = [process.communicate(timeout=_PATIENCE_SECONDS)[0] for process in started]
    finally:
        for process in started:
            process.kill()  # those that are over do not mind
    if any(process.returncode for process in started):
        raise SystemExit("a process of the run failed")
    record = json.loads(told[0].splitlines()[-1])
    return record["seconds"], [Stage("measured", (each,) * count, driver) for count, driver, each in record["stages"]]


class _Clock:
    """What a process does between its measurements, and how many architectures it asks for at once."""

    def __init__(self) -> None:
        self.stages: list[tuple[int, float, float]] = []  # tasks, seconds before them, seconds of each
        self.start()

    def start(self) -> None:
        """Begin to measure."""
        self.began = self.last = time.perf_counter()

    def around(self, own: Callable[..., Any], counted: Callable[..., int]) -> Callable[..., Any]:
        """Return a function that notes each call which measures something, and when."""

        def call(judge: Evaluator, *arguments: Any, **named: Any) -> Any:
            count, before = counted(judge, *arguments), time.perf_counter()
            found = own(judge, *arguments, **named)
            if count:
                now = time.perf_counter()
                self.stages.append((count, before - self.last, (now - before) / count))
                self.last = now
            return found

        return call


def _unmeasured(judge: Evaluator, architectures: Any, split: str, *_: Any) -> int:
    protocol = judge.protocol(split)
    return sum(judge.store.find(each, protocol) is None for each in set(architectures))


def _without_slopes(judge: Evaluator, architecture: Any, choices: Any, *_: Any) -> int:
    return int(judge.store.find_slopes(architecture, judge.protocol("search"), choices) is None)


def _slowed(own: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        time.sleep(seconds)
        return own(*arguments, **named)

    return call


def main(what: str, folder: Path, seconds: float) -> None:
    """Be one of the processes."""
    run, clock = folder / "run", _Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "_measure", _slowed(Evaluator._measure, seconds))
        patch.setattr("evaluator.evaluator.slopes_of", _slowed(slopes, _SLOPES * seconds))
        if what == "join":
            _await(RunFolder(run).measurements_file)
            join_search(run)
            return
        patch.setattr(Evaluator, "measure", clock.around(Evaluator.measure, _unmeasured))
        patch.setattr(Evaluator, "slopes", clock.around(Evaluator.slopes, _without_slopes))

        def timed(*arguments: Any) -> Any:
            clock.start()
            return find(*arguments)

        patch.setattr("search.run.find", timed)
        run_search(load_config(None, {"model": str(folder / "model"), **_SETTINGS}), run)
        print(json.dumps({"seconds": clock.last - clock.began, "stages": clock.stages}))


def _await(file: Path) -> None:
    """Wait until a run has begun to measure."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < until:
        if file.exists() and _has_pairs(file):
            return
        time.sleep(0.05)
    raise SystemExit(f"no run has begun in {file.parent}")


def keep() -> None:
    """Let processes work together and keep what they took."""
    rows = []
    for count in _PROCESSES:
        with tempfile.TemporaryDirectory() as folder:
            seconds, stages = together(Path(folder), count, _SLEPT)
        rows.append({"processes": count, "seconds": seconds, "stages": [asdict(stage) for stage in stages]})
    FILE.write_text(json.dumps(rows) + "\n")


def kept() -> dict[int, tuple[float, list[Stage]]]:
    """Return by the number of processes the seconds that they took, and the stages of the first."""
    rows = json.loads(FILE.read_text())
    return {
        row["processes"]: (row["seconds"], [Stage(**{**each, "tasks": tuple(each["tasks"])}) for each in row["stages"]])
        for row in rows
    }


def _has_pairs(file: Path) -> bool:
    # Not by `PairStore`, which would make the tables that the run is just making.
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as store:
        try:
            return bool(store.execute("SELECT count(*) FROM pairs").fetchone()[0])
        except sqlite3.OperationalError:
            return False


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
    else:
        keep()
