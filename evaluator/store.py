"""Measured pairs in a database: one row per architecture and protocol, never two, each in a transaction of its own."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from evaluator import claims, tables
from evaluator.claims import Claimed
from evaluator.database import Place, connect, told_plainly
from evaluator.measurement import Measurement, Protocol
from evaluator.rows import PairTable, Unpacker, blocks_to_bytes, pack, to_measurement, to_slopes
from evaluator.slopes import Slopes
from evaluator.stream import Stream
from space import Architecture, Choice

_AT_ONCE = 1000  # rows, when many are read
_INSERTS: dict[str, Callable[[sa.Table], Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


@dataclass(frozen=True, slots=True)
class Pair:
    """An architecture, what it measured, and why it was measured."""

    architecture: Architecture
    measurement: Measurement
    origin: str  # prior, random, profile, allocated, guided, searched, averaged, baseline, frontier or user


class PairStore:
    """The pairs of a run.

    Args:
        place: a SQLite file, or a schema of a PostgreSQL database.
        make: whether a schema that is missing is made; a file always is.

    Raises:
        RunFolderError: there is no pair store of this version, it is damaged, or its database cannot be reached.
        SettingError: what speaks to PostgreSQL is not installed.
    """

    def __init__(self, place: Place, *, make: bool = True) -> None:
        self.place = place
        self._engine = connect(place)
        try:
            with self._transaction() as connection:
                tables.open_tables(connection, place, make)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with told_plainly(self.place), self._engine.begin() as connection:
            yield connection

    def _insert_new(self, table: sa.Table, values: Mapping[str, Any]) -> Any:
        """Return the statement that inserts a row; where it is there already, nothing happens."""
        insert = _INSERTS[self._engine.dialect.name]
        return insert(table).values(values).on_conflict_do_nothing().inline()

    def find(self, architecture: Architecture, protocol: Protocol) -> Measurement | None:
        """Return the measurement of an architecture under a protocol, if there is one."""
        pairs = tables.pairs
        where = (pairs.c.fingerprint == architecture.fingerprint) & (pairs.c.protocol == protocol.fingerprint)
        with self._transaction() as connection:
            row = connection.execute(sa.select(pairs).where(where)).one_or_none()
        return None if row is None else to_measurement(row._mapping)

    def add(self, architecture: Architecture, measurement: Measurement, protocol: Protocol, origin: str) -> None:
        """Keep a pair. A pair that is there already stays as it is."""
        values = {name: value for name, value in asdict(measurement).items() if name in tables.pairs.c}
        values |= {name: blocks_to_bytes(values[name]) for name in ("nll_blocks", "kl_blocks")}
        pair = {
            "fingerprint": architecture.fingerprint,
            "origin": origin,
            "genes": pack(architecture),
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            **values,
        }
        # Another process may add the same protocol or the same pair at this moment: whoever comes second adds nothing.
        with self._transaction() as connection:
            connection.execute(self._insert_new(tables.protocols, _content(protocol)))
            connection.execute(self._insert_new(tables.architectures, _content(architecture)))
            connection.execute(self._insert_new(tables.pairs, pair))

    def claim(self, architecture: Architecture, protocol: Protocol, what: Claimed = "pair") -> bool:
        """Say that this process measures an architecture now, so that no other does; false if another said so before.

        A claim ends when the pair is added, when it is released, or with the process that made it; on another machine
        ten minutes after it was made, unless it is made again meanwhile.
        """
        with self._transaction() as connection:
            return claims.claim(connection, claims.claim_key(architecture, protocol, what), self._insert_new)

    def release(self, architecture: Architecture, protocol: Protocol, what: Claimed = "pair") -> None:
        """Give a claim back; without one nothing happens."""
        with self._transaction() as connection:
            key = claims.claim_key(architecture, protocol, what)
            connection.execute(tables.claims.delete().filter_by(**key))

    def find_slopes(
        self, architecture: Architecture, protocol: Protocol, choices: Sequence[Sequence[Choice]]
    ) -> Slopes | None:
        """Return the slopes of an architecture under a protocol for some choices, if they are there."""
        slopes = tables.slopes
        where = (
            (slopes.c.fingerprint == architecture.fingerprint)
            & (slopes.c.protocol == protocol.fingerprint)
            & (slopes.c.choices == _fingerprint(choices))
        )
        with self._transaction() as connection:
            row = connection.execute(sa.select(slopes).where(where)).one_or_none()
        return None if row is None else to_slopes(row._mapping)

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
        with self._transaction() as connection:
            connection.execute(self._insert_new(tables.slopes, row))

    def slopes(self, protocol: str) -> list[Slopes]:
        """Return all slopes under a protocol (its fingerprint), in the order in which they were taken."""
        query = sa.select(tables.slopes).where(tables.slopes.c.protocol == protocol).order_by(tables.slopes.c.id)
        with self._transaction() as connection:
            return [to_slopes(row._mapping) for row in connection.execute(query).all()]

    def stream(self, protocol: str) -> Stream | None:
        """Return how the dense model's residual stream moves on the text of a protocol (its fingerprint), if known."""
        query = sa.select(tables.streams.c.content).where(tables.streams.c.protocol == protocol)
        with self._transaction() as connection:
            content = connection.execute(query).scalar_one_or_none()
        return None if content is None else Stream(**json.loads(content))

    def add_stream(self, stream: Stream, protocol: Protocol) -> None:
        """Keep a stream. One that is there already stays as it is."""
        row = {"protocol": protocol.fingerprint, "content": json.dumps(asdict(stream))}
        with self._transaction() as connection:
            connection.execute(self._insert_new(tables.streams, row))

    def pairs(self, protocol: str, origins: Sequence[str] | None = None) -> list[Pair]:
        """Return the pairs of a protocol (its fingerprint) in the order they were measured."""
        query = sa.select(tables.pairs).where(tables.pairs.c.protocol == protocol).order_by(tables.pairs.c.id)
        if origins is not None:
            query = query.where(tables.pairs.c.origin.in_(origins))
        with self._transaction() as connection:
            rows = connection.execute(query).mappings().all()
        unpacker = Unpacker()
        return [Pair(unpacker.architecture(row["genes"]), to_measurement(row), row["origin"]) for row in rows]

    def table(self, protocol: str) -> PairTable:
        """Return the pairs of a protocol (its fingerprint) as columns: seconds for a million of them."""
        own = tables.pairs.c
        query = sa.select(own.genes, own.nll, own.kl, own.origin).where(own.protocol == protocol).order_by(own.id)
        with self._transaction() as connection:
            rows = connection.execution_options(yield_per=_AT_ONCE).execute(query)
            return PairTable.of(rows.partitions())

    def protocols(self) -> dict[str, Protocol]:
        """Return all protocols by fingerprint."""
        with self._transaction() as connection:
            rows = connection.execute(sa.select(tables.protocols)).all()
        return {row.fingerprint: Protocol(**json.loads(row.content)) for row in rows}

    def tokens_measured(self) -> int:
        """Return the predicted tokens over all pairs, slopes and protocols; a backward pass counts two forward."""
        return int(self._sum(tables.pairs.c.tokens) + self._sum(tables.slopes.c.tokens))

    def seconds_measured(self) -> float:
        """Return the time that measuring took over all pairs, slopes and protocols."""
        return float(self._sum(tables.pairs.c.wall_seconds) + self._sum(tables.slopes.c.wall_seconds))

    def _sum(self, column: sa.Column[Any]) -> float:
        with self._transaction() as connection:
            total: float = connection.execute(sa.select(sa.func.coalesce(sa.func.sum(column), 0))).scalar_one()
            return total

    def take_over(self, other: "PairStore", origins: Mapping[str, str], otherwise: str) -> None:
        """Copy all that another store has measured into this one, which is empty.

        Args:
            other: the other store, of either kind.
            origins: what the origins of its pairs become here; others become
            otherwise: this.
        """
        kept = [table for table in tables.metadata.sorted_tables if table is not tables.claims]
        with other._transaction() as source, self._transaction() as connection:
            for table in kept:
                found = source.execute(sa.select(table).order_by(*table.primary_key)).mappings()
                for some in found.partitions(_AT_ONCE):
                    rows = [{name: value for name, value in row.items() if name != "id"} for row in some]
                    for row in rows if table is tables.pairs else ():
                        row["origin"] = origins.get(row["origin"], otherwise)
                    connection.execute(table.insert().inline(), rows)

    def close(self) -> None:
        """Release the file or the server."""
        self._engine.dispose()


def _content(record: Architecture | Protocol) -> dict[str, str]:
    return {"fingerprint": record.fingerprint, "content": record.to_json()}


def _fingerprint(choices: Sequence[Sequence[Choice]]) -> str:
    plain = [[(choice.width, choice.sparsity) for choice in own] for own in choices]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:16]
