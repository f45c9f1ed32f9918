"""Whom a service answers: hosts, tokens, origins and rates, looked at before anything of a request is read.

A token is 256 random bits, shown once; the service keeps its SHA-256, and compares in constant time. A browser gets a
session instead, in a cookie that scripts cannot read and other sites cannot send.
"""

import hashlib
import hmac
import json
import logging
import os
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from search.service.settings import ServiceSettings
from search.service.telemetry import Metrics, log

COOKIE = "secateur_session"
SESSION_SECONDS = 12 * 3600
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_OPEN_PATHS = ("/healthz", "/login")
_MOST_CLIENTS = 10_000  # whose rates are remembered
_WRONG_TOKENS_PER_MINUTE = 10.0
_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; object-src 'none'; "
        b"base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class Tokens:
    """The one token of a service, and the sessions that were begun with it.

    Args:
        file: where the token's hash is kept, readable by its owner alone.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._sessions: dict[str, float] = {}  # hash of the session: when it ends

    def make(self) -> str:
        """Make a new token in place of any earlier one, and return it for the only time."""
        token = secrets.token_urlsafe(32)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        beside = self._file.with_name(f".{self._file.name}.partial")
        beside.unlink(missing_ok=True)
        with open(beside, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as stream:
            stream.write(_hashed(token) + "\n")
        beside.replace(self._file)
        return token

    @property
    def exists(self) -> bool:
        """Whether a token was made."""
        return self._file.exists()

    def accepts(self, token: str) -> bool:
        """Return whether a token is the right one."""
        kept = self._file.read_text().strip() if self.exists else ""
        return hmac.compare_digest(_hashed(token), kept)

    def begin(self) -> str:
        """Begin a session and return what names it."""
        now = time.time()
        self._sessions = {name: end for name, end in self._sessions.items() if end > now}
        session = secrets.token_urlsafe(32)
        self._sessions[_hashed(session)] = now + SESSION_SECONDS
        return session

    def holds(self, session: str) -> bool:
        """Return whether a session is open."""
        return self._sessions.get(_hashed(session), 0.0) > time.time()

    def end(self, session: str) -> None:
        """End a session."""
        self._sessions.pop(_hashed(session), None)


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


@dataclass
class Rate:
    """How often clients may do something: a bucket each, that fills with time.

    Args:
        per_second: of one client, in the long run.
        burst: at once.
    """

    per_second: float
    burst: float
    _left: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)  # by client: tokens, at what time

    def take(self, client: str) -> float:
        """Count one and return 0, or return the seconds that the client is to wait."""
        now = time.monotonic()
        left, then = self._left.pop(client, (self.burst, now))
        left = min(self.burst, left + (now - then) * self.per_second)
        wait = 0.0 if left >= 1 else (1 - left) / self.per_second
        self._left[client] = (left if wait else left - 1, now)
        if len(self._left) > _MOST_CLIENTS:
            self._left.popitem(last=False)
        return wait


class Guard:
    """Middleware that refuses what the service does not answer, each refusal logged and counted.

    Args:
        app: what is guarded.
        settings: the operator's.
        tokens: of the service.
        metrics: where refusals are counted.
    """

    def __init__(self, app: ASGIApp, settings: ServiceSettings, tokens: Tokens, metrics: Metrics) -> None:
        self._app, self._settings, self._tokens, self._metrics = app, settings, tokens, metrics
        rate = settings.requests_per_second
        self._requests = Rate(rate, rate)
        self._submissions = Rate(settings.submissions_per_minute / 60, settings.submissions_per_minute)
        self._wrong = Rate(_WRONG_TOKENS_PER_MINUTE / 60, _WRONG_TOKENS_PER_MINUTE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refusal(scope, headers)
        if refused is None:
            await self._app(scope, receive, _with_headers(send))
            return
        await self._refuse(scope, send, *refused)

    def _refusal(self, scope: Scope, headers: dict[bytes, str]) -> tuple[int, str, str, dict[str, str]] | None:
        """Return status, reason, sentence and headers of a refusal; None lets the request in."""
        client, path, method = (scope.get("client") or ("?",))[0], scope["path"], scope["method"]
        if wait := self._requests.take(client):
            return _too_many("requests", wait)
        if self._settings.is_local and _host_of(headers.get(b"host", "")) not in ("localhost", "127.0.0.1", "[::1]"):
            # A page elsewhere may have its own name point to this machine.
            return 400, "host", "The Host must be localhost, which this service binds to; open it by that name.", {}
        if self._settings.needs_token and not self._may(path, headers):
            if wait := self._wrong.take(client):
                return _too_many("wrong tokens", wait)
            told = {"www-authenticate": 'Bearer realm="secateur"'}
            return 401, "token", "A request must carry the service's token as Authorization: Bearer TOKEN.", told
        if method in _SAFE_METHODS:
            return None
        if not _same_origin(headers):
            return 403, "origin", "A request that changes something must come from the service's own page.", {}
        if "/jobs" in path and method == "POST" and (wait := self._submissions.take(client)):
            return _too_many("submissions", wait)
        return None

    def _may(self, path: str, headers: dict[bytes, str]) -> bool:
        if path in _OPEN_PATHS or path.startswith("/static/"):
            return True
        kind, _, token = headers.get(b"authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self._tokens.accepts(token.strip())
        session = session_of(headers.get(b"cookie", ""))
        return session is not None and self._tokens.holds(session)

    async def _refuse(
        self, scope: Scope, send: Send, status: int, reason: str, sentence: str, told: dict[str, str]
    ) -> None:
        self._metrics.refusals.labels(reason).inc()
        log(
            "refused",
            logging.WARNING,
            id=scope["state"]["request_id"],
            reason=reason,
            path=scope["path"],
            method=scope["method"],
        )
        wants_page = status == 401 and scope["method"] == "GET" and not scope["path"].startswith(("/api", "/metrics"))
        body = b"" if wants_page else json.dumps({"detail": sentence}).encode()
        kind = [] if wants_page else [(b"content-type", b"application/json")]
        told = {"location": "/login"} if wants_page else told
        extra = [(name.encode(), value.encode()) for name, value in told.items()]
        length = (b"content-length", str(len(body)).encode())
        start = {"type": "http.response.start", "status": 303 if wants_page else status}
        await _with_headers(send)({**start, "headers": [*kind, length, *extra]})
        await send({"type": "http.response.body", "body": body})


def session_of(cookies: str) -> str | None:
    """Return the session that a Cookie header names; None where it names none."""
    try:
        found = SimpleCookie(cookies).get(COOKIE)
    except CookieError:
        return None
    return found.value if found else None


def _host_of(header: str) -> str:
    return header.rsplit(":", 1)[0].lower() if not header.endswith("]") else header.lower()


def _same_origin(headers: dict[bytes, str]) -> bool:
    """Return whether a request comes from the service's own page, or from no browser."""
    if headers.get(b"sec-fetch-site", "none") not in ("same-origin", "none"):
        return False
    origin = headers.get(b"origin")
    return origin is None or origin.split("://")[-1] == headers.get(b"host", "")


def _too_many(what: str, wait: float) -> tuple[int, str, str, dict[str, str]]:
    sentence = f"A client may send only so many {what}, and this one sent more; wait {wait:.1f} s."
    return 429, what.replace(" ", "_"), sentence, {"retry-after": str(int(wait) + 1)}


def _with_headers(send: Send) -> Send:
    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            have = {name.lower() for name, _ in message.get("headers", [])}
            message["headers"] = [*message.get("headers", []), *(each for each in _HEADERS if each[0] not in have)]
        await send(message)

    return answer


def refusals_told() -> dict[int | str, dict[str, Any]]:
    """Return what the guard may answer, for the documentation of every route."""
    words = {
        400: "The request cannot be read, or its Host is not the service's.",
        401: "The token is missing or wrong.",
        403: "The request comes from another site's page.",
        429: "The client sends too many requests.",
    }
    return {status: {"description": text} for status, text in words.items()}
