"""The process of a service: what `secateur serve` starts."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from filelock import FileLock, Timeout

from search.service.app import create_app
from search.service.guard import Tokens
from search.service.postgres import reach
from search.service.settings import ServiceSettings
from search.service.telemetry import begin_logging
from space import RunFolderError, SettingError


def serve(settings: ServiceSettings, new_token: bool = False) -> None:
    """Serve until Ctrl-C.

    Args:
        settings: the operator's.
        new_token: whether to make a new token in place of the old one.

    Raises:
        SettingError: the address cannot be listened on, or a database is none or cannot be reached.
        RunFolderError: another service has the folder of runs.
    """
    _check_databases(settings)
    settings.home.mkdir(parents=True, exist_ok=True)
    with _alone(settings):
        _serve(settings, _listening(settings), new_token)


def _check_databases(settings: ServiceSettings) -> None:
    """Reach the databases that the operator names, before any job finds out."""
    if settings.database is not None:
        reach("--database", settings.database.get_secret_value())
    if variable := settings.run_database:
        url = os.environ.get(variable)
        if not url:
            raise SettingError(
                f"The URL of the runs' database must be in the environment variable {variable}, but that is not set; "
                f"export {variable}=postgresql://USER@HOST/NAME."
            )
        reach("--run-database", url)


@contextmanager
def _alone(settings: ServiceSettings) -> Iterator[None]:
    try:
        with FileLock(settings.home / "service.lock", timeout=0):
            yield
    except Timeout:
        raise RunFolderError(
            f"One service must have a folder of runs to itself, but another serves {str(settings.runs)!r}; stop it, or "
            "choose another folder with --runs."
        ) from None


def _serve(settings: ServiceSettings, listening: socket.socket, new_token: bool) -> None:
    port = listening.getsockname()[1]
    tokens = Tokens(settings.home / "token.sha256")
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(f"Secateur serves {settings.runs} on http://{host}:{port}/  (Ctrl-C ends it)", flush=True)
    if new_token or (settings.needs_token and not tokens.exists):
        print(f"The token, which is shown only now: {tokens.make()}", flush=True)
    begin_logging()
    config = uvicorn.Config(
        create_app(settings.model_copy(update={"port": port})),
        log_config=None,  # the service tells of requests itself
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=3,  # those who watch a job would never go
        h11_max_incomplete_event_size=64 << 10,
    )
    server = uvicorn.Server(config)
    server.run(sockets=[listening])
    if not server.started:
        sys.exit(1)


def _listening(settings: ServiceSettings) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        return found
    except OSError as error:
        raise SettingError(
            f"A service must listen on an address that is this machine's and free, but {settings.host}:{settings.port} "
            f"is not ({error.strerror}); choose another with --host or --port."
        ) from None
