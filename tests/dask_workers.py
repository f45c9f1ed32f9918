"""A Dask scheduler and workers as people start them: processes of their own, on the loopback, each under a nanny."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from tests.postgres import free_port

ROOT = Path(__file__).parent.parent
_PATIENCE = 180.0  # seconds


class Machines:
    """A scheduler with its workers, and what they have told of their measurements.

    Args:
        address: of the scheduler.
        log: where workers tell what they begin and end.
        cache: where their rooms are.
    """

    def __init__(self, address: str, log: Path, cache: Path) -> None:
        self.address, self.cache = address, cache
        self._log = log

    def told(self) -> list[tuple[str, int, str]]:
        """Return what happened, in order: `begin` or `end`, the worker's process, what it measures."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [(what, int(process), key) for what, process, key in map(str.split, lines)]

    def measuring(self) -> dict[int, str]:
        """Return what each worker is at, by its process; those that were killed in between included."""
        at = {}
        for what, process, key in self.told():
            at[process] = key if what == "begin" else ""
        return {process: key for process, key in at.items() if key}

    def finished(self) -> list[str]:
        """Return what workers have measured, as often as they did."""
        return [key for what, _, key in self.told() if what == "end"]

    def kill(self, times: int, of: str = "", rest: Callable[[], float] = lambda: 0.5) -> list[int]:
        """Kill -9 a worker that is at a measurement, some times, each another process; returns those.

        Args:
            times: to kill.
            of: end of the key of the measurements that count.
            rest: returns seconds to wait before each, after a worker is seen at a measurement that was not before.
        """
        killed: list[int] = []
        until = time.monotonic() + _PATIENCE
        while len(killed) < times and time.monotonic() < until:
            time.sleep(rest())
            at = [process for process, key in self.measuring().items() if key.endswith(of) and process not in killed]
            if at:
                killed.append(at[len(killed) % len(at)])
                until = time.monotonic() + _PATIENCE
                with suppress(ProcessLookupError):
                    os.kill(killed[-1], signal.SIGKILL)
        return killed


@contextmanager
def machines(
    folder: Path, workers: int = 2, slow: float = 0.0, preload: str = "tests.dask_workers"
) -> Iterator[Machines]:
    """Run a scheduler and workers.

    Args:
        folder: for what they write.
        workers: how many processes.
        slow: seconds that each measurement takes longer, half of them before and half after it.
        preload: module that workers load first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log, cache = folder / "measured.log", folder / "cache"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "SECATEUR_CACHE": str(cache),  # as on another machine
        "SECATEUR_TEST_LOG": str(log),
        "SECATEUR_TEST_SLOW": str(slow),
        # As many as here: they decide the last bits.
        "DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON__OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    address = f"tcp://127.0.0.1:{free_port()}"
    host, port = address.removeprefix("tcp://").split(":")
    dask = [sys.executable, "-m", "dask"]
    commands = [
        [*dask, "scheduler", "--host", host, "--port", port, "--no-dashboard", "--no-show"],
        [*dask, "worker", address, "--host", host, "--nworkers", str(workers), "--nthreads", "1", "--no-dashboard"],
    ]
    commands[1] += ["--memory-limit", "0", "--death-timeout", "60", "--preload", preload]
    commands[1] += ["--local-directory", str(folder / "scratch")]
    started = []
    try:
        for number, command in enumerate(commands):
            output = (folder / f"dask-{number}.log").open("w")
            started.append(
                subprocess.Popen(
                    command,
                    cwd=folder,
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        yield Machines(address, log, cache)
    finally:
        for process in started:  # with all that they started; they write nothing that is to last
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(_PATIENCE)


def dask_setup(_worker: object) -> None:
    """Let a worker tell what it begins and ends to measure; Dask calls this as it starts."""
    from evaluator import Evaluator

    plain, log, slow = Evaluator._measure, os.environ["SECATEUR_TEST_LOG"], float(os.environ["SECATEUR_TEST_SLOW"])

    def tell(what: str, key: str) -> None:
        with open(log, "a", buffering=1) as file:
            file.write(f"{what} {os.getpid()} {key}\n")

    def measure(self, architecture, split, protocol):
        key = f"{architecture.fingerprint}:{protocol.fingerprint}"
        tell("begin", key)
        time.sleep(slow / 2)
        found = plain(self, architecture, split, protocol)
        time.sleep(slow / 2)
        tell("end", key)
        return found

    Evaluator._measure = measure
