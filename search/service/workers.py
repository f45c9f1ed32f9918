"""The workers of a service: one process for each slot, started anew whenever it dies."""

import contextlib
import json
import logging
import subprocess
import sys
import threading
import time

from filelock import FileLock, Timeout

from search.service.settings import ServiceSettings
from search.service.telemetry import log
from space import RunFolderError

_LONGEST_WAIT = 30.0  # seconds between two starts of a worker that keeps dying


class Workers:
    """Keeps a worker alive in every slot, until it is told to stop.

    Args:
        settings: the service's.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._stopping = threading.Event()
        self._processes: dict[int, subprocess.Popen[str]] = {}
        self._threads: list[threading.Thread] = []

    @property
    def executors(self) -> str:
        """What the names of this service's workers begin with."""
        return f"{self._settings.name}/"

    @property
    def alive(self) -> int:
        """How many workers live."""
        return sum(process.poll() is None for process in self._processes.values())

    def wait_for_earlier(self) -> None:
        """Wait until no worker of an earlier service is left, which have some milliseconds to live without it.

        Raises:
            RunFolderError: one lives on, since its service does.
        """
        for lock in self._settings.home.glob("slot-*.lock"):
            try:
                with FileLock(lock, timeout=_LONGEST_WAIT):
                    pass
            except Timeout:
                raise RunFolderError(
                    f"The workers of one service must be all that a folder of runs has, but another's have "
                    f"{str(self._settings.runs)!r}; stop that service."
                ) from None

    def start(self) -> None:
        """Start a worker in every slot."""
        for slot in range(self._settings.slots):
            thread = threading.Thread(target=self._keep, args=(slot,), name=f"slot-{slot}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End all workers and their jobs, which the next service takes up again."""
        self._stopping.set()
        for process in list(self._processes.values()):
            _end(process)
        for thread in self._threads:
            thread.join()

    def _keep(self, slot: int) -> None:
        deaths = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            process = self._begin(slot)
            if self._stopping.is_set():  # too late for `stop` to see it
                _end(process)
            code = process.wait()
            if self._stopping.is_set():
                return
            deaths = deaths + 1 if time.monotonic() - started < _LONGEST_WAIT else 0
            log("worker died", logging.WARNING, slot=slot, code=code)
            self._stopping.wait(min(_LONGEST_WAIT, 0.2 * 2**deaths))

    def _begin(self, slot: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "search.service.worker"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self._processes[slot] = process
        told = {
            "lock": str((self._settings.home / f"slot-{slot}.lock").absolute()),  # keeps two from one slot
            "database": self._settings.database_url,  # on no command line, where everybody could read a password
            "executor": f"{self.executors}{slot}",
        }
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # it died at once, which the caller sees
            process.stdin.write(json.dumps(told) + "\n")
            process.stdin.flush()
        return process


def _end(process: subprocess.Popen[str]) -> None:
    """Close the pipe that a worker lives by."""
    if process.stdin:
        with contextlib.suppress(OSError):  # what it was not told, it needs no more
            process.stdin.close()
