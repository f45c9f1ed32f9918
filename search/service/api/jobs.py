"""Jobs: queued, watched, cancelled, taken up again, deleted."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, HTTPException, Path, Query, Response
from fastapi.responses import PlainTextResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from search.service.answers import JobTold, Refused
from search.service.queue import UNFINISHED, Job, JobMissingError
from search.service.requests import JobAsked
from search.service.state import Served, Service

Told = dict[int | str, dict[str, Any]]
router = APIRouter(prefix="/api/jobs", tags=["jobs"])
JobId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="Id of a job.")]
_MISSING: Told = {404: {"model": Refused, "description": "There is no such job."}}
_CONFLICT: Told = {409: {"model": Refused, "description": "The job, or the run, is in another state."}}
_LOOK_SECONDS = 0.4  # between two looks at a job that is watched


async def existing(service: Served, job: JobId) -> str:
    """Return a job's id; refused before anything is sent where there is none."""
    return (await asyncio.to_thread(service.queue.get, job)).id


Existing = Annotated[str, Depends(existing)]


@router.post("", status_code=201, responses={**_CONFLICT, 422: {"model": Refused, "description": "It cannot be done."}})
async def submit(
    asked: JobAsked,
    service: Served,
    response: Response,
    idempotency_key: Annotated[
        str | None,
        Header(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="The same key queues the same job once, however often."),
    ] = None,
) -> JobTold:
    """Queue a job: a search, a recovery, a study of calibration, an export, or a text to hear."""
    queued = await asyncio.to_thread(_submit, service, asked, idempotency_key or uuid.uuid4().hex)
    response.headers["location"] = f"/api/jobs/{queued.id}"
    return JobTold.of(queued)


def _submit(service: Service, asked: JobAsked, job_id: str) -> Job:
    try:
        return service.queue.get(job_id)
    except JobMissingError:
        pass
    if len(service.queue.unfinished()) >= service.settings.most_unfinished:
        raise HTTPException(
            429,
            f"At most {service.settings.most_unfinished} jobs may wait, and so many do; wait until some are finished.",
            {"retry-after": "60"},
        )
    title, run, commands = asked.prepared(service.gate, service.queue.folder(job_id))
    request = asked.model_dump(mode="json", by_alias=True)
    lock = (service.settings.home / "locks" / f"{run}.lock").absolute()
    lock.parent.mkdir(parents=True, exist_ok=True)
    return service.queue.submit(job_id, asked.kind, title, run, request, commands, lock)


@router.get("")
async def jobs(
    service: Served,
    state: Literal["queued", "running", "succeeded", "failed", "cancelled"] | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[JobTold]:
    """Return jobs, the newest first."""
    return [JobTold.of(job) for job in await asyncio.to_thread(service.queue.jobs, state, limit)]


@router.get("/{job}", responses=_MISSING)
async def one(service: Served, job: JobId) -> JobTold:
    """Return a job as it is now."""
    return JobTold.of(await asyncio.to_thread(service.queue.get, job))


@router.get("/{job}/events", response_class=EventSourceResponse, responses=_MISSING)
async def events(service: Served, job: Existing) -> AsyncIterator[ServerSentEvent]:
    """Tell of a job whenever it changes, as server-sent events `job`, until it is finished."""
    last = ""
    while True:
        found = await asyncio.to_thread(service.queue.get, job)
        told = JobTold.of(found).model_dump(mode="json")
        if (text := json.dumps(told)) != last:
            last = text
            yield ServerSentEvent(data=told, event="job")
        if found.state not in UNFINISHED:
            return
        await asyncio.sleep(_LOOK_SECONDS)


@router.get("/{job}/log", response_class=PlainTextResponse, responses=_MISSING)
async def log(service: Served, job: JobId) -> str:
    """Return the end of what a job printed."""
    return await asyncio.to_thread(service.queue.log, job)


@router.get("/{job}/output", responses=_MISSING)
async def output(service: Served, job: JobId) -> list[dict[str, object] | None]:
    """Return what each of a job's commands printed for machines; nothing of those that are not done."""
    return await asyncio.to_thread(service.queue.output, job)


@router.post("/{job}/cancel", responses={**_MISSING, **_CONFLICT})
async def cancel(service: Served, job: JobId) -> JobTold:
    """Cancel a job that waits or runs; what its run measured stays."""
    return JobTold.of(await asyncio.to_thread(service.queue.cancel, job))


@router.post("/{job}/resume", responses={**_MISSING, **_CONFLICT})
async def resume(service: Served, job: JobId) -> JobTold:
    """Queue a cancelled or failed job again; it goes on where it stopped."""
    return JobTold.of(await asyncio.to_thread(service.queue.resume, job))


@router.delete("/{job}", status_code=204, responses={**_MISSING, **_CONFLICT})
async def delete(service: Served, job: JobId) -> None:
    """Forget a finished job and its log; its run stays."""
    await asyncio.to_thread(service.queue.delete, job)
