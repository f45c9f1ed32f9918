"""The command `secateur` as a user has it: a process of its own, or in this one where only the words matter."""

import hashlib
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch

from search.cli import _guarded, app

ROOT = Path(__file__).parents[2]


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start the command in a process of its own, with as many threads as this one: they decide the last bits."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        [sys.executable, "-m", "search.cli", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it runs in the background with Ctrl-C ignored, which processes hand on.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


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
