"""The command `secateur` as a user has it: a process of its own, or in this one where only the words matter."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from search.cli import _guarded, app

ROOT = Path(__file__).parents[2]


PATIENCE = 300.0  # seconds; twenty times what a small run takes on an idle machine
# The command with all that a run imports.
_FORKING = """
import json, os, sys
import search.run
from search.cli import main

for line in sys.stdin:
    arguments, log = json.loads(line)
    if not (process := os.fork()):
        sys.stdin.close()
        told = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(told, 1)
        os.dup2(told, 2)
        sys.argv[1:] = arguments
        main()
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


def _popen(*command: str, **pipes: int) -> subprocess.Popen[str]:
    """Start a Python process with as many threads as this one: they decide the last bits."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        # A shell starts what it runs in the background with Ctrl-C ignored, which processes hand on.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        **pipes,
    )


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    return _popen("-m", "search.cli", *map(str, arguments), stderr=subprocess.PIPE)


class Forking:
    """Starts the command in processes that are forked after all imports, which take longer than a small run.

    One at a time.

    Args:
        server: the process that they are forked from.
        log: file for what each prints.
    """

    def __init__(self, server: subprocess.Popen[str], log: Path) -> None:
        self._server, self._log = server, log

    def start(self, *arguments: object) -> int:
        """Start the command; return its process."""
        print(json.dumps([[*map(str, arguments)], str(self._log)]), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def finish(self, process: int) -> tuple[int, str]:
        """Wait for a process, and leave none behind; returns its exit code and what it printed."""
        end = time.monotonic() + PATIENCE
        while Path(f"/proc/{process}").exists():
            if time.monotonic() > end:
                os.kill(process, signal.SIGKILL)
                raise TimeoutError
            time.sleep(0.01)
        return int(self._server.stdout.readline()), self._log.read_text()


@contextmanager
def forking(log: Path) -> Iterator[Forking]:
    """Yield what starts commands, for a while."""
    with _popen("-c", _FORKING, stdin=subprocess.PIPE) as server:
        try:
            yield Forking(server, log)
        finally:
            server.stdin.close()


def call(*arguments: object) -> int:
    """Run the command in this process and return its exit code."""
    return _guarded(lambda: app([str(argument) for argument in arguments]))


def refusal(captured_error: str) -> str:
    """Return the one sentence of a refusal; whatever else is on standard error is progress."""
    assert "Traceback" not in captured_error
    [sentence] = [line for line in captured_error.splitlines() if line.startswith("secateur: ")]
    assert captured_error.endswith(f"{sentence}\n")  # nothing after it
    return sentence


def fingerprints(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder, the lock aside."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
