"""The tables of a store of pairs, and how a store of an earlier version becomes one of this.

SQLite keeps mark and version in the file's header. PostgreSQL has a table for the version, `secateur_version`: Optuna,
whose study lies in the same schema, keeps its own in `alembic_version`.
"""

from pathlib import Path

import sqlalchemy as sa

from evaluator.database import Database, Place, damaged
from evaluator.rows import pack
from space import Architecture, RunFolderError

_APPLICATION_ID = 0x5ECA7E01  # marks the file as ours, in SQLite's header
VERSION = 3
_PAGE_BYTES = 2**14  # of a new file; in SQLite's own 4,096 bytes rows fit badly, and it is half as large again
_CHECKED_BYTES = 2**25  # of a file, up to which every page is read when it is opened; it takes a tenth of a second

metadata = sa.MetaData()
protocols = sa.Table(
    "protocols",
    metadata,
    sa.Column("fingerprint", sa.String(16), primary_key=True),
    sa.Column("content", sa.Text, nullable=False),  # canonical JSON
)
# Beside the pairs, for people and other programs; a row that holds it as well is three times as long to read.
architectures = sa.Table(
    "architectures",
    metadata,
    sa.Column("fingerprint", sa.String(16), primary_key=True),
    sa.Column("content", sa.Text, nullable=False),  # canonical JSON
)
pairs = sa.Table(
    "pairs",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("fingerprint", sa.String(16), sa.ForeignKey("architectures.fingerprint"), nullable=False),
    sa.Column("protocol", sa.String(16), sa.ForeignKey("protocols.fingerprint"), nullable=False),
    sa.Column("origin", sa.String(16), nullable=False),
    sa.Column("nll", sa.Float, nullable=False),
    sa.Column("nll_standard_error", sa.Float, nullable=False),
    sa.Column("kl", sa.Float, nullable=False),
    sa.Column("kl_standard_error", sa.Float, nullable=False),
    sa.Column("agreement", sa.Float, nullable=False),
    sa.Column("tokens", sa.Integer, nullable=False),
    sa.Column("wall_seconds", sa.Float, nullable=False),
    sa.Column("measured_at", sa.String(32), nullable=False),  # ISO 8601, UTC
    sa.Column("genes", sa.LargeBinary, nullable=False),  # see `evaluator.rows.pack`
    sa.Column("nll_blocks", sa.LargeBinary, nullable=False),  # float32, little-endian
    sa.Column("kl_blocks", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("fingerprint", "protocol"),
    # Pairs of one protocol in their order, and sums over all of them without reading them.
    sa.Index("pairs_by_protocol", "protocol", "id", "tokens", "wall_seconds"),
)
slopes = sa.Table(
    "slopes",
    metadata,
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
streams = sa.Table(
    "streams",
    metadata,
    sa.Column("protocol", sa.String(16), sa.ForeignKey("protocols.fingerprint"), primary_key=True),
    sa.Column("content", sa.Text, nullable=False),  # JSON
)
claims = sa.Table(
    "claims",
    metadata,
    sa.Column("fingerprint", sa.String(16), nullable=False),
    sa.Column("protocol", sa.String(32), nullable=False),  # or protocol and `slopes`
    sa.Column("owner", sa.Text, nullable=False),  # host:process
    sa.Column("claimed_at", sa.Float, nullable=False),  # seconds since the epoch
    sa.UniqueConstraint("fingerprint", "protocol"),
)
_version = sa.Table("secateur_version", sa.MetaData(), sa.Column("version", sa.Integer, nullable=False))


def open_tables(connection: sa.Connection, place: Place, make: bool) -> None:
    """Make the tables of a new store, bring an older one to this version, or refuse what is no store.

    Args:
        connection: in a transaction, which is all or nothing.
        place: where it leads.
        make: whether a schema that is missing is made.

    Raises:
        RunFolderError: there is something else, or a store of a version that is not known here.
    """
    if isinstance(place, Path):
        _open_file(connection, place)
    else:
        _open_schema(connection, place, make)


def _open_file(connection: sa.Connection, file: Path) -> None:
    if _header(connection) == (_APPLICATION_ID, VERSION):
        if file.stat().st_size <= _CHECKED_BYTES:  # of a larger one, damage is told when it is read
            _check_pages(connection, file)
        return
    if not file.stat().st_size:
        connection.exec_driver_sql(f"PRAGMA page_size = {_PAGE_BYTES}")
    # Explicitly: the driver begins a transaction for rows, but not for tables.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    mark, version = _header(connection)  # by now another process may have done it
    if not sa.inspect(connection).get_table_names():
        metadata.create_all(connection)
    elif mark != _APPLICATION_ID or version not in (2, VERSION):
        raise RunFolderError(
            f"{file.name} must be a pair store of version {VERSION}, but {str(file)!r} is a foreign file or of another "
            "version; choose another run folder."
        )
    elif version == 2:
        _check_pages(connection, file)
        _from_version_2(connection)
    connection.exec_driver_sql(f"PRAGMA application_id = {_APPLICATION_ID}")
    connection.exec_driver_sql(f"PRAGMA user_version = {VERSION}")


def _header(connection: sa.Connection) -> tuple[int, int]:
    mark, version = (
        int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()) for name in ("application_id", "user_version")
    )
    return mark, version


def _check_pages(connection: sa.Connection, file: Path) -> None:
    if (found := connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()) != "ok":
        raise damaged(file, str(found))


def _from_version_2(connection: sa.Connection) -> None:
    """Move the architectures' JSON out of the pairs, and keep their genes there in binary."""
    connection.exec_driver_sql("ALTER TABLE pairs RENAME TO pairs_2")
    metadata.create_all(connection)  # slopes too, in a store from before there were any
    insert = sa.insert(architectures).prefix_with("OR IGNORE")
    known = connection.exec_driver_sql("SELECT DISTINCT fingerprint, architecture FROM pairs_2").all()
    packed = []
    for fingerprint, content in known:
        connection.execute(insert.values(fingerprint=fingerprint, content=content))
        packed.append({"fingerprint": fingerprint, "genes": pack(Architecture.from_json(content))})
    kept = ", ".join(column.name for column in pairs.c if column.name != "genes")
    for each in packed:
        connection.execute(
            sa.text(f"INSERT INTO pairs ({kept}, genes) SELECT {kept}, :genes FROM pairs_2 WHERE fingerprint = :found"),
            {"genes": each["genes"], "found": each["fingerprint"]},
        )
    connection.exec_driver_sql("DROP TABLE pairs_2")


def _open_schema(connection: sa.Connection, database: Database, make: bool) -> None:
    # One after the other: two that make the same schema or table at once would both be refused.
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_APPLICATION_ID)))
    if not make and database.schema not in sa.inspect(connection).get_schema_names():
        raise RunFolderError(
            f"The pairs of a run must be where it began to keep them, but {database.server} has no schema "
            f"{database.schema}; give the URL of the database that has."
        )
    connection.execute(sa.schema.CreateSchema(database.schema, if_not_exists=True))
    tables = sa.inspect(connection).get_table_names(schema=database.schema)
    if _version.name in tables:
        version = connection.execute(sa.select(_version.c.version)).scalar_one()
        if version != VERSION:
            raise RunFolderError(
                f"The schema of a run must hold a pair store of version {VERSION}, but {database.schema} in "
                f"{database.server} is of version {version}; go on with the release that began it."
            )
    elif set(tables) & set(metadata.tables):
        raise RunFolderError(
            f"The schema of a run must be ours, but {database.schema} in {database.server} holds other tables; choose "
            "another run folder."
        )
    else:
        _version.create(connection)
        metadata.create_all(connection)
        connection.execute(_version.insert().values(version=VERSION))
