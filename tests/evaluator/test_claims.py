"""Several processes on one store measure no architecture twice, and a dead one holds nothing up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from evaluator import PairStore
from evaluator.tables import claims
from space import Architecture
from tests.evaluator.pieces import make_evaluator

ROOT = Path(__file__).parents[2]
# Forked after the imports, which take longer than all else.
WORKERS = """
import os, sys, time
from pathlib import Path
from evaluator import Evaluator, open_model
from space import Architecture
from tests.evaluator.pieces import make_evaluator

model, place = sys.argv[1], Path(sys.argv[2])
other = os.fork()
turn = 1 if other else 0
measured, plain = [], Evaluator._measure

def measure(self, architecture, split, protocol):
    measured.append(architecture.fingerprint)
    time.sleep(0.05)
    return plain(self, architecture, split, protocol)

Evaluator._measure = measure
judge = make_evaluator(open_model(model, dtype="float32"), place)
(place / f"ready-{turn}").touch()
while not (place / f"ready-{1 - turn}").exists():
    time.sleep(0.01)
dense = Architecture.dense(judge.dense.layout)
asked = [dense.replace(layer, mlp_width=width) for layer in range(6) for width in (0, 8, 16)]
found = judge.measure(asked, "search", "user")
kl = (f"{each.kl:.9f}" for each in found)
(place / f"told-{turn}").write_text(" ".join(measured) + "\\n" + " ".join(kl))
if other:
    assert os.waitpid(other, 0)[1] == 0
"""


def test_two_processes_share_the_work(pico_folder, tmp_path, pico):
    make_evaluator(pico, tmp_path).store.close()
    subprocess.run(
        [sys.executable, "-c", WORKERS, str(pico_folder), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    (first, values), (second, others) = ((tmp_path / f"told-{turn}").read_text().splitlines() for turn in range(2))
    measured = [first.split(), second.split()]
    assert len(measured[0]) + len(measured[1]) == 18
    assert len({*measured[0], *measured[1]}) == 18
    assert min(map(len, measured)) > 0
    assert values == others


@pytest.fixture
def store(tmp_path):
    opened = PairStore(tmp_path / "pairs.db")
    yield opened
    opened.close()


def test_a_claim_of_a_process_that_lives_holds_and_of_one_that_died_does_not(store, pico, tmp_path):
    architecture = Architecture.dense(pico.layout)
    protocol = make_evaluator(pico, tmp_path / "other").protocol("search")
    assert store.claim(architecture, protocol)
    assert store.claim(architecture, protocol)  # my own
    host = owner_of(store).rpartition(":")[0]
    give_to(store, f"{host}:{os.getppid()}")
    assert not store.claim(architecture, protocol)
    give_to(store, f"{host}:{dead_process()}")
    assert store.claim(architecture, protocol)
    give_to(store, "another machine:1")
    assert not store.claim(architecture, protocol)
    give_to(store, "another machine:1", claimed_at=0.0)
    assert store.claim(architecture, protocol)
    store.release(architecture, protocol)
    assert owner_of(store) is None


def test_a_measurement_that_fails_gives_its_claim_back(pico, tmp_path, monkeypatch):
    judge = make_evaluator(pico, tmp_path)

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(judge, "_measure", fail)
    with pytest.raises(KeyboardInterrupt):
        judge.measure([Architecture.dense(pico.layout)], "search", "user")
    assert owner_of(judge.store) is None


def dead_process():
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    return finished.pid


def owner_of(store):
    with store._engine.connect() as connection:
        return connection.execute(sa.select(claims.c.owner)).scalar_one_or_none()


def give_to(store, owner, **values):
    with store._engine.begin() as connection:
        connection.execute(claims.update().values(owner=owner, **values))
