"""The queue in PostgreSQL, and runs whose pairs are there."""

import asyncio
import shutil
import time

import sqlalchemy as sa
import yaml
from pydantic import SecretStr

from evaluator import Database, PairStore
from evaluator.database import connect
from search.database import open_store
from search.folder import RunFolder
from search.service.queue import JobQueue
from search.service.worker import LOG, Running
from search.service.workers import Workers
from tests.search.service.conftest import PATIENCE, client_of


def wait_for(queue, job, state):
    end = time.monotonic() + PATIENCE
    while queue.get(job).state != state:
        assert time.monotonic() < end, queue.get(job)
        time.sleep(0.05)


def test_jobs_are_queued_worked_on_and_taken_up_again(settings, postgres, tmp_path):
    own = settings.model_copy(update={"runs": tmp_path, "database": SecretStr(postgres), "name": "pg"})
    assert postgres not in repr(own)
    own.home.mkdir()
    queue, workers = JobQueue(own.database_url, tmp_path / "jobs"), Workers(own)

    def submit(job, *commands):
        return queue.submit(
            job, "run", "In words", job, {}, [list(each) for each in commands], tmp_path / f"{job}.lock"
        )

    assert submit("first", ["--help"], ["sample", "--help"]).state == "queued"
    submit("second", ["predict", str(tmp_path / "nothing")])
    assert queue.cancel(submit("third", ["--help"]).id).state == "cancelled"
    workers.start()
    try:
        wait_for(queue, "first", "succeeded")
        wait_for(queue, "second", "failed")
        assert queue.get("second").reason.startswith("A run folder must hold")
        queue.resume("third")
        wait_for(queue, "third", "succeeded")
        queue.resume("second")
        wait_for(queue, "second", "failed")
    finally:
        workers.stop()
    assert queue.counts() == {"queued": 0, "running": 0, "succeeded": 2, "failed": 1, "cancelled": 0}
    queue.delete("second")
    assert {job.id for job in queue.jobs()} == {"first", "third"}
    queue.close()


def test_the_queue_and_optuna_share_no_table_of_versions(postgres):
    engine = connect(Database.parse(postgres, "public"))
    assert "dbos_migrations" in sa.inspect(engine).get_table_names(schema="dbos")
    assert "alembic_version" not in sa.inspect(engine).get_table_names(schema="dbos")
    engine.dispose()


def test_a_run_in_a_database_is_shown_asked_and_deleted(settings, postgres, finished_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_TEST_DATABASE", postgres)
    monkeypatch.setattr(Workers, "start", lambda _: None)
    run = RunFolder(shutil.copytree(finished_folder, tmp_path / "kept"))
    values = yaml.safe_load(run.config_file.read_text())
    run.config_file.write_text(yaml.safe_dump({**values, "database": "SECATEUR_TEST_DATABASE"}))
    store, files = open_store(run), PairStore(run.measurements_file)
    store.take_over(files, {}, "random")
    store.close()
    files.close()
    run.measurements_file.unlink()
    schema = run.read_json(run.database_file)["schema"]
    shutil.copytree(finished_folder, tmp_path / "done")
    with client_of(settings.model_copy(update={"runs": tmp_path})) as client:
        told = {each["name"]: each["pairs"] for each in client.get("/api/runs").json()}
        assert told["kept"] == told["done"] > 20
        kept, done = (client.get(f"/api/runs/{name}/pairs").text.splitlines() for name in ("kept", "done"))
        assert len(kept) == len(done)
        assert kept[0] == done[0]
        assert client.get("/api/runs/kept/figures").status_code == 200
        assert client.delete("/api/runs/kept").status_code == 204
    engine = connect(Database.parse(postgres, "public"))
    assert schema not in sa.inspect(engine).get_schema_names()
    engine.dispose()
    assert not run.path.exists()


def test_a_reason_is_of_this_attempt(tmp_path):
    (tmp_path / LOG).write_text("secateur: what an earlier attempt ended with\n")
    running = Running(tmp_path, str(tmp_path / "lock"), 0, ["predict", "--no-such-option"])
    code = asyncio.run(running.to_the_end())
    assert code == 2
    assert "no-such-option" in running.reason(code).lower()
