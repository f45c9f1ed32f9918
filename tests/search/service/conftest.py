"""A service with a real worker and a finished run, as tests ask it; one for each file."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch
import yaml

pytest.importorskip("dbos", reason="needs the extra `service`, which is not installed here")

from fastapi.testclient import TestClient

from search.service.app import create_app
from search.service.settings import ServiceSettings
from tests.search.command import ROOT

PATIENCE = 240.0  # seconds


@pytest.fixture(autouse=True, scope="session")
def as_many_threads():
    """Let jobs compute with as many threads as this process: they decide the last bits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
        patch.setenv("PYTHONPATH", str(ROOT))
        yield


@contextmanager
def client_of(settings: ServiceSettings) -> Iterator[TestClient]:
    """Yield a client of a service that lives as long."""
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        yield client


@pytest.fixture(scope="module")
def runs(finished_folder, tmp_path_factory) -> Path:
    """A folder of runs with one that is finished, called `done`."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(finished_folder, folder / "done")
    return folder


@pytest.fixture(scope="module")
def settings(runs, data) -> ServiceSettings:
    """What an operator sets."""
    return ServiceSettings(runs=runs, models=(data / "models",), data=(data,), requests_per_second=1e6)


@pytest.fixture(scope="module")
def client(settings) -> Iterator[TestClient]:
    """A client of the file's service."""
    with client_of(settings) as client:
        yield client


@pytest.fixture(scope="session")
def small_settings(small_config, data) -> dict:
    """The settings of `small_config` as a request has them."""
    values = yaml.safe_load(Path(small_config).read_text())
    return {**values, "model": "stories260K", "text": {**values["text"], "source": "text/tinystories.txt"}}


def until(client, job: str, *states: str) -> dict:
    """Wait until a job is in one of some states and return it."""
    end = time.monotonic() + PATIENCE
    while (told := client.get(f"/api/jobs/{job}").json())["state"] not in states:
        assert told["state"] in ("queued", "running"), told
        assert time.monotonic() < end, told
        time.sleep(0.1)
    return told


@contextmanager
def serving(settings: ServiceSettings) -> Iterator[SimpleNamespace]:
    """Yield a service in a process of its own: its address, and the process to kill."""
    command = [sys.executable, "-m", "search.cli", "serve", f"--runs={settings.runs}", "--port=0"]
    command += [f"--models={each}" for each in settings.models] + [f"--data={each}" for each in settings.data]
    # What it logs goes to a file: a pipe that nobody reads is soon full, and who writes to it waits.
    with tempfile.TemporaryFile() as logged:
        process = subprocess.Popen(
            command, cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, stderr=logged, text=True
        )
        try:
            first = process.stdout.readline()
            assert "http://" in first, _read(logged)
            address = first.split()[-4].rstrip("/")
            _wait_for(address, process, logged)
            yield SimpleNamespace(address=address, process=process)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


def _read(logged) -> str:
    logged.seek(0)
    return logged.read().decode(errors="replace")


def _wait_for(address: str, process: subprocess.Popen[str], logged) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        with suppress(httpx.TransportError):
            httpx.get(f"{address}/healthz", timeout=60)
            return
        assert process.poll() is None, _read(logged)
        assert time.monotonic() < end, "the service never listens"
        time.sleep(0.05)


def alive(name: str) -> list[int]:
    """Return the processes whose command line has some words."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if name in words:
            found.append(int(place.parent.name))
    return found


def belongs(process: int, runs: Path) -> bool:
    """Return whether a process has a file of a folder of runs open."""
    files = f"/proc/{process}/fd"
    try:
        return any(str(runs) in os.readlink(f"{files}/{each}") for each in os.listdir(files))
    except OSError:
        return False


def sentence_of(answer) -> str:
    """Return why a request was refused."""
    detail = json.loads(answer.content)["detail"]
    assert isinstance(detail, str)
    return detail
