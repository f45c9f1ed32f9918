"""A PostgreSQL server of one's own for a while, from Debian's package, on the loopback and in a temporary folder."""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

# Of the newest that Debian has installed, or where the variable says.
BINARIES = Path(os.environ.get("SECATEUR_POSTGRES") or max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path()))
_PATIENCE = 120.0  # seconds


def missing() -> str | None:
    """Return why there can be no server here, if so."""
    if not (BINARIES / "initdb").exists():
        return "needs PostgreSQL (Debian's package postgresql), or SECATEUR_POSTGRES to say where"
    if os.geteuid() == 0 and _unprivileged() is None:
        return "needs a user postgres or nobody, since PostgreSQL refuses root"
    return None


@contextmanager
def server(durable: bool = False) -> Iterator[str]:
    """Run a server; yields the URL of its database, password included.

    Args:
        durable: whether it waits for the disk, as a real one does.
    """
    user = _unprivileged() if os.geteuid() == 0 else None
    folder, password = Path(tempfile.mkdtemp(prefix="secateur-postgres-")), secrets.token_hex(8)
    try:
        (folder / "password").write_text(password)
        if user is not None:
            for path in (folder, folder / "password"):
                shutil.chown(path, user)
        data = folder / "data"
        initdb = [BINARIES / "initdb", "-D", data, "-U", "gardener", "-A", "scram-sha-256", "--no-sync"]
        _call([*initdb, f"--pwfile={folder / 'password'}"], folder, user)
        port = free_port()
        options = ["-h", "127.0.0.1", "-k", "", "-p", str(port), *([] if durable else ["-F"])]
        process = subprocess.Popen(
            [BINARIES / "postgres", "-D", data, *options],
            cwd=folder,
            user=user,
            env=_environment(),
            stdout=subprocess.DEVNULL,
            stderr=(folder / "log").open("w"),
        )
        try:
            _wait(process, port, folder / "log")
            yield f"postgresql://gardener:{password}@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGINT)  # SIGTERM would wait for connections to end
            process.wait(_PATIENCE)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _unprivileged() -> str | None:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in known), None)


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"}


def _call(command: list[object], folder: Path, user: str | None) -> None:
    done = subprocess.run(
        list(map(str, command)), cwd=folder, user=user, env=_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + _PATIENCE
    ready = [BINARIES / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
    while subprocess.run(ready, check=False).returncode:
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(log.read_text())
        time.sleep(0.05)
