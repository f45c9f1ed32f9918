"""Measurements that other processes make are those that one process makes, and a worker that dies costs none."""

import json
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from evaluator import Database, Evaluator, PairStore, open_model, room, schema_name
from evaluator.tables import claims
from search.config import load_config
from search.run import run_search
from space import Architecture, Criterion, EngineError
from tests.evaluator.pieces import make_evaluator, random_texts
from tests.evaluator.test_claims import give_to
from tests.postgres import free_port
from tests.search.command import call, refusal
from tests.search.test_join import run_until
from tests.search.test_run import pairs_of

pytest.importorskip("distributed", reason="needs the package `distributed`: pip install 'secateur[distributed]'")

from evaluator.dask_engine import DaskEngine
from tests.dask_workers import machines


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """Two workers, each measurement of which takes a little longer than it does."""
    with machines(tmp_path_factory.mktemp("machines"), slow=0.1) as started:
        yield started


@pytest.fixture
def engine(workers):
    with closing(DaskEngine(workers.address)) as opened:
        yield opened


def asked(layout, number: int = 12) -> list[Architecture]:
    dense = Architecture.dense(layout)
    widths = range(8, 48, 8)
    single = [dense.replace(layer, mlp_width=width) for width in widths for layer in range(layout.layers)]
    return single[:number]


def values(measured):
    """What was measured, without times."""
    return [(each.nll, each.kl, each.nll_blocks, each.kl_blocks, each.agreement, each.protocol) for each in measured]


def test_two_workers_measure_what_one_process_does(pico, pico_folder, tmp_path, engine, workers):
    here = make_evaluator(
        open_model(str(pico_folder), dtype="float32"), tmp_path / "here", folder=tmp_path / "prepared"
    )
    there = make_evaluator(pico, tmp_path / "there", folder=tmp_path / "prepared", engine=engine)
    architectures, told = asked(pico.layout), []
    alone = here.measure(architectures, "search", "user")
    before = len(workers.finished())
    spread = there.measure([*architectures, architectures[0]], "search", "user", told.append)
    assert values(spread[:-1]) == values(alone)
    assert spread[-1] == spread[0]
    assert sum(told) == len(architectures) + 1
    assert there.measured == len(architectures)
    new = [each for each in workers.told()[-2 * len(architectures) :] if each[0] == "end"]
    assert len(workers.finished()) - before == len(architectures) == len(new)
    assert len({process for _, process, _ in new}) == 2
    protocol = here.protocol("search").fingerprint
    kept = [{pair.architecture for pair in each.store.pairs(protocol)} for each in (here, there)]
    assert kept[0] == kept[1] == set(architectures)
    assert there.measure(architectures, "search", "user") == spread[:-1]  # from the store
    assert len(workers.finished()) - before == len(architectures)
    # By another criterion for a while it is measured here, since workers have the statistics of the first.
    with there.pruning_by(Criterion(update="none")), here.pruning_by(Criterion(update="none")):
        few = architectures[:2]
        assert values(there.measure(few, "search", "user")) == values(here.measure(few, "search", "user"))
    assert len(workers.finished()) - before == len(architectures)


def test_what_another_process_claims_is_waited_for(pico, tmp_path, engine):
    there = make_evaluator(pico, tmp_path, folder=tmp_path / "prepared", engine=engine)
    architectures, protocol = asked(pico.layout, 3), there.protocol("validate")
    with closing(PairStore(tmp_path / "pairs.db")) as other:
        assert other.claim(architectures[0], protocol)
        give_to(other, "another machine:1")
        threading.Timer(1.0, lambda: other.release(architectures[0], protocol)).start()
        started = time.monotonic()
        assert len(there.measure(architectures, "validate", "user")) == 3
        assert time.monotonic() - started > 0.9


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request, tmp_path):
    if request.param == "sqlite":
        return tmp_path / "pairs.db"
    return Database.parse(request.getfixturevalue("postgres"), schema_name("killed"))


def test_a_worker_that_is_killed_costs_its_measurement_and_no_other(place, pico_folder, tmp_path, workers):
    texts = random_texts(sequences=5 if isinstance(place, Path) else 3)  # of a protocol of its own
    dense = open_model(str(pico_folder), dtype="float32")
    with closing(DaskEngine(workers.address)) as engine, closing(PairStore(place)) as store:
        judge = Evaluator(dense, texts, store, folder=tmp_path / "prepared", engine=engine)
        architectures, protocol = asked(dense.layout, 30), judge.protocol("search")
        with ThreadPoolExecutor() as pool:
            killing = pool.submit(workers.kill, 2, protocol.fingerprint)
            found = judge.measure(architectures, "search", "user")
        assert len(killing.result()) == 2
        assert Counter(pair.architecture for pair in store.pairs(protocol.fingerprint)) == Counter(architectures)
        assert claims_of(store) == []
    finished = [key for key in workers.finished() if key.endswith(protocol.fingerprint)]
    assert Counter(finished) == Counter(f"{each.fingerprint}:{protocol.fingerprint}" for each in architectures)
    alone = make_evaluator(dense, tmp_path / "alone", texts, folder=tmp_path / "prepared")
    assert values(found) == values(alone.measure(architectures, "search", "user"))


def claims_of(store):
    with store._engine.connect() as connection:
        return connection.execute(claims.select()).all()


def test_a_run_goes_on_with_workers_and_ends_as_one_without(
    small_config, finished_folder, tmp_path, monkeypatch, workers, checked_here
):
    folder = tmp_path / "run"
    run_until(monkeypatch, load_config(small_config, {}), folder, 60)
    begun, rooms = len(pairs_of(folder)), workers.cache / "rooms"
    rooms.mkdir(parents=True, exist_ok=True)
    others = set(rooms.iterdir())
    before = len(workers.finished())
    there = {"engine": "dask", "address": workers.address}
    run_search(load_config(small_config, there), folder)
    assert sorted(pairs_of(folder)) == sorted(pairs_of(finished_folder))
    ours, alone = (json.loads((path / "best.json").read_text()) for path in (folder, finished_folder))
    for name in ("architecture", "predicted", "rounds"):
        assert ours[name] == alone[name]
    # All but the baselines without the update, which are pruned by another criterion, and what was there.
    plain = sum(name.endswith("_no_update") for name in ours["baselines"])
    assert len(workers.finished()) - before == len(pairs_of(folder)) - begun - plain
    assert set(rooms.iterdir()) == others  # its own is gone


def test_ctrl_c_gives_back_what_was_asked_for(pico, tmp_path, engine, workers):
    judge = make_evaluator(pico, tmp_path, random_texts(6), folder=tmp_path / "prepared", engine=engine)

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge.measure(asked(pico.layout, 30), "search", "user", interrupt)
    assert claims_of(judge.store) == []
    time.sleep(1.0)  # what workers were at is finished there,
    before = workers.finished()
    assert sum(key.endswith(judge.protocol("search").fingerprint) for key in before) < 15
    time.sleep(1.0)
    assert workers.finished() == before  # and nothing else begun
    assert len(judge.measure(asked(pico.layout, 30), "search", "user")) == 30
    finished = [key for key in workers.finished() if key.endswith(judge.protocol("search").fingerprint)]
    assert len(finished) == len(set(finished)) == 30


def test_a_worker_of_another_model_is_refused(pico_folder, tmp_path, engine):
    dense = open_model(str(pico_folder), dtype="float32")
    other = make_evaluator(
        replace(dense, weights_hash="another"), tmp_path, folder=tmp_path / "prepared", engine=engine
    )
    with pytest.raises(
        EngineError, match=r"must have the model of the run, but .* has the weights \w+ and not another"
    ):
        other.measure(asked(dense.layout, 2), "search", "user")
    assert claims_of(other.store) == []


def test_a_worker_that_has_no_place_for_a_room_is_refused(pico, tmp_path, engine, workers):
    judge = make_evaluator(pico, tmp_path, folder=tmp_path / "prepared", engine=engine)
    rooms, aside = workers.cache / "rooms", tmp_path / "rooms"
    rooms.mkdir(parents=True, exist_ok=True)
    rooms.rename(aside)
    rooms.write_text("in the way")
    try:
        with pytest.raises(EngineError, match=r"must be able to measure, but one of tcp://\S+ is not \(\w+: \[Errno"):
            judge.measure(asked(pico.layout, 2), "search", "user")
    finally:
        rooms.unlink()
        aside.rename(rooms)


def test_a_worker_of_other_versions_is_refused(pico, tmp_path, engine, monkeypatch):
    monkeypatch.setattr(room, "_VERSION", 7)
    judge = make_evaluator(pico, tmp_path, folder=tmp_path / "prepared", engine=engine)
    with pytest.raises(EngineError, match=r"must have the versions that the run has, but .* has room 1 instead of 7"):
        judge.measure(asked(pico.layout, 2), "search", "user")


def test_a_scheduler_that_is_not_there_is_refused(small_config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("evaluator.dask_engine._CONNECT_SECONDS", 1.0)
    command = ("run", "--config", small_config, "--out", tmp_path / "run", "--engine", "dask")
    assert call(*command) == 2
    assert "needs the address of a scheduler" in refusal(capsys.readouterr().err)
    assert call(*command, "--address", f"tcp://127.0.0.1:{free_port()}") == 2
    assert "must be within reach, but tcp://127.0.0.1" in refusal(capsys.readouterr().err)
    assert call(*command, "--address", tmp_path / "no-such-file.json") == 2
    assert "no-such-file.json' is neither" in refusal(capsys.readouterr().err)
    assert call(*command, "--address", "tls://127.0.0.1:8786") == 2
    assert "must be shown a certificate" in refusal(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_an_engine_that_is_not_installed_is_refused(small_config, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    address = f"tcp://127.0.0.1:{free_port()}"
    command = ("run", "--config", small_config, "--out", tmp_path / "run", "--engine", "dask", "--address", address)
    assert call(*command) == 2
    assert "pip install 'secateur[distributed]'" in refusal(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
