"""What it costs when workers are killed: 2 Dask workers on this machine, and kill -9 of one at a measurement, 20 times.

    python -m tests.benchmarks.engine [--quick] [--seed N]

A tiny Llama is measured at architectures that differ, as long as there are workers to be killed. The kills fall at
random times into measurements, each of which is made to last longer; Dask's nanny starts a new worker for each that
was killed. Once with the pairs in SQLite and once in PostgreSQL.

| figure | what it is |
| --- | --- |
| `kills_survived` | kills after which the run went on |
| `pairs_lost` | architectures asked for, less pairs in the store |
| `measured_twice` | measurements that workers finished, less pairs in the store |
| `cut_off` | measurements that were begun and not finished, and made again |
| `pairs_differing` | pairs that are not, bit for bit, what one process measures |
"""

import os
import sys
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from evaluator import Database, DenseModel, Evaluator, Pair, PairStore, open_model, schema_name
from evaluator.dask_engine import DaskEngine
from evaluator.database import Place
from search.environment import describe_environment
from space import Architecture, SettingError
from tests.benchmarks.record import arguments, finish
from tests.dask_workers import Machines, machines
from tests.evaluator.pieces import random_texts
from tests.pico import save_pico
from tests.postgres import missing, server

_WORKERS, _AT_ONCE = 2, 20
_SLOW = 0.5  # seconds that a measurement takes longer
_REST = (1.0, 12.0)  # seconds between kills, about as long as a worker takes to start


def main() -> None:
    """Kill workers of a run in each kind of store, and count what that cost."""
    options = arguments("Kill workers in mid-measurement, and count what that costs.")
    if (reason := missing()) is not None:
        raise SettingError(f"The benchmark of the engine {reason}.")
    kills = 3 if options.quick else 20
    figures: dict[str, Any] = {"kills": kills, "workers": _WORKERS}
    details: dict[str, Any] = {"seed": options.seed, "slower_by_seconds": _SLOW}
    with TemporaryDirectory(prefix="secateur-engine-") as scratch, server(durable=True) as url:
        dense = open_model(str(save_pico(Path(scratch) / "model", options.seed)), dtype="float32")
        details["environment"] = describe_environment(dense)
        places: dict[str, Place] = {
            "sqlite": Path(scratch) / "pairs.db",
            "postgresql": Database.parse(url, schema_name("engine")),
        }
        for number, (kind, place) in enumerate(places.items()):
            folder = Path(scratch) / kind
            rng = np.random.default_rng([options.seed, number])
            with machines(folder, _WORKERS, _SLOW) as started:
                found, told = _killed(dense, place, started, folder, kills, rng)
            figures |= {f"{kind}_{name}": value for name, value in found.items()}
            details[kind] = told
            print(f"{kind}: {found}", file=sys.stderr, flush=True)
    details["load_average"] = os.getloadavg()
    finish("engine", figures, details, options.quick)


def _killed(
    dense: DenseModel, place: Place, started: Machines, folder: Path, kills: int, rng: np.random.Generator
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure while workers are killed; return figures and details."""
    begun = time.perf_counter()
    asked: list[Architecture] = []
    with closing(DaskEngine(started.address)) as engine, closing(PairStore(place)) as store:
        judge = Evaluator(dense, random_texts(8, 64), store, folder=folder / "prepared", engine=engine)
        protocol = judge.protocol("search").fingerprint
        with ThreadPoolExecutor() as pool:
            killing: Future[list[int]] = pool.submit(started.kill, kills, protocol, lambda: rng.uniform(*_REST))
            while not killing.done():
                new = _drawn(dense, rng)
                judge.measure(new, "search", "random")
                asked += new
        killed = killing.result()
        kept = store.pairs(protocol)
    finished = Counter(started.finished())
    told = [what for what, _, _ in started.told()]
    figures = {
        "kills_survived": len(killed),
        "pairs": len(kept),
        "pairs_lost": len({*asked}) - len(kept),
        "measured_twice": finished.total() - len(kept),
        "cut_off": told.count("begin") - told.count("end"),
        "pairs_differing": _differing(dense, kept, folder),
    }
    return figures, {"killed": killed, "seconds": time.perf_counter() - begun}


def _drawn(dense: DenseModel, rng: np.random.Generator) -> list[Architecture]:
    """Return architectures that were hardly asked for before."""
    found = []
    for _ in range(_AT_ONCE):
        architecture = Architecture.dense(dense.layout)
        for layer in range(dense.layout.layers):
            width = int(rng.integers(8, dense.layout.mlp_width + 1))
            architecture = architecture.replace(layer, mlp_width=width)
        found.append(architecture)
    return found


def _differing(dense: DenseModel, kept: list[Pair], folder: Path) -> int:
    """Return how many pairs one process measures otherwise."""
    with closing(PairStore(folder / "alone.db")) as store:
        judge = Evaluator(dense, random_texts(8, 64), store, folder=folder / "prepared")
        alone = judge.measure([pair.architecture for pair in kept], "search", "random")
        judge.surgeon.restore()
    both = zip(alone, (pair.measurement for pair in kept), strict=True)
    return sum((one.kl_blocks, one.nll_blocks) != (other.kl_blocks, other.nll_blocks) for one, other in both)


if __name__ == "__main__":
    main()
