"""What `secateur serve` refuses before it listens."""

import socket

import pytest

from search.service import serve
from tests.postgres import free_port
from tests.search.command import call, refusal


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """A function that returns the sentence by which the command refuses options."""
    # Were it to go on, it would serve until Ctrl-C.
    monkeypatch.setattr(serve.uvicorn.Server, "run", lambda *_, **__: pytest.fail("it serves"))

    def asked(*options):
        assert call("serve", f"--runs={tmp_path / 'runs'}", *options) == 2
        told = refusal(capsys.readouterr().err)
        assert "hunter2" not in told
        return told

    return asked


@pytest.mark.parametrize(
    "url", ["SECATEUR", "sqlite:///jobs.db", "nosuch://gardener:hunter2@host/x", "postgresql://h:port"]
)
def test_a_database_that_is_none(refused, tmp_path, url):
    assert refused("--database", url).startswith(
        "secateur: The database of --database must be given as postgresql://USER@HOST/NAME"
    )
    assert not (tmp_path / "runs").exists()


def test_a_database_that_is_not_there(refused, tmp_path, monkeypatch):
    pytest.importorskip("psycopg", reason="needs the package `psycopg`: pip install 'secateur[postgres]'")
    port = free_port()
    url = f"postgresql://gardener:hunter2@127.0.0.1:{port}/garden"
    assert f"must be within reach, but 127.0.0.1:{port}/garden is not" in refused("--database", url)
    assert "must be within reach" in refused("--database", url.replace("postgresql:", "postgres:"))
    monkeypatch.setenv("GARDEN", url)
    assert "The database of --run-database must be within reach" in refused("--run-database", "GARDEN")
    assert not (tmp_path / "runs").exists()


def test_a_variable_that_is_not_set(refused, monkeypatch):
    monkeypatch.delenv("GARDEN", raising=False)
    assert "environment variable GARDEN, but that is not set" in refused("--run-database", "GARDEN")


def test_what_is_no_name(refused):
    assert "--run-database must be the name of an environment" in refused("--run-database", "postgresql://hunter2@x/y")
    assert "--name must be of 1 to 64 letters" in refused("--name", "a/b")


def test_an_address_that_is_taken_or_somebody_elses(refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"but 127.0.0.1:{port} is not (Address already in use)" in refused("--port", port)
    assert "must listen on an address that is this machine's" in refused("--host", "203.0.113.7")
