"""Jobs end like the command in a terminal ends, whatever happens to service and workers meanwhile."""

import json
import os
import signal
import subprocess
import time

import httpx

from tests.search.command import refusal, start
from tests.search.service.conftest import alive, belongs, client_of, sentence_of, serving, until
from tests.search.test_resume import measuring, measuring_more, searching
from tests.search.test_run import pairs_of


def submit(client, settings, name):
    answer = client.post("/api/jobs", json={"kind": "run", "name": name, "settings": settings})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def kill(module, runs):
    """Kill the one process of a service that runs a module."""
    [process] = [each for each in alive(module) if belongs(each, runs)]
    os.kill(process, signal.SIGKILL)


def wait_for(reached, folder, client, job):
    while not reached(folder):
        assert client.get(f"/api/jobs/{job}").json()["state"] in ("queued", "running")
        time.sleep(0.01)


def test_a_search_ends_as_in_a_terminal_though_job_worker_and_service_are_killed(
    settings, small_settings, finished_folder, tmp_path
):
    own, folder = settings.model_copy(update={"runs": tmp_path}), tmp_path / "killed"
    with serving(own) as service, httpx.Client(base_url=service.address, timeout=60) as asking:
        job = submit(asking, small_settings, "killed")
        wait_for(measuring, folder, asking, job)
        kill("search.service.job_process", tmp_path)
        wait_for(measuring_more, folder, asking, job)
        kill("search.service.worker", tmp_path)
        wait_for(searching, folder, asking, job)
        second = start("serve", f"--runs={tmp_path}", "--port=0")
        _, error = second.communicate(timeout=60)
        assert second.returncode == 2
        assert refusal(error).startswith("secateur: One service must have a folder of runs to itself")
        service.process.kill()
        service.process.wait(timeout=30)
    end = time.monotonic() + 10
    while [each for each in alive("search.service.") if belongs(each, tmp_path)]:
        assert time.monotonic() < end, "workers outlive their service"
        time.sleep(0.05)
    assert not (folder / "best.json").exists()
    with client_of(own) as again:
        seen = watched(again, job)
        assert [told["state"] for told in seen][-1] == "succeeded"
        assert again.get(f"/api/jobs/{job}/output").json()[0]["run"] == str(folder)
    stages = [told["progress"]["stage"] for told in seen if told["progress"]]
    assert len(set(stages)) > 2
    assert seen[-1]["progress"]["done"] == seen[-1]["progress"]["total"] > 0
    assert pairs_of(folder) == pairs_of(finished_folder)
    mine, undisturbed = (json.loads((path / "best.json").read_text()) for path in (folder, finished_folder))
    assert mine["architecture"] == undisturbed["architecture"]


def watched(client, job):
    """Return all that a job's events tell until it is finished."""
    with client.stream("GET", f"/api/jobs/{job}/events") as events:
        lines = [line for line in events.iter_lines() if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_jobs_are_cancelled_resumed_and_deleted(client, runs, small_settings):
    job = submit(client, small_settings, "watched")
    waiting = submit(client, small_settings, "waiting")
    assert client.post(f"/api/jobs/{waiting}/cancel").json()["state"] == "cancelled"
    assert client.post(f"/api/jobs/{waiting}/cancel").status_code == 409
    assert client.post(f"/api/jobs/{waiting}/resume").json()["state"] == "queued"
    assert client.post(f"/api/jobs/{waiting}/resume").status_code == 409
    assert client.post(f"/api/jobs/{waiting}/cancel").json()["state"] == "cancelled"
    wait_for(measuring, runs / "watched", client, job)
    assert sentence_of(client.delete(f"/api/jobs/{job}")).startswith("A job to delete must be finished")
    assert sentence_of(client.delete("/api/runs/watched")).startswith("A run to delete must have no job at work")
    assert client.post(f"/api/jobs/{job}/cancel").json()["state"] == "cancelled"
    end = time.monotonic() + 60
    while [each for each in alive("search.service.job_process") if belongs(each, runs)]:
        assert time.monotonic() < end, "a cancelled job goes on"
        time.sleep(0.05)
    assert client.delete(f"/api/jobs/{job}").status_code == 204
    assert client.get(f"/api/jobs/{job}").status_code == 404
    assert measuring(runs / "watched")  # what it measured stays
    assert client.delete("/api/runs/watched").status_code == 204
    assert not (runs / "watched").exists()


def test_a_failed_job_says_why_and_can_be_resumed(client, small_settings):
    # Which no check before the model is open can see: the text is too short for what is asked.
    settings = {**small_settings, "text": {**small_settings["text"], "search": 100_000}}
    job = submit(client, settings, "short")
    assert until(client, job, "failed")["reason"].startswith("A text must hold")
    assert "Traceback" not in client.get(f"/api/jobs/{job}/log").text
    assert client.post(f"/api/jobs/{job}/resume").json()["state"] in ("queued", "running")
    client.post(f"/api/jobs/{job}/cancel")


def test_a_full_disk_fails_its_job_alone(client, runs, small_settings, small_disk):
    place, _ = small_disk
    (runs / "full").mkdir()
    subprocess.run(["mount", "--bind", place, runs / "full"], check=True)
    asked = {"kind": "generate", "run": "done", "prompt": "Once upon a time", "tokens": 5}
    try:
        full = submit(client, small_settings, "full")
        # The same key queues one job, however often.
        told = [client.post("/api/jobs", json=asked, headers={"Idempotency-Key": "once"}).json() for _ in range(2)]
        assert [each["id"] for each in told] == ["once", "once"]
        assert "disk, but it is full" in until(client, full, "failed")["reason"]
        until(client, "once", "succeeded")
    finally:
        subprocess.run(["umount", "--lazy", runs / "full"], check=True)
    [told] = client.get("/api/jobs/once/output").json()
    assert set(told) == {"text", "beside"}
    texts = told.values()
    assert len(set(texts)) == 2
    assert all(text.startswith("Once upon a time") and len(text) > 20 for text in texts)
