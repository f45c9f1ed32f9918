"""The web application: routes, whom it answers, and how its errors are told."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException  # FastAPI's own is a kind of it

from search.refusals import refusal
from search.service.answers import Refused
from search.service.api import ROUTERS
from search.service.asking import Oracle
from search.service.gate import Gate
from search.service.guard import Guard, Tokens, refusals_told
from search.service.page import STATIC, refused_page
from search.service.page import router as page
from search.service.queue import JobMissingError, JobQueue
from search.service.settings import ServiceSettings
from search.service.state import Service
from search.service.telemetry import Metrics, Telemetry, log
from search.service.workers import Workers
from space import RunFolderError, SecateurError

_ABOUT = "Architecture search with an accuracy predictor for pruning language models."
_ALWAYS: dict[int | str, dict[str, Any]] = {
    **refusals_told(),
    413: {"description": "The body is too large."},
    507: {"model": Refused, "description": "The disk is full."},
}


def create_app(settings: ServiceSettings) -> FastAPI:
    """Return the application of a service, which begins when it is started and ends its workers when it stops.

    Args:
        settings: the operator's.
    """
    metrics, tokens = Metrics(), Tokens(settings.home / "token.sha256")

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        settings.home.mkdir(parents=True, exist_ok=True)
        workers, oracle = Workers(settings), Oracle()
        queue = JobQueue(settings.database_url, (settings.home / "jobs").absolute())
        workers.wait_for_earlier()
        if again := queue.take_up_again(workers.executors):
            log("jobs taken up again", count=again)
        app.state.service = Service(settings, Gate(settings), queue, oracle, workers, tokens, metrics)
        workers.start()
        log("ready", host=settings.host, port=settings.port, slots=settings.slots)
        try:
            yield
        finally:
            workers.stop()
            oracle.close()
            queue.close()

    app = FastAPI(
        title="Secateur",
        description=_ABOUT,
        version="1",
        lifespan=life,
        docs_url=None,  # both fetch their scripts from elsewhere; the page has its own
        redoc_url=None,
        max_body_size=settings.most_body_bytes,
        responses=_ALWAYS,
    )
    for router in ROUTERS:
        app.include_router(router)
    app.include_router(page)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_middleware(Guard, settings=settings, tokens=tokens, metrics=metrics)
    app.add_middleware(Telemetry, metrics=metrics)
    app.add_exception_handler(HTTPException, _missing)
    app.add_exception_handler(RequestValidationError, _unreadable)
    app.add_exception_handler(SecateurError, _refused)
    app.add_exception_handler(OSError, _disk)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    """Tell why what was asked for cannot be done."""
    missing = isinstance(error, JobMissingError)
    status = 404 if missing else 409 if isinstance(error, RunFolderError) else 422
    log("refused", logging.WARNING, id=request.state.request_id, reason=type(error).__name__, sentence=str(error)[:500])
    return refused_page(request, str(error), status) or JSONResponse({"detail": str(error)}, status)


async def _missing(request: Request, error: Exception) -> Response:
    """Tell that what a path names is not there."""
    assert isinstance(error, HTTPException)
    page = refused_page(request, str(error.detail), error.status_code)
    return page or await http_exception_handler(request, error)


async def _unreadable(request: Request, error: Exception) -> Response:
    """Tell what of a request is not as its documentation says, without repeating what was sent."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    sentence = f"{place} must be as /openapi.json says: {first['msg']}; change it."
    return refused_page(request, sentence, 422) or JSONResponse({"detail": sentence}, 422)


async def _disk(request: Request, error: Exception) -> Response:
    """Tell that the disk is full; what else the system refuses is a fault of the service."""
    sentence = refusal(error)
    if sentence is None:
        raise error
    return JSONResponse({"detail": sentence}, 507)
