"""How the web process reaches PostgreSQL: `evaluator.database` comes with torch, which is never loaded there."""

from typing import Any

import sqlalchemy as sa

from space import SettingError

_CONNECT_SECONDS = 10


def engine_of(url: str | sa.URL, schema: str | None = None) -> sa.Engine:
    """Return an engine for a database; nothing is opened yet.

    Args:
        url: of the database.
        schema: in which unqualified tables are; None takes the database's own.
    """
    told: dict[str, Any] = {"connect_timeout": _CONNECT_SECONDS}
    told["client_encoding"] = "utf8"  # else a database in the C locale answers in bytes
    if schema is not None:
        told["options"] = f"-csearch_path={schema}"
    place = sa.make_url(url).set(drivername="postgresql+psycopg")
    return sa.create_engine(place, connect_args=told, hide_parameters=True)


def reach(option: str, text: str) -> None:
    """Check that a database can be reached.

    Args:
        option: of the command line, by which it was named.
        text: its URL, which is not told, since it may hold a password.

    Raises:
        SettingError: it is none of PostgreSQL's, or does not answer, or psycopg is not installed.
    """
    try:
        url = sa.make_url(text)
        if url.get_backend_name() not in ("postgres", "postgresql"):
            raise ValueError
    except (sa.exc.ArgumentError, ValueError):
        raise SettingError(
            f"The database of {option} must be given as postgresql://USER@HOST/NAME, but what was given is no such "
            "URL; correct it, or leave it out to keep all in SQLite, among the runs."
        ) from None
    try:
        engine = engine_of(url)
        with engine.connect():
            pass
        engine.dispose()
    except ImportError:
        raise SettingError(
            "PostgreSQL is spoken to by psycopg, which is not installed; pip install 'secateur[postgres]'."
        ) from None
    except sa.exc.DatabaseError:
        place = f"{url.host or 'localhost'}:{url.port or 5432}/{url.database or ''}"
        raise SettingError(
            f"The database of {option} must be within reach, but {place} is not; start it, or correct its address, "
            "user or password."
        ) from None
