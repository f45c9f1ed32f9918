"""A slot's worker: takes one job after the other from the queue and has each worked on by a process of its own.

    python -m search.service.worker < what it is to know, one line of JSON

Standard input stays open while the service lives; when it closes, the worker ends and its job with it. DBOS keeps which
commands of a job are done: a job that is taken up again goes on with the first that is not.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from dbos import DBOS, DBOSConfig
from filelock import FileLock

from search.service.durable import APPLICATION, POLL_SECONDS, QUEUE, SERIALIZER, VERSION, WORKFLOW

PROGRESS, LOG, OUTPUT = "progress.json", "log.txt", "output-{}.json"  # in a job's folder
_GRACE_SECONDS = 20.0  # from asking a job to stop to killing it
_MOST_DEATHS = 5  # of a job's process in one stage, after which it is no accident
_LONGEST_LINE = 1 << 20  # bytes of one line of progress
_LONGEST_REASON = 8192  # bytes at the end of a log in which the reason is
_LINES_KEPT = 20  # of what a job said, in its progress


class JobError(Exception):
    """A command failed; its text is the reason."""


def main() -> None:
    """Work until standard input closes."""
    told = json.loads(sys.stdin.readline())
    with FileLock(told["lock"]):  # the worker before this one may have some milliseconds left
        config: DBOSConfig = {
            "name": APPLICATION,
            "system_database_url": told["database"],
            "executor_id": told["executor"],
            "application_version": VERSION,
            "serializer": SERIALIZER,
            "log_level": "WARNING",
            "run_migrations": False,  # the service did before it started workers
            "notification_listener_polling_interval_sec": POLL_SECONDS,
        }
        logging.getLogger("dbos").addFilter(_is_news)
        DBOS(config=config)
        DBOS.launch()
        DBOS.register_queue(
            QUEUE,
            worker_concurrency=1,
            partition_concurrency=1,  # of jobs on one run, which would only wait for each other
            polling_interval_sec=POLL_SECONDS,
            on_conflict="always_update",
        )
        while os.read(0, 1024):
            pass
        os._exit(0)  # at once: a job that goes on now would be worked on twice


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a line of DBOS is worth telling: that a job failed its own record says, with the reason."""
    return not (record.exc_info and isinstance(record.exc_info[1], JobError))


@DBOS.workflow(name=WORKFLOW, max_recovery_attempts=10_000)
async def work(job: dict[str, Any]) -> None:
    """Run a job's commands, one after the other.

    Args:
        job: its `folder`, `lock`, and `commands`, lists of arguments.

    Raises:
        JobError: a command failed.
    """
    for number, arguments in enumerate(job["commands"]):
        await run_command(job["folder"], job["lock"], number, arguments)


@DBOS.step(name="command", preemptible=True)
async def run_command(folder: str, lock: str, number: int, arguments: list[str]) -> None:
    """Run one command until it is done, and again where its process was killed from outside.

    Raises:
        JobError: the command refused or failed.
    """
    running = Running(Path(folder), lock, number, arguments)
    deaths: dict[str, int] = {}
    while (code := await running.to_the_end()) < 0:
        deaths[running.stage] = deaths.get(running.stage, 0) + 1
        if deaths[running.stage] == _MOST_DEATHS:
            raise JobError(
                f"A job's process must live, but it was killed {_MOST_DEATHS} times by signal {-code} at "
                f"{running.stage!r}, for which too little memory is the usual reason; take a smaller model or dtype "
                "bfloat16."
            )
    if code:
        raise JobError(running.reason(code))


class Running:
    """A command at work: its process, and what it tells.

    Args:
        folder: the job's.
        lock: file that keeps two jobs from one run.
        number: of the command in the job.
        arguments: of `secateur`.
    """

    def __init__(self, folder: Path, lock: str, number: int, arguments: list[str]) -> None:
        self._folder, self._lock, self._number, self._arguments = folder, lock, number, arguments
        self.stage = "Starting"
        self._begun = 0  # where the log of this attempt begins
        self._told: dict[str, Any] = {"command": number, "stage": self.stage, "said": []}

    async def to_the_end(self) -> int:
        """Run the command once and return its exit code, below 0 for the signal that killed it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        output = self._folder / OUTPUT.format(self._number)
        with (self._folder / LOG).open("ab") as log:
            self._begun = log.tell()
            process = await asyncio.create_subprocess_exec(
                *[sys.executable, "-m", "search.service.job_process", self._lock, str(output), *self._arguments],
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=_LONGEST_LINE,
                start_new_session=True,
            )
        try:
            assert process.stdout is not None
            async for line in process.stdout:
                self._hear(line)
            return await process.wait()
        except asyncio.CancelledError:
            await _stop(process)
            raise

    def _hear(self, line: bytes) -> None:
        with contextlib.suppress(ValueError):  # half a line, of a process that was killed
            event = json.loads(line)
            if "said" in event:
                self._told["said"] = [*self._told["said"], event["said"]][-_LINES_KEPT:]
            else:
                self.stage = event["stage"]
                self._told |= event
            write_progress(self._folder, self._told)

    def reason(self, code: int) -> str:
        """Return why the command failed, in the words it ended its log with.

        Args:
            code: its exit code.
        """
        with (self._folder / LOG).open("rb") as log:
            log.seek(max(self._begun, log.seek(0, os.SEEK_END) - _LONGEST_REASON))
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        for line in reversed(lines):
            if line.startswith("secateur: "):
                return line.removeprefix("secateur: ")
        return lines[-1] if lines else f"The command must succeed, but ended with {code} and no word."


def write_progress(folder: Path, told: dict[str, Any]) -> None:
    """Write how far a job is, whole or not at all; on a full disk nobody is told, and the job itself says why."""
    beside = folder / f".{PROGRESS}.partial"
    with contextlib.suppress(OSError):
        beside.write_text(json.dumps({**told, "at": time.time()}))
        beside.replace(folder / PROGRESS)


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Ask a job to stop as Ctrl-C does, and kill it where it does not."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
        try:
            await asyncio.wait_for(process.wait(), _GRACE_SECONDS)
        except TimeoutError:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


if __name__ == "__main__":
    main()
