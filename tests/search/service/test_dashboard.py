"""The dashboard of a run's study, on a port of its own."""

import socket
import time

import httpx
import pytest

pytest.importorskip("optuna_dashboard", reason="needs the extra `service`, which is not installed here")

from tests.search.command import call, refusal, start


def test_it_shows_the_study_of_a_run(finished_folder):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = start("dashboard", finished_folder, "--port", port)
    try:
        assert process.stdout.readline().startswith(f"http://127.0.0.1:{port}/")
        end = time.monotonic() + 60
        while True:
            try:
                told = httpx.get(f"http://127.0.0.1:{port}/api/studies", timeout=60).json()
                break
            except httpx.TransportError:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < end
                time.sleep(0.1)
        assert len(told["study_summaries"]) == 1
    finally:
        process.kill()
        process.communicate()


def test_a_run_without_a_study_has_none(finished_run, capsys):
    (finished_run / "study.db").unlink()
    assert call("dashboard", finished_run) == 2
    assert refusal(capsys.readouterr().err).startswith("secateur: A run must have a study to show")
