"""Shared by several packages' tests: real data where it is there, pico models built here, one finished run."""

import os
import shutil
import sqlite3
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

# No test may depend on a network; read when the libraries are imported, so it is set before.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core: a second thread of each would only wait
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import sqlalchemy
import yaml

ROOT = Path(__file__).parent.parent
SMALL_RUN = {
    "budget": ["parameters=0.7"],
    "dtype": "float32",
    "text": {"sequence_length": 64, "calibrate": 8, "search": 4, "validate": 4, "report_sequences": 6},
    "search": {
        "strategy": "predictor",
        "tokens": None,
        "prior_sequences": 4,  # all
        "random_pairs": 10,
        "profile_pairs": 8,
        "guided_pairs": 8,
        "rounds": 2,
        "picks": 3,
        "averages": 2,
        "generations": 8,
        "candidates": 64,
        "finalists": 3,
        "gate": -1,
        "refine": True,
        "slopes": True,
        "against": [],
        "down_to": None,
        "winner": "lowest_kl",
    },
}

# First, so that no process is left alone with one of them in the end.
LONGEST = ("test_jobs.py", "test_page.py", "test_engine.py", "test_resume.py", "test_evaluating.py")

# The same examples every time, so that a suite that passed passes again; `--hypothesis-profile default` draws others.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True, scope="session")
def caches():
    """Keep what is converted or downloaded out of the user's cache."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECATEUR_CACHE", f"{folder}/secateur")
        patch.setenv("HF_HOME", f"{folder}/huggingface")
        patch.setenv("HF_MODULES_CACHE", f"{folder}/modules")
        yield


@pytest.fixture(autouse=True, scope="session")
def patient_disk():
    """Let this process wait for no disk: what it wrote must outlive a process, and no test cuts the power."""

    def relax(connection, _):
        if not isinstance(connection, sqlite3.Connection):
            return
        with suppress(sqlite3.DatabaseError):  # a file that a test has damaged
            connection.execute("PRAGMA synchronous = OFF")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", relax)
    yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", relax)


@pytest.fixture
def checked_here():
    """Check exports in this process; see `tests.checking`."""
    from tests.checking import checking_here

    with checking_here():
        yield


@pytest.fixture(scope="session")
def postgres():
    """The URL of a PostgreSQL database that is there for the tests."""
    from tests.postgres import missing, server

    pytest.importorskip("psycopg", reason="needs the package `psycopg`: pip install 'secateur[postgres]'")
    if (reason := missing()) is not None:
        pytest.skip(reason)
    with server() as url:
        yield url


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own that starts tiny, and a function to make it larger."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small disk")
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], check=False).returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        yield place, lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True)
    finally:
        subprocess.run(["umount", "--lazy", place], check=False)


@pytest.fixture(scope="session")
def data() -> Path:
    """The shared data folder."""
    folder = Path(os.environ.get("SECATEUR_DATA") or ROOT.parent / "shared" / "data").resolve()
    if not folder.is_dir():
        pytest.skip(f"needs the data folder {folder}, which is not here; set SECATEUR_DATA")
    return folder


@pytest.fixture(scope="session")
def stories(data) -> Path:
    """A small model that was really trained."""
    return data / "models" / "stories260K"


@pytest.fixture(scope="session")
def pico_folder(tmp_path_factory) -> Path:
    """A tiny random Llama with a tiny tokenizer; 6 layers, 8 heads in 4 KV groups, a vocabulary of under 256."""
    from tests.pico import save_pico

    return save_pico(tmp_path_factory.mktemp("pico"))


@pytest.fixture
def pico(pico_folder):
    """The tiny Llama, opened anew for each test."""
    from evaluator import open_model

    return open_model(str(pico_folder), dtype="float32")


@pytest.fixture(scope="session")
def small_config(stories, data, tmp_path_factory) -> Path:
    """The settings of a run that takes seconds, as a YAML file."""
    values = {"model": str(stories), **SMALL_RUN, "text": {**SMALL_RUN["text"], "source": _tinystories(data)}}
    file = tmp_path_factory.mktemp("config") / "small.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def _tinystories(data: Path) -> str:
    return str(data / "text" / "tinystories.txt")


@pytest.fixture(scope="session")
def finished_folder(small_config, tmp_path_factory) -> Path:
    """One real run from model to export; not to be changed, see `finished_run`."""
    from search.config import load_config
    from search.run import run_search
    from tests.checking import checking_here

    folder = tmp_path_factory.mktemp("finished") / "run"
    with checking_here():
        run_search(load_config(small_config, {}), folder)
    return folder


@pytest.fixture
def finished_run(finished_folder, tmp_path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished_folder, tmp_path / "finished"))
