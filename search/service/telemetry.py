"""What an operator sees of a service: a line of JSON for each request, and figures for Prometheus.

A line has the request's id, which the answer carries as well; it never has headers, queries or bodies, where secrets
would be.
"""

import json
import logging
import re
import sys
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOGGER = logging.getLogger("secateur.service")
_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return a record as one line of JSON."""
        told: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "told", {}),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told)


def begin_logging() -> None:
    """Write what the service logs to standard error from now on, a line of JSON each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    LOGGER.handlers = [handler]
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


def log(event: str, level: int = logging.INFO, **told: Any) -> None:
    """Log an event with what there is to say about it, none of it secret."""
    LOGGER.log(level, event, extra={"told": told})


class Metrics:
    """The figures of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter("secateur_requests", "Answered requests.", ["method", "route", "status"], registry=own)
        self.seconds = Histogram(
            "secateur_request_seconds", "To the answer's end.", ["route"], buckets=_SECONDS, registry=own
        )
        self.predictions = Counter("secateur_predictions", "Architectures predicted.", registry=own)
        self.jobs = Gauge("secateur_jobs", "Jobs by state.", ["state"], registry=own)
        self.refusals = Counter("secateur_refusals", "Requests refused at the door.", ["reason"], registry=own)
        self.workers = Gauge("secateur_workers", "Workers alive.", registry=own)


class Telemetry:
    """Middleware around all others: ids, log lines and figures of requests."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request and tell of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = dict(scope["headers"]).get(b"x-request-id", b"")
        own = asked.decode() if _SANE_ID.fullmatch(asked) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = own
        status, started = 500, time.perf_counter()

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", own.encode())]
            await send(message)

        try:
            await self._app(scope, receive, answer)
        finally:
            self._tell(scope, own, status, time.perf_counter() - started)

    def _tell(self, scope: Scope, own: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")  # not the path, of which there are endlessly many
        self._metrics.requests.labels(scope["method"], route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        # Predictions come by the thousand a second, and say nothing.
        if status >= 400 or not route.endswith("/predict"):
            client = scope.get("client")
            log(
                "request",
                logging.INFO if status < 400 else logging.WARNING,
                id=own,
                method=scope["method"],
                path=scope["path"],
                status=status,
                milliseconds=round(1000 * seconds, 2),
                client=client[0] if client else None,
            )
