"""A pair is kept once, survives, and files of others are left alone; in SQLite and in PostgreSQL."""

import sqlite3
import sys
from contextlib import ExitStack, closing
from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from evaluator import Database, Measurement, PairStore, Protocol, Slopes, Stream, schema_name, tables
from evaluator.rows import Unpacker, pack, unpack
from evaluator.tables import claims, pairs
from space import Architecture, Choice, LayerArchitecture, RunFolderError, SettingError, genes_of

PROTOCOL = Protocol("weights", "text", "file.txt", "search", 100, 26, "wanda", "calibration", "float32")
OTHER = replace(PROTOCOL, split="report")
ARCHITECTURE = Architecture((LayerArchitecture(2, 64), LayerArchitecture(1, 32, 0.5)))


def measurement(kl: float, protocol: Protocol = PROTOCOL) -> Measurement:
    blocks = ((1.5, 2.5), (kl - 0.125, kl + 0.125))
    return Measurement(2.0, 0.1, kl, 0.01, 0.75, 100, protocol.fingerprint, 0.5, *blocks)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request, tmp_path):
    """A file that is not there yet, or a schema of a database."""
    if request.param == "sqlite":
        return tmp_path / "pairs.db"
    return Database.parse(request.getfixturevalue("postgres"), schema_name("a run"))


@pytest.fixture
def opened():
    """Open stores, which are closed in the end."""
    with ExitStack() as stack:
        yield lambda place: stack.enter_context(closing(PairStore(place)))


def test_a_pair_is_found_again_after_reopening(place, opened):
    store = opened(place)
    assert store.find(ARCHITECTURE, PROTOCOL) is None
    store.add(ARCHITECTURE, measurement(0.25), PROTOCOL, "random")
    again = opened(place)
    assert again.find(ARCHITECTURE, PROTOCOL) == measurement(0.25)
    [pair] = again.pairs(PROTOCOL.fingerprint)
    assert (pair.architecture, pair.measurement, pair.origin) == (ARCHITECTURE, measurement(0.25), "random")
    assert again.protocols() == {PROTOCOL.fingerprint: PROTOCOL}
    assert again.tokens_measured() == 100


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 0.9999), st.floats(0, 0.9999)), min_size=1
    )
)
def test_an_architecture_is_the_same_in_binary(layers):
    architecture = Architecture(tuple(LayerArchitecture(*layer) for layer in layers))
    assert Unpacker().architecture(pack(architecture)) == architecture
    assert Unpacker().architecture(pack(architecture)).to_json() == architecture.to_json()
    np.testing.assert_array_equal(unpack([pack(architecture)]), genes_of([architecture]))


def test_pairs_as_columns(place, opened):
    store = opened(place)
    assert len(store.table(PROTOCOL.fingerprint).genes) == 0
    architectures = [ARCHITECTURE.replace(0, mlp_width=width) for width in (60, 20, 40)]
    for kl, architecture in enumerate(architectures):
        store.add(architecture, measurement(kl + 0.125), PROTOCOL, "prior" if kl else "random")
    store.add(ARCHITECTURE, measurement(9.0, OTHER), OTHER, "user")
    table = store.table(PROTOCOL.fingerprint)
    np.testing.assert_array_equal(table.genes, genes_of(architectures))
    assert table.kl.tolist() == [0.125, 1.125, 2.125]
    assert table.nll.tolist() == [2.0] * 3
    assert table.origins == ("random", "prior", "prior")


def test_a_second_add_keeps_the_first(place, opened):
    store = opened(place)
    store.add(ARCHITECTURE, measurement(0.25), PROTOCOL, "random")
    store.add(ARCHITECTURE, measurement(0.75), PROTOCOL, "user")
    [pair] = store.pairs(PROTOCOL.fingerprint)
    assert (pair.measurement.kl, pair.origin) == (0.25, "random")


def test_the_database_itself_refuses_a_second_pair(place, opened):
    store = opened(place)
    store.add(ARCHITECTURE, measurement(0.25), PROTOCOL, "random")
    columns = [column.name for column in pairs.c if column.name != "id"]
    again = pairs.insert().from_select(columns, sa.select(*(pairs.c[name] for name in columns)))
    with store._engine.connect() as connection, pytest.raises(sa.exc.IntegrityError, match=r"(?i)unique"):
        connection.execute(again)


def test_a_protocol_that_another_process_adds_at_the_same_moment_harms_nothing(place, opened):
    store, other = opened(place), opened(place)
    wider = ARCHITECTURE.replace(0, mlp_width=8)

    def come_first(connection, cursor, statement, *rest):
        if statement.startswith("INSERT INTO protocols"):
            other.add(wider, measurement(0.2), PROTOCOL, "user")

    sa.event.listen(store._engine, "before_cursor_execute", come_first)
    store.add(ARCHITECTURE, measurement(0.1), PROTOCOL, "user")
    assert {pair.measurement.kl for pair in store.pairs(PROTOCOL.fingerprint)} == {0.1, 0.2}


def test_two_protocols_are_kept_apart(place, opened):
    store = opened(place)
    store.add(ARCHITECTURE, measurement(0.25), PROTOCOL, "random")
    store.add(ARCHITECTURE, measurement(0.5, OTHER), OTHER, "baseline")
    assert [pair.measurement.kl for pair in store.pairs(PROTOCOL.fingerprint)] == [0.25]
    assert [pair.measurement.kl for pair in store.pairs(OTHER.fingerprint)] == [0.5]
    assert store.find(ARCHITECTURE, OTHER) == measurement(0.5, OTHER)
    assert store.tokens_measured() == 200
    assert store.seconds_measured() == 1.0


def test_pairs_come_in_order_and_by_origin(place, opened):
    store = opened(place)
    architectures = [ARCHITECTURE.replace(0, mlp_width=width) for width in (60, 20, 40)]
    for architecture, origin in zip(architectures, ("prior", "random", "prior"), strict=True):
        store.add(architecture, measurement(0.125), PROTOCOL, origin)
    assert [pair.architecture for pair in store.pairs(PROTOCOL.fingerprint)] == architectures
    assert [pair.architecture for pair in store.pairs(PROTOCOL.fingerprint, ["prior"])] == architectures[::2]


def test_slopes_and_streams_are_kept_once(place, opened):
    store = opened(place)
    choices = [[Choice(0, 0.0), Choice(64, 0.0)]] * 4
    slopes = Slopes(ARCHITECTURE, 0.25, (((0.0, 0.5),),) * 4, ((),) * 4)
    assert store.find_slopes(ARCHITECTURE, PROTOCOL, choices) is None
    store.add(ARCHITECTURE, measurement(0.25), PROTOCOL, "searched")
    for _ in range(2):
        store.add_slopes(slopes, PROTOCOL, choices, 300, 1.0)
        store.add_stream(Stream(((1.0,),), ((0.5,),)), PROTOCOL)
    assert store.find_slopes(ARCHITECTURE, PROTOCOL, choices) == slopes
    assert store.slopes(PROTOCOL.fingerprint) == [slopes]
    assert store.stream(PROTOCOL.fingerprint) is not None
    assert store.tokens_measured() == 400


def test_a_claim_holds_until_it_is_given_back(place, opened):
    store, other = opened(place), opened(place)
    assert store.claim(ARCHITECTURE, PROTOCOL)
    assert store.claim(ARCHITECTURE, PROTOCOL, "slopes")
    with store._engine.begin() as connection:
        connection.execute(claims.update().values(owner="another machine:1"))
    assert not other.claim(ARCHITECTURE, PROTOCOL)
    assert not other.claim(ARCHITECTURE, PROTOCOL, "slopes")
    store.release(ARCHITECTURE, PROTOCOL)
    assert other.claim(ARCHITECTURE, PROTOCOL)
    assert not other.claim(ARCHITECTURE, PROTOCOL, "slopes")


def test_a_store_takes_over_what_another_measured(place, opened, tmp_path):
    old, store = opened(tmp_path / "old.db"), opened(place)
    architectures = [ARCHITECTURE.replace(0, mlp_width=width) for width in (60, 20, 40)]
    for architecture, origin in zip(architectures, ("prior", "random", "searched"), strict=True):
        old.add(architecture, measurement(0.125), PROTOCOL, origin)
    store.take_over(old, {"prior": "prior"}, "earlier")
    found = store.pairs(PROTOCOL.fingerprint)
    assert [(pair.architecture, pair.origin) for pair in found] == list(
        zip(architectures, ("prior", "earlier", "earlier"), strict=True)
    )
    store.add(ARCHITECTURE, measurement(0.5), PROTOCOL, "user")  # numbers go on behind those that came over
    assert [pair.origin for pair in store.pairs(PROTOCOL.fingerprint)][-1] == "user"


def version_2(file):
    """A store as the release before wrote it."""
    pairs = ", ".join(
        f"{name} {kind} NOT NULL"
        for name, kind in {
            "fingerprint": "VARCHAR(16)",
            "protocol": "VARCHAR(16)",
            "origin": "VARCHAR(16)",
            "architecture": "TEXT",
            **dict.fromkeys(("nll", "nll_standard_error", "kl", "kl_standard_error", "agreement"), "FLOAT"),
            "tokens": "INTEGER",
            "wall_seconds": "FLOAT",
            "nll_blocks": "BLOB",
            "kl_blocks": "BLOB",
            "measured_at": "VARCHAR(32)",
        }.items()
    )
    kept = ("prior", ARCHITECTURE.replace(0, mlp_width=8)), ("random", ARCHITECTURE), ("user", ARCHITECTURE)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(f"PRAGMA application_id = {0x5ECA7E01}")
        connection.execute("PRAGMA user_version = 2")
        connection.execute("CREATE TABLE protocols (fingerprint VARCHAR(16) PRIMARY KEY, content TEXT NOT NULL)")
        connection.execute(
            f"CREATE TABLE pairs (id INTEGER NOT NULL PRIMARY KEY, {pairs}, UNIQUE (fingerprint, protocol))"
        )
        for protocol in (PROTOCOL, OTHER):
            connection.execute("INSERT INTO protocols VALUES (?, ?)", (protocol.fingerprint, protocol.to_json()))
        for number, (origin, architecture) in enumerate(kept):
            protocol = OTHER if origin == "user" else PROTOCOL
            row = (number, architecture.fingerprint, protocol.fingerprint, origin, architecture.to_json(), 2.0, 0.1)
            row += (0.25, 0.01, 0.75, 100, 0.5, np.array([1.5, 2.5], "<f4").tobytes())
            row += (np.array([0.125, 0.375], "<f4").tobytes(), "2026-11-01T00:00:00+00:00")
            connection.execute(f"INSERT INTO pairs VALUES ({', '.join('?' * len(row))})", row)


def test_a_store_of_the_version_before_goes_on(tmp_path, opened):
    version_2(tmp_path / "pairs.db")
    store = opened(tmp_path / "pairs.db")
    found = [(pair.architecture, pair.measurement, pair.origin) for pair in store.pairs(PROTOCOL.fingerprint)]
    wide = ARCHITECTURE.replace(0, mlp_width=8)
    assert found == [(wide, measurement(0.25), "prior"), (ARCHITECTURE, measurement(0.25), "random")]
    assert store.find(ARCHITECTURE, OTHER) == measurement(0.25, OTHER)
    store.add(wide, measurement(0.5, OTHER), OTHER, "user")
    assert len(opened(tmp_path / "pairs.db").pairs(OTHER.fingerprint)) == 2


def test_a_migration_that_is_cut_off_leaves_the_store_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "pairs.db"
    version_2(file)
    before = dump(file)
    with monkeypatch.context() as patch:
        patch.setattr(tables, "pack", stop)
        with pytest.raises(KeyboardInterrupt):
            PairStore(file)
    assert dump(file) == before
    assert len(PairStore(file).pairs(PROTOCOL.fingerprint)) == 2


def stop(_):
    raise KeyboardInterrupt


def dump(file):
    with closing(sqlite3.connect(file)) as connection:
        return list(connection.iterdump())


def foreign(file):
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
        connection.execute("INSERT INTO recipes VALUES ('bread')")


def no_database(file):
    file.write_text("Dear diary, " * 200)


def newer(file):
    PairStore(file).add(ARCHITECTURE, measurement(0.25), PROTOCOL, "random")
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA user_version = 4")


def older(file):
    PairStore(file).add(ARCHITECTURE, measurement(0.25), PROTOCOL, "random")
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA user_version = 1")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (foreign, "must be a pair store of version 3, but .* is a foreign file or of another version"),
        (newer, "must be a pair store of version 3, but .* is a foreign file or of another version"),
        (older, "must be a pair store of version 3, but .* is a foreign file or of another version"),
        (no_database, "must be an intact SQLite file, but .*file is not a database"),
    ],
)
def test_files_of_others_are_refused_and_untouched(make, message, tmp_path):
    file = tmp_path / "pairs.db"
    make(file)
    before = file.read_bytes()
    with pytest.raises(RunFolderError, match=message):
        PairStore(file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.db"]


def test_a_database_with_a_damaged_page_is_refused(tmp_path):
    file = tmp_path / "pairs.db"
    store = PairStore(file)
    for width in range(60):
        store.add(ARCHITECTURE.replace(0, mlp_width=width), measurement(0.125), PROTOCOL, "random")
    store.close()
    content = bytearray(file.read_bytes())
    content[8192:] = b"\xff" * (len(content) - 8192)
    file.write_bytes(content)
    with pytest.raises(RunFolderError, match="must be an intact SQLite file"):
        PairStore(file).pairs(PROTOCOL.fingerprint)


def test_two_runs_in_one_database_are_two_stores(postgres, opened):
    one, other = (opened(Database.parse(postgres, schema_name("a run"))) for _ in range(2))
    one.add(ARCHITECTURE, measurement(0.25), PROTOCOL, "random")
    assert other.find(ARCHITECTURE, PROTOCOL) is None
    assert other.protocols() == {}


def test_a_schema_of_another_version_or_of_others_is_refused(postgres, opened):
    place = Database.parse(postgres, schema_name("a run"))
    store = opened(place)
    with store._engine.begin() as connection:
        assert "alembic_version" not in sa.inspect(connection).get_table_names()
        connection.exec_driver_sql("UPDATE secateur_version SET version = 4")
    with pytest.raises(
        RunFolderError, match=r"must hold a pair store of version 3, but run_a_run_\w+ in .* of version 4"
    ):
        PairStore(place)
    with store._engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE secateur_version")
    with pytest.raises(RunFolderError, match=r"must be ours, but run_a_run_\w+ in .* holds other tables"):
        PairStore(place)


def test_a_password_is_never_told(postgres):
    place = Database.parse(postgres, "run_a")
    secret = place.url.password
    assert secret
    assert secret not in f"{place!r} {place} {place.server}"
    hidden = Database.parse(f"postgresql://gardener@127.0.0.1:1/garden?password={secret}", "run_a")
    assert secret not in repr(hidden) + repr(hidden.url)
    for other in (hidden, replace(place, url=place.url.set(password=f"{secret}-not"))):
        with pytest.raises(RunFolderError, match=r"must be within reach, but 127\.0\.0\.1") as caught:
            PairStore(other)
        assert secret not in str(caught.value)
    with pytest.raises(SettingError, match="what was given is no URL") as caught:
        Database.parse(f"gardener {secret}", "run_a")
    assert secret not in str(caught.value)
    with pytest.raises(SettingError, match="this one is mysql's"):
        Database.parse(f"mysql://gardener:{secret}@host/garden", "run_a")


def test_postgresql_without_what_speaks_to_it_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(SettingError, match=r"pip install 'secateur\[postgres\]'"):
        PairStore(Database.parse("postgresql://gardener@127.0.0.1:1/garden", "run_a"))
