"""Exports checked in this process, for runs that are not about that: to start another takes longer than the run."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest


@contextmanager
def checking_here() -> Iterator[None]:
    """Check exports by the function that another process would call, for a while."""
    from search.export import gguf, huggingface, verify, verify_gguf

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface, "subprocess", _here(verify.main))
        patch.setattr(gguf, "subprocess", _here(verify_gguf.main))
        yield


def _here(main: Callable[..., None]) -> SimpleNamespace:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        try:
            main(*command[3:])
        except SystemExit as stop:
            return subprocess.CompletedProcess(command, 1, "", str(stop.code))
        return subprocess.CompletedProcess(command, 0, "", "")

    return SimpleNamespace(run=run)
