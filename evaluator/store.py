"""Measured pairs in SQLite: one row per architecture and protocol, never two, each in a transaction of its own."""

import hashlib
import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from evaluator.measurement import Measurement, Protocol
from evaluator.slopes import Slopes
from evaluator.stream import Stream
from space import Architecture, Choice, RunFolderError

_BLOCKS = np.dtype("<f4")
_APPLICATION_ID = 0x5ECA7E01  # marks the file as ours, in SQLite's header
_VERSION = 2

_metadata = sa.MetaData()
_protocols = sa.Table(
    "protocols",
    _metadata,
    sa.Column("fingerprint", sa.String(16), primary_key=True),
    sa.Column("content", sa.Text, nullable=False),  # canonical JSON
)
_pairs = sa.Table(
    "pairs",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("fingerprint", sa.String(16), nullable=False),
    sa.Column("protocol", sa.String(16), sa.ForeignKey("protocols.fingerprint"), nullable=False),
    sa.Column("origin", sa.String(16), nullable=False),
    sa.Column("architecture", sa.Text, nullable=False),  # canonical JSON
    sa.Column("nll", sa.Float, nullable=False),
    sa.Column("nll_standard_error", sa.Float, nullable=False),
    sa.Column("kl", sa.Float, nullable=False),
    sa.Column("kl_standard_error", sa.Float, nullable=False),
    sa.Column("agreement", sa.Float, nullable=False),
    sa.Column("tokens", sa.Integer, nullable=False),
    sa.Column("wall_seconds", sa.Float, nullable=False),
    sa.Column("nll_blocks", sa.LargeBinary, nullable=False),  # float32, little-endian
    sa.Column("kl_blocks", sa.LargeBinary, nullable=False),
    sa.Column("measured_at", sa.String(32), nullable=False),  # ISO 8601, UTC
    sa.UniqueConstraint("fingerprint", "protocol"),
)
_slopes = sa.Table(
    "slopes",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("fingerprint", sa.String(16), nullable=False),
    sa.Column("protocol", sa.String(16), sa.ForeignKey("protocols.fingerprint"), nullable=False),
    sa.Column("choices", sa.String(16), nullable=False),  # fingerprint of those that the changes are told of
    sa.Column("architecture", sa.Text, nullable=False),  # canonical JSON
    sa.Column("content", sa.Text, nullable=False),  # JSON
    sa.Column("tokens", sa.Integer, nullable=False),
    sa.Column("wall_seconds", sa.Float, nullable=False),
    sa.UniqueConstraint("fingerprint", "protocol", "choices"),
)
_streams = sa.Table(
    "streams",
    _metadata,
    sa.Column("protocol", sa.String(16), sa.ForeignKey("protocols.fingerprint"), primary_key=True),
    sa.Column("content", sa.Text, nullable=False),  # JSON
)
_claims = sa.Table(
    "claims",
    _metadata,
    sa.Column("fingerprint", sa.String(16), nullable=False),
    sa.Column("protocol", sa.String(16), nullable=False),
    sa.Column("owner", sa.Text, nullable=False),  # host:process
    sa.Column("claimed_at", sa.Float, nullable=False),  # seconds since the epoch
    sa.UniqueConstraint("fingerprint", "protocol"),
)
# After so long a claim of another machine is taken for forgotten; one of this machine ends with its process.
_FORGOTTEN_SECONDS = 600.0
# How long one waits for another process's transaction; SQLite's own five seconds are short on a slow, busy disk.
_PATIENCE_SECONDS = 60.0
Claimed = Literal["pair", "slopes"]


@dataclass(frozen=True, slots=True)
class Pair:
    """An architecture, what it measured, and why it was measured."""

    architecture: Architecture
    measurement: Measurement
    origin: str  # prior, random, profile, allocated, guided, searched, averaged, baseline, frontier or user


class PairStore:
    """The pairs of a run.

    Args:
        file: the SQLite file, made if missing.

    Raises:
        RunFolderError: the file is not a pair store of this version, or is damaged.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._engine = sa.create_engine(f"sqlite:///{file}", connect_args={"timeout": _PATIENCE_SECONDS})
        try:
            with self._engine.begin() as connection:
                self._open(connection)
        except sa.exc.DatabaseError as error:
            if "full" in str(error):
                raise
            raise RunFolderError(
                f"{file.name} must be an intact SQLite file, but {str(file)!r} is not ({error.orig}); "
                "restore it, or choose another run folder."
            ) from error

    def _open(self, connection: sa.Connection) -> None:
        mark = connection.exec_driver_sql("PRAGMA application_id").scalar_one()
        version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        tables = sa.inspect(connection).get_table_names()
        if not tables:
            connection.exec_driver_sql(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.exec_driver_sql(f"PRAGMA user_version = {_VERSION}")
        elif (mark, version) != (_APPLICATION_ID, _VERSION):
            raise RunFolderError(
                f"{self.file.name} must be a pair store of version {_VERSION}, but {str(self.file)!r} is a foreign "
                "file or of another version; choose another run folder."
            )
        elif (found := connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()) != "ok":
            raise RunFolderError(
                f"{self.file.name} must be an intact SQLite file, but {str(self.file)!r} is not ({found}); "
                "restore it, or choose another run folder."
            )
        # A store from before there were slopes gets their table.
        _metadata.create_all(connection)

    def find(self, architecture: Architecture, protocol: Protocol) -> Measurement | None:
        """Return the measurement of an architecture under a protocol, if there is one."""
        where = (_pairs.c.fingerprint == architecture.fingerprint) & (_pairs.c.protocol == protocol.fingerprint)
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(_pairs).where(where)).one_or_none()
        return None if row is None else _measurement(row)

    def add(self, architecture: Architecture, measurement: Measurement, protocol: Protocol, origin: str) -> None:
        """Keep a pair. A pair that is there already stays as it is."""
        values = {name: value for name, value in asdict(measurement).items() if name in _pairs.c}
        values |= {name: np.asarray(values[name], _BLOCKS).tobytes() for name in ("nll_blocks", "kl_blocks")}
        # Another process may add the same protocol or the same pair at this moment: whoever comes second adds nothing.
        known = {"fingerprint": protocol.fingerprint, "content": protocol.to_json()}
        pair = insert(_pairs).values(
            fingerprint=architecture.fingerprint,
            origin=origin,
            architecture=architecture.to_json(),
            measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
            **values,
        )
        with self._engine.begin() as connection:
            connection.execute(insert(_protocols).values(known).on_conflict_do_nothing())
            connection.execute(pair.on_conflict_do_nothing())

    def claim(self, architecture: Architecture, protocol: Protocol, what: Claimed = "pair") -> bool:
        """Say that this process measures an architecture now, so that no other does; false if another said so before.

        A claim ends when the pair is added, when it is released, or with the process that made it.
        """
        key = _claim_key(architecture, protocol, what)
        mine = {"owner": this_process(), "claimed_at": time.time()}
        with self._engine.begin() as connection:
            if connection.execute(insert(_claims).values(**key, **mine).on_conflict_do_nothing()).rowcount:
                return True
            held = connection.execute(sa.select(_claims).filter_by(**key)).one_or_none()
            if held is None or (held.owner != mine["owner"] and not is_forgotten(held.owner, held.claimed_at)):
                return False
            again = _claims.update().filter_by(**key, owner=held.owner, claimed_at=held.claimed_at).values(**mine)
            return bool(connection.execute(again).rowcount)

    def release(self, architecture: Architecture, protocol: Protocol, what: Claimed = "pair") -> None:
        """Give a claim back; without one nothing happens."""
        with self._engine.begin() as connection:
            connection.execute(_claims.delete().filter_by(**_claim_key(architecture, protocol, what)))

    def find_slopes(
        self, architecture: Architecture, protocol: Protocol, choices: Sequence[Sequence[Choice]]
    ) -> Slopes | None:
        """Return the slopes of an architecture under a protocol for some choices, if they are there."""
        where = (
            (_slopes.c.fingerprint == architecture.fingerprint)
            & (_slopes.c.protocol == protocol.fingerprint)
            & (_slopes.c.choices == _fingerprint(choices))
        )
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(_slopes).where(where)).one_or_none()
        return None if row is None else _slopes_of(row)

    def add_slopes(
        self,
        slopes: Slopes,
        protocol: Protocol,
        choices: Sequence[Sequence[Choice]],
        tokens: int,
        wall_seconds: float,
    ) -> None:
        """Keep slopes at an architecture whose pair is kept. Those that are there already stay as they are."""
        content = {"kl": slopes.kl, "widths": slopes.widths, "sparsities": slopes.sparsities}
        row = {
            "fingerprint": slopes.architecture.fingerprint,
            "protocol": protocol.fingerprint,
            "choices": _fingerprint(choices),
            "architecture": slopes.architecture.to_json(),
            "content": json.dumps(content),
            "tokens": tokens,
            "wall_seconds": wall_seconds,
        }
        with self._engine.begin() as connection:
            connection.execute(insert(_slopes).values(row).on_conflict_do_nothing())

    def slopes(self, protocol: str) -> list[Slopes]:
        """Return all slopes under a protocol (its fingerprint), in the order in which they were taken."""
        query = sa.select(_slopes).where(_slopes.c.protocol == protocol).order_by(_slopes.c.id)
        with self._engine.connect() as connection:
            return [_slopes_of(row) for row in connection.execute(query).all()]

    def stream(self, protocol: str) -> Stream | None:
        """Return how the dense model's residual stream moves on the text of a protocol (its fingerprint), if known."""
        with self._engine.connect() as connection:
            query = sa.select(_streams.c.content).where(_streams.c.protocol == protocol)
            content = connection.execute(query).scalar_one_or_none()
        return None if content is None else Stream(**json.loads(content))

    def add_stream(self, stream: Stream, protocol: Protocol) -> None:
        """Keep a stream. One that is there already stays as it is."""
        row = {"protocol": protocol.fingerprint, "content": json.dumps(asdict(stream))}
        with self._engine.begin() as connection:
            connection.execute(insert(_streams).values(row).on_conflict_do_nothing())

    def pairs(self, protocol: str, origins: Sequence[str] | None = None) -> list[Pair]:
        """Return the pairs of a protocol (its fingerprint) in the order they were measured."""
        query = sa.select(_pairs).where(_pairs.c.protocol == protocol).order_by(_pairs.c.id)
        if origins is not None:
            query = query.where(_pairs.c.origin.in_(origins))
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [Pair(Architecture.from_json(row.architecture), _measurement(row), row.origin) for row in rows]

    def protocols(self) -> dict[str, Protocol]:
        """Return all protocols by fingerprint."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(_protocols)).all()
        return {row.fingerprint: Protocol(**json.loads(row.content)) for row in rows}

    def tokens_measured(self) -> int:
        """Return the predicted tokens over all pairs, slopes and protocols; a backward pass counts two forward."""
        return int(self._sum(_pairs.c.tokens) + self._sum(_slopes.c.tokens))

    def seconds_measured(self) -> float:
        """Return the time that measuring took over all pairs, slopes and protocols."""
        return float(self._sum(_pairs.c.wall_seconds) + self._sum(_slopes.c.wall_seconds))

    def _sum(self, column: sa.Column[Any]) -> float:
        with self._engine.connect() as connection:
            total: float = connection.execute(sa.select(sa.func.coalesce(sa.func.sum(column), 0))).scalar_one()
            return total

    def close(self) -> None:
        """Release the file."""
        self._engine.dispose()


def this_process() -> str:
    """Return how this process signs what it claims."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_forgotten(owner: str, claimed_at: float) -> bool:
    """Return whether nobody works any more on what a process claimed, at a time in seconds since the epoch."""
    host, _, process = owner.rpartition(":")
    if host != socket.gethostname():
        return time.time() - claimed_at > _FORGOTTEN_SECONDS
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _claim_key(architecture: Architecture, protocol: Protocol, what: Claimed) -> dict[str, str]:
    suffix = "" if what == "pair" else f" {what}"
    return {"fingerprint": architecture.fingerprint, "protocol": protocol.fingerprint + suffix}


def _fingerprint(choices: Sequence[Sequence[Choice]]) -> str:
    plain = [[(choice.width, choice.sparsity) for choice in own] for own in choices]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:16]


def _slopes_of(row: sa.Row[tuple[object, ...]]) -> Slopes:
    content = json.loads(row._mapping["content"])
    widths, sparsities = (
        tuple(tuple((float(gene), float(change)) for gene, change in own) for own in content[name])
        for name in ("widths", "sparsities")
    )
    return Slopes(Architecture.from_json(row._mapping["architecture"]), float(content["kl"]), widths, sparsities)


def _measurement(row: sa.Row[tuple[object, ...]]) -> Measurement:
    mapping = row._mapping
    values = {name: mapping[name] for name in Measurement.__dataclass_fields__}
    blocks = {
        name: tuple(np.frombuffer(mapping[name], _BLOCKS).astype(float).tolist())
        for name in ("nll_blocks", "kl_blocks")
    }
    return Measurement(**{**values, **blocks})
