"""What can be named in requests, and whether the service is well."""

import asyncio
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from search.service.answers import Named
from search.service.state import Served

router = APIRouter(tags=["system"])


@router.get("/api/models")
async def models(service: Served) -> Named:
    """Return the models that jobs can be about."""
    return Named(names=await asyncio.to_thread(service.gate.models), hub=service.settings.hub)


@router.get("/api/data")
async def data(service: Served) -> Named:
    """Return the files that texts and examples can be read from."""
    return Named(names=await asyncio.to_thread(service.gate.data), hub=service.settings.hub)


_DOWN: dict[int | str, dict[str, Any]] = {
    503: {"description": "The queue or a worker is down.", "content": {"application/json": {}}}
}


@router.get("/healthz", responses=_DOWN)
async def health(service: Served) -> Response:
    """Say whether the queue answers and every worker lives."""
    told: dict[str, Any] = {"workers": service.workers.alive, "slots": service.settings.slots}
    try:
        await asyncio.to_thread(service.queue.check)
        told["queue"] = "up"
    except Exception:  # whatever it is, the answer is that it is down
        told["queue"] = "down"
    well = told["queue"] == "up" and told["workers"] == told["slots"]
    return JSONResponse({"status": "up" if well else "down", **told}, 200 if well else 503)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(service: Served) -> Response:
    """Return figures for Prometheus."""
    own = service.metrics
    for state, count in (await asyncio.to_thread(service.queue.counts)).items():
        own.jobs.labels(state).set(count)
    own.workers.set(service.workers.alive)
    return Response(generate_latest(own.registry), media_type=CONTENT_TYPE_LATEST)
