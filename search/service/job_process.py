"""A job's process: one command of `secateur`, its progress told line by line, which ends with the worker that began it.

    python -m search.service.job_process LOCK OUTPUT ARGUMENT...

Standard input is a pipe that the worker holds: when it closes, the worker is gone, and so goes this process with all
that it has begun, as by a kill, which every command survives. Progress goes to the pipe that standard output was; what
the command itself prints goes to the file OUTPUT.
"""

import json
import os
import signal
import sys
import threading
import time
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from search.progress import Listener, listen

_SECONDS_BETWEEN = 0.2  # of one stage's steps, of which there may be thousands a second


def main() -> None:
    """Run the command that the arguments say, alone on its lock."""
    lock, output, *arguments = sys.argv[1:]
    threading.Thread(target=_end_with_the_worker, daemon=True).start()
    told = _Told(os.dup(1))
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 1)
    alone = FileLock(lock)
    _wait_for(alone, told)
    listen(told)
    sys.argv = ["secateur", *arguments]
    from search.cli import main as command  # late: whoever waits need not hold torch

    command()


def _wait_for(lock: BaseFileLock, told: Listener) -> None:
    """Take a lock until this process ends; another job on the same run has it, or an earlier worker's, for a moment."""
    try:
        lock.acquire(timeout=1)
    except Timeout:
        told({"said": "Waiting for another job on the same run"})
        lock.acquire()


def _end_with_the_worker() -> None:
    while os.read(0, 1024):
        pass
    os.killpg(0, signal.SIGKILL)  # the worker made this process the leader of its group


class _Told:
    """Writes progress as JSON lines, not more often than anyone looks."""

    def __init__(self, sink: int) -> None:
        self._sink = sink
        self._stage, self._last = "", 0.0

    def __call__(self, event: dict[str, Any]) -> None:
        now = time.monotonic()
        if "stage" in event:
            same = event["stage"] == self._stage and event["done"] < event["total"]
            if same and now - self._last < _SECONDS_BETWEEN:
                return
            self._stage, self._last = event["stage"], now
        try:
            os.write(self._sink, (json.dumps(event) + "\n").encode())
        except OSError:  # nobody reads any more; the pipe of standard input says so as well
            return


if __name__ == "__main__":
    main()
