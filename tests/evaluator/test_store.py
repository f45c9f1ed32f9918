"""A pair is kept once, survives, and files of others are left alone."""

import sqlite3
from dataclasses import replace

import pytest
import sqlalchemy as sa

from evaluator import Measurement, PairStore, Protocol
from space import Architecture, LayerArchitecture, RunFolderError

PROTOCOL = Protocol("weights", "text", "file.txt", "search", 100, 26, "wanda", "calibration", "float32")
ARCHITECTURE = Architecture((LayerArchitecture(2, 64), LayerArchitecture(1, 32, 0.5)))


def measurement(kl: float, protocol: Protocol = PROTOCOL) -> Measurement:
    blocks = ((1.5, 2.5), (kl - 0.125, kl + 0.125))
    return Measurement(2.0, 0.1, kl, 0.01, 0.75, 100, protocol.fingerprint, 0.5, *blocks)


def test_a_pair_is_found_again_after_reopening(tmp_path):
    store = PairStore(tmp_path / "pairs.db")
    assert store.find(ARCHITECTURE, PROTOCOL) is None
    store.add(ARCHITECTURE, measurement(0.25), PROTOCOL, "random")
    store.close()
    again = PairStore(tmp_path / "pairs.db")
    assert again.find(ARCHITECTURE, PROTOCOL) == measurement(0.25)
    [pair] = again.pairs(PROTOCOL.fingerprint)
    assert (pair.architecture, pair.measurement, pair.origin) == (ARCHITECTURE, measurement(0.25), "random")
    assert again.protocols() == {PROTOCOL.fingerprint: PROTOCOL}
    assert again.tokens_measured() == 100


def test_a_second_add_keeps_the_first(tmp_path):
    store = PairStore(tmp_path / "pairs.db")
    store.add(ARCHITECTURE, measurement(0.25), PROTOCOL, "random")
    store.add(ARCHITECTURE, measurement(0.75), PROTOCOL, "user")
    [pair] = store.pairs(PROTOCOL.fingerprint)
    assert (pair.measurement.kl, pair.origin) == (0.25, "random")


def test_the_file_itself_refuses_a_second_pair(tmp_path):
    PairStore(tmp_path / "pairs.db").add(ARCHITECTURE, measurement(0.25), PROTOCOL, "random")
    with sqlite3.connect(tmp_path / "pairs.db") as connection:
        columns = "fingerprint, protocol, origin, architecture, nll, nll_standard_error, kl, kl_standard_error, "
        columns += "agreement, tokens, wall_seconds, nll_blocks, kl_blocks, measured_at"
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            connection.execute(f"INSERT INTO pairs ({columns}) SELECT {columns} FROM pairs")


def test_a_protocol_that_another_process_adds_at_the_same_moment_harms_nothing(tmp_path):
    store, other = PairStore(tmp_path / "pairs.db"), PairStore(tmp_path / "pairs.db")
    wider = ARCHITECTURE.replace(0, mlp_width=8)

    def come_first(connection, cursor, statement, *rest):
        if statement.startswith("INSERT INTO protocols"):
            other.add(wider, measurement(0.2), PROTOCOL, "user")

    sa.event.listen(store._engine, "before_cursor_execute", come_first)
    store.add(ARCHITECTURE, measurement(0.1), PROTOCOL, "user")
    assert {pair.measurement.kl for pair in store.pairs(PROTOCOL.fingerprint)} == {0.1, 0.2}
    store.close()
    other.close()


def test_two_protocols_are_kept_apart(tmp_path):
    store = PairStore(tmp_path / "pairs.db")
    other = replace(PROTOCOL, split="report")
    store.add(ARCHITECTURE, measurement(0.25), PROTOCOL, "random")
    store.add(ARCHITECTURE, measurement(0.5, other), other, "baseline")
    assert [pair.measurement.kl for pair in store.pairs(PROTOCOL.fingerprint)] == [0.25]
    assert [pair.measurement.kl for pair in store.pairs(other.fingerprint)] == [0.5]
    assert store.find(ARCHITECTURE, other) == measurement(0.5, other)
    assert store.tokens_measured() == 200
    assert store.seconds_measured() == 1.0


def test_pairs_come_in_order_and_by_origin(tmp_path):
    store = PairStore(tmp_path / "pairs.db")
    architectures = [ARCHITECTURE.replace(0, mlp_width=width) for width in (60, 20, 40)]
    for architecture, origin in zip(architectures, ("prior", "random", "prior"), strict=True):
        store.add(architecture, measurement(0.125), PROTOCOL, origin)
    assert [pair.architecture for pair in store.pairs(PROTOCOL.fingerprint)] == architectures
    assert [pair.architecture for pair in store.pairs(PROTOCOL.fingerprint, ["prior"])] == architectures[::2]


def foreign(file):
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
        connection.execute("INSERT INTO recipes VALUES ('bread')")


def no_database(file):
    file.write_text("Dear diary, " * 200)


def newer(file):
    PairStore(file).add(ARCHITECTURE, measurement(0.25), PROTOCOL, "random")
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA user_version = 3")


def older(file):
    PairStore(file).add(ARCHITECTURE, measurement(0.25), PROTOCOL, "random")
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA user_version = 1")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (foreign, "must be a pair store of version 2, but .* is a foreign file or of another version"),
        (newer, "must be a pair store of version 2, but .* is a foreign file or of another version"),
        (older, "must be a pair store of version 2, but .* is a foreign file or of another version"),
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
