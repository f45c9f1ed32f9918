"""Where a store of pairs lies: a file of SQLite, or a schema of a PostgreSQL database.

Each run has a schema of its own, which holds its pairs and its Optuna study: what is in a file each without a database.
So a run sees its own pairs only, its numbers depend on nothing that other runs measured on other machines, and
`DROP SCHEMA ... CASCADE` takes it away whole. A run that is to know another's pairs says so (`--resume`).
"""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa

from space import RunFolderError, SettingError

DRIVER = "postgresql+psycopg"
# How long one waits for another process's transaction; SQLite's own five seconds are short on a slow, busy disk.
_PATIENCE_SECONDS = 60.0
_CONNECT_SECONDS = 10
_LONGEST_NAME = 40  # characters of a run's name in the name of its schema, of the 63 that PostgreSQL keeps


@dataclass(frozen=True, repr=False)
class Database:
    """A schema of a PostgreSQL database. Says where it is, but never the password.

    Args:
        url: of the database.
        schema: of lower-case letters, digits and underscores.
    """

    url: sa.URL
    schema: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", self.schema):
            raise SettingError(
                "The name of a schema must be of lower-case letters, digits and underscores, 63 at most, but is "
                f"{self.schema!r}; rename it."
            )

    @classmethod
    def parse(cls, text: str, schema: str) -> Self:
        """Read a URL as PostgreSQL writes it, `postgresql://USER@HOST/NAME`.

        Raises:
            SettingError: it is none; what it is instead is not told, since it may hold a password.
        """
        try:
            url = sa.make_url(text)
        except (sa.exc.ArgumentError, ValueError):
            raise SettingError(
                "A database must be given as postgresql://USER@HOST/NAME, but what was given is no URL; correct it."
            ) from None
        if url.drivername not in ("postgres", "postgresql", DRIVER):
            raise SettingError(
                f"A database must be PostgreSQL's, postgresql://USER@HOST/NAME, but this one is {url.drivername}'s; "
                "leave it out to keep the pairs in SQLite, in the run folder."
            )
        if password := url.query.get("password"):  # from where SQLAlchemy would print it
            url = url.difference_update_query(["password"]).set(password=str(password))
        return cls(url.set(drivername=DRIVER), schema)

    @property
    def connect_args(self) -> dict[str, Any]:
        """What connections are made with, so that unqualified tables are those of the schema."""
        given = str(self.url.query.get("options", ""))
        options = f"{given} -csearch_path={self.schema}".strip()
        return {"connect_timeout": _CONNECT_SECONDS, "client_encoding": "utf8", "options": options}

    @property
    def server(self) -> str:
        """Host and name, as they may be told."""
        host = self.url.host or self.url.query.get("host") or "localhost"
        port = f":{self.url.port}" if self.url.port else ""
        return f"{host}{port}/{self.url.database or ''}"

    def __repr__(self) -> str:
        return f"Database({self.server}, {self.schema})"

    __str__ = __repr__


Place = Path | Database


def schema_name(run: str) -> str:
    """Return a name for the schema of a run, which no other run has."""
    name = re.sub(r"[^a-z0-9]+", "_", run.lower()).strip("_")[:_LONGEST_NAME]
    return f"run_{name}_{secrets.token_hex(4)}"


def connect(place: Place) -> sa.Engine:
    """Return an engine for a place; nothing is opened yet.

    Raises:
        SettingError: what speaks to PostgreSQL is not installed.
    """
    if isinstance(place, Path):
        return sa.create_engine(f"sqlite:///{place}", connect_args={"timeout": _PATIENCE_SECONDS})
    try:
        # A run that fits for minutes finds that the server was started anew meanwhile.
        return sa.create_engine(
            place.url, connect_args=place.connect_args, pool_pre_ping=True, pool_size=2, hide_parameters=True
        )
    except ImportError:
        raise SettingError(
            "PostgreSQL is spoken to by psycopg, which is not installed; pip install 'secateur[postgres]'."
        ) from None


@contextmanager
def told_plainly(place: Place) -> Iterator[None]:
    """Say of what a database library raises which file is damaged, or which server cannot be reached.

    A disk that is full goes by as it is: the command line knows what to say of it.
    """
    try:
        yield
    except sa.exc.DatabaseError as error:
        if "full" in str(error) or isinstance(error, sa.exc.IntegrityError | sa.exc.ProgrammingError):
            raise
        if isinstance(place, Path):
            raise damaged(place, str(error.orig)) from error
        raise unreachable(place, error) from None  # what it came from may tell how the connection was made


def damaged(file: Path, reason: str) -> RunFolderError:
    """Return what is said of a SQLite file that is not intact."""
    return RunFolderError(
        f"{file.name} must be an intact SQLite file, but {str(file)!r} is not ({reason}); restore it, or choose "
        "another run folder."
    )


def unreachable(place: Database, error: sa.exc.DatabaseError) -> RunFolderError:
    """Return what is said of a database that does not answer, or not as it should."""
    reason = next(iter(str(error.orig).strip().splitlines()), type(error).__name__)
    if password := place.url.password:
        reason = reason.replace(str(password), "***")
    return RunFolderError(
        f"The database of a run must be within reach, but {place.server} is not ({reason}); start it or correct its "
        "address, and repeat the command, it goes on from here."
    )


def reach(database: Database) -> None:
    """Check that a database answers.

    Raises:
        SettingError: what speaks to it is not installed.
        RunFolderError: it does not answer.
    """
    _run(database, sa.select(1))


def drop_schema(database: Database) -> None:
    """Remove a schema with all that is in it."""
    _run(database, sa.schema.DropSchema(database.schema, cascade=True, if_exists=True))


def _run(database: Database, statement: sa.Executable) -> None:
    engine = connect(database)
    try:
        with told_plainly(database), engine.begin() as connection:
            connection.execute(statement)
    finally:
        engine.dispose()
