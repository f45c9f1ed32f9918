"""What a service holds while it lives, and how routes come by it."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, cast

from fastapi import Depends, HTTPException, Request
from fastapi.params import Path as PathParameter

from search.folder import RunFolder
from search.service.asking import Oracle
from search.service.gate import Gate
from search.service.guard import Tokens
from search.service.queue import JobQueue
from search.service.settings import ServiceSettings
from search.service.telemetry import Metrics
from search.service.workers import Workers


@dataclass(frozen=True)
class Service:
    """A service at work."""

    settings: ServiceSettings
    gate: Gate
    queue: JobQueue
    oracle: Oracle
    workers: Workers
    tokens: Tokens
    metrics: Metrics


# Dependencies are coroutines although they wait for nothing: others are called in a thread, which takes longer.


async def service_of(request: Request) -> Service:
    """Return the service that a request came to."""
    return cast("Service", request.app.state.service)


Served = Annotated[Service, Depends(service_of)]
RunPath = Annotated[str, PathParameter(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", description="Name of a run.")]


async def run_of(service: Served, run: RunPath) -> RunFolder:
    """Return the folder of the run that a route is about; 404 where there is none."""
    folder = _folder(service.gate.run(run))
    if not folder.config_file.exists():
        raise HTTPException(404, f"A run must be there to be asked about, but {run!r} is not; see GET /api/runs.")
    return folder


@lru_cache(maxsize=256)
def _folder(path: Path) -> RunFolder:
    """Return a folder of which the many paths are put together once."""
    return RunFolder(path)


Run = Annotated[RunFolder, Depends(run_of)]
