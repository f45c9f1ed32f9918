"""The queue of jobs, as the web process has it: submitted, looked at, cancelled, taken up again, deleted.

DBOS keeps the jobs, in SQLite or PostgreSQL; what a job tells while it is at work lies in a folder of its own.
"""

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from dbos import DBOS, DBOSClient, EnqueueOptions, WorkflowStatus

from search.service.durable import APPLICATION, QUEUE, SERIALIZER, VERSION, WORKFLOW
from search.service.worker import LOG, OUTPUT, PROGRESS
from space import RunFolderError

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
STATES: dict[str, State] = {
    "DELAYED": "queued",
    "ENQUEUED": "queued",
    "PENDING": "running",
    "SUCCESS": "succeeded",
    "ERROR": "failed",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "failed",
    "CANCELLED": "cancelled",
}
UNFINISHED = ("queued", "running")
_STATUSES = {state: [status for status, own in STATES.items() if own == state] for state in STATES.values()}


class JobMissingError(RunFolderError):
    """There is no job of that id."""


class JobStateError(RunFolderError):
    """A job is not in the state that what is asked of it needs."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is now.

    Args:
        id: its name in the queue.
        kind: what it does: run, recover, study, export or generate.
        title: the same in words.
        run: the run that it works on.
        state: queued, running, succeeded, failed or cancelled.
        request: what was asked.
        commands: what that comes to, as arguments of `secateur`.
        created_at: seconds since the epoch, and so the next two.
        started_at: None while it waits.
        finished_at: None while it is unfinished.
        progress: what it told last; None before it told anything.
        reason: why it failed; None where it did not.
    """

    id: str
    kind: str
    title: str
    run: str
    state: State
    request: Mapping[str, Any]
    commands: Sequence[Sequence[str]]
    created_at: float
    started_at: float | None
    finished_at: float | None
    progress: Mapping[str, Any] | None
    reason: str | None


class JobQueue:
    """Jobs in a database and in a folder.

    Safe to share between threads.

    Args:
        database: URL, which may hold a password and is shown to nobody.
        folder: of the jobs' own folders.
    """

    def __init__(self, database: str, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        _migrate(database)
        self._client = DBOSClient(
            system_database_url=database, serializer=SERIALIZER, application_name=APPLICATION, dbos_system_schema="dbos"
        )

    def submit(
        self,
        job_id: str,
        kind: str,
        title: str,
        run: str,
        request: Mapping[str, Any],
        commands: list[list[str]],
        lock: Path,
    ) -> Job:
        """Queue a job; one that has this id already is returned as it is.

        Args:
            job_id: of the job.
            kind: what it does.
            title: the same in words.
            run: the run that it works on.
            request: what was asked.
            commands: what that comes to.
            lock: file that keeps two jobs from one run.
        """
        options: EnqueueOptions = {
            "workflow_name": WORKFLOW,
            "queue_name": QUEUE,
            "workflow_id": job_id,
            "queue_partition_key": run,
            "app_version": VERSION,
            "attributes": {"kind": kind, "title": title, "run": run, "request": dict(request)},
        }
        told = {"folder": str(self._folder / job_id), "lock": str(lock), "commands": commands}
        self._client.enqueue(options, told)
        return self.get(job_id)

    def get(self, job_id: str) -> Job:
        """Return a job.

        Raises:
            JobMissingError: there is none of this id.
        """
        found = self._client.list_workflows(workflow_ids=[job_id], load_output=True)
        if not found:
            raise JobMissingError(f"A job must be there to be asked about, but {job_id} is not; see GET /api/jobs.")
        return self._job(found[0])

    def jobs(self, state: State | None = None, limit: int = 200) -> list[Job]:
        """Return jobs, the newest first.

        Args:
            state: only those in it.
            limit: how many at most.
        """
        found = self._client.list_workflows(
            status=_STATUSES[state] if state else None,
            queue_name=QUEUE,
            limit=limit,
            sort_desc=True,
        )
        return [self._job(each) for each in found]

    def unfinished(self) -> list[Job]:
        """Return the jobs that are queued or running."""
        statuses = [status for status, state in STATES.items() if state in UNFINISHED]
        return [self._job(each) for each in self._client.list_workflows(status=statuses, queue_name=QUEUE)]

    def counts(self) -> dict[State, int]:
        """Return how many jobs there are in each state."""
        counted: dict[State, int] = dict.fromkeys(STATES.values(), 0)
        for each in self._client.list_workflows(queue_name=QUEUE, load_input=False, load_output=False):
            counted[STATES[each.status]] += 1
        return counted

    def cancel(self, job_id: str) -> Job:
        """Cancel a job that is not finished; its run goes on from there when the job is resumed.

        Raises:
            JobMissingError: there is none of this id.
            JobStateError: it is finished.
        """
        job = self.get(job_id)
        if job.state not in UNFINISHED:
            raise JobStateError(f"A job to cancel must be queued or running, but {job_id} is {job.state}; leave it be.")
        self._client.cancel_workflow(job_id)
        return self.get(job_id)

    def resume(self, job_id: str) -> Job:
        """Queue a cancelled or failed job again; it goes on where it stopped.

        Raises:
            JobMissingError: there is none of this id.
            JobStateError: it is neither.
        """
        job = self.get(job_id)
        if job.state == "cancelled":
            self._client.resume_workflow(job_id, queue_name=QUEUE)
        elif job.state == "failed":
            self._client.rewind_workflow(job_id, queue_name=QUEUE, queue_partition_key=job.run)
        else:
            raise JobStateError(
                f"A job to resume must be cancelled or failed, but {job_id} is {job.state}; leave it be."
            )
        return self.get(job_id)

    def delete(self, job_id: str) -> None:
        """Forget a finished job and its log; the run that it worked on stays.

        Raises:
            JobMissingError: there is none of this id.
            JobStateError: it is not finished.
        """
        job = self.get(job_id)
        if job.state in UNFINISHED:
            raise JobStateError(f"A job to delete must be finished, but {job_id} is {job.state}; cancel it first.")
        self._client.delete_workflow(job_id)
        shutil.rmtree(self._folder / job_id, ignore_errors=True)

    def folder(self, job_id: str) -> Path:
        """Return the folder of a job's own files."""
        return self._folder / job_id

    def output(self, job_id: str) -> list[dict[str, Any] | None]:
        """Return what each command of a job printed for machines, None where it is not done.

        Args:
            job_id: of the job.

        Raises:
            JobMissingError: there is no such job.
        """
        found: list[dict[str, Any] | None] = []
        for number in range(len(self.get(job_id).commands)):
            try:
                found.append(json.loads((self._folder / job_id / OUTPUT.format(number)).read_text()))
            except (OSError, ValueError):
                found.append(None)
        return found

    def log(self, job_id: str, most: int = 1 << 20) -> str:
        """Return the end of what a job printed.

        Args:
            job_id: of the job.
            most: bytes at most.

        Raises:
            JobMissingError: there is no such job.
        """
        self.get(job_id)
        try:
            with (self._folder / job_id / LOG).open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - most))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def take_up_again(self, executors: str) -> int:
        """Queue again what was running when the service died, whose workers are gone; return how many jobs.

        Args:
            executors: what the names of the service's own workers begin with.
        """
        lost = self._client.list_workflows(status="PENDING", queue_name=QUEUE)
        own = [each.workflow_id for each in lost if (each.executor_id or "").startswith(executors)]
        if own:
            self._client.resume_workflows(own, queue_name=QUEUE)
        return len(own)

    def check(self) -> None:
        """Raise where the database does not answer."""
        self._client.check_connection()

    def close(self) -> None:
        """Release the database."""
        self._client.destroy()

    def _job(self, found: WorkflowStatus) -> Job:
        told = found.attributes or {}
        given: Any = found.input["args"][0] if found.input else {}
        state = STATES[found.status]
        return Job(
            id=found.workflow_id,
            kind=str(told.get("kind", "")),
            title=str(told.get("title", "")),
            run=str(told.get("run", "")),
            state=state,
            request=told.get("request", {}),
            commands=given.get("commands", []),
            created_at=(found.created_at or 0) / 1000,
            started_at=found.dequeued_at / 1000 if found.dequeued_at else None,
            finished_at=found.completed_at / 1000 if found.completed_at and state not in UNFINISHED else None,
            progress=self._progress(found.workflow_id),
            reason=str(found.error) if state == "failed" and found.error else None,
        )

    def _progress(self, job_id: str) -> dict[str, Any] | None:
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads((self._folder / job_id / PROGRESS).read_text())
            return found
        return None


def _migrate(database: str) -> None:
    """Bring DBOS's tables up to date, which neither a client nor a worker does."""
    DBOS.migrate(database)
    url = sa.make_url(database)
    if url.get_backend_name() == "sqlite":
        engine = sa.create_engine(url)
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")  # the page reads while workers write
        engine.dispose()
