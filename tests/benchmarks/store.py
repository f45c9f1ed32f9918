"""How long a store of a million pairs takes to add, to find and to load for fitting, in SQLite and PostgreSQL.

`python -m tests.benchmarks.store [--quick]`; about a quarter of an hour and 9 GB of disk for a while. The pairs are
random architectures of SmolLM2-135M with measurements as long as a run's: what they say does not matter to a database.
20 protocols have a run's thousand pairs each, one has all others. Both databases wait for the disk at each transaction.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import sqlalchemy as sa

from evaluator import Database, Measurement, PairStore, Protocol, schema_name
from evaluator.database import Place, connect
from evaluator.rows import blocks_to_bytes, pack
from evaluator.tables import architectures, pairs, protocols
from space import Architecture, LayerArchitecture, SettingError
from tests.benchmarks.record import arguments, finish
from tests.postgres import missing, server
from tests.space.layouts import SMOLLM2_135M

_RUNS, _OF_A_RUN = 20, 1000  # protocols, and pairs of each
_BLOCKS = 64  # of a measurement on 4,096 tokens
_ADDED, _FOUND, _OPENED = 500, 2000, 20  # how often each is timed
_AT_ONCE = 5000


def main() -> None:
    """Fill a store of each kind, and time what a run does with it."""
    options = arguments("Time a store of a million pairs.")
    count = 20_000 if options.quick else 1_000_000
    runs = _RUNS if not options.quick else 5
    if (reason := missing()) is not None:
        raise SettingError(f"The benchmark of the store {reason}.")
    figures: dict[str, Any] = {"pairs": count}
    details: dict[str, Any] = {}
    with TemporaryDirectory(prefix="secateur-store-") as scratch, server(durable=True) as url:
        file = Path(scratch) / "pairs.db"
        # PostgreSQL takes over what SQLite has, so that both have the same.
        places: dict[str, Place] = {"sqlite": file, "postgresql": Database.parse(url, schema_name("store"))}
        for kind, place in places.items():
            with closing(PairStore(place)) as store, _timed(details, f"{kind}_fill_seconds"):
                if kind == "sqlite":
                    _fill(store, count, runs, options.seed)
                else:
                    with closing(PairStore(file)) as other:
                        store.take_over(other, {}, "random")
                    _settle(store)
            own = _measure(place, runs, options.seed)
            figures |= {f"{kind}_{name}": value for name, value in own.items()}
            details[f"{kind}_bytes"] = _size(place)
        with closing(sqlite3.connect(file)) as connection, _timed(details, "sqlite_quick_check_seconds"):
            connection.execute("PRAGMA quick_check(1)").fetchone()  # what opening a store took before
    details |= {"seed": options.seed, "layers": SMOLLM2_135M.layers, "processors": os.cpu_count()}
    details["load_average"] = os.getloadavg()
    finish("store", figures, details, options.quick)


def _protocol(number: int) -> Protocol:
    return Protocol("weights", f"text {number}", "file.txt", "search", 4088, 512, "wanda", "calibration", "bfloat16")


def _drawn(rng: np.random.Generator, count: int) -> Iterator[Architecture]:
    layout = SMOLLM2_135M
    groups = rng.integers(0, layout.kv_groups + 1, (count, layout.layers)).tolist()
    widths = (128 * rng.integers(0, layout.mlp_width // 128 + 1, (count, layout.layers))).tolist()
    known: dict[tuple[int, int], LayerArchitecture] = {}
    for row in zip(groups, widths, strict=True):
        genes = list(zip(*row, strict=True))
        yield Architecture(tuple([known.setdefault(each, LayerArchitecture(*each)) for each in genes]))


def _fill(store: PairStore, count: int, runs: int, seed: int) -> None:
    """Add pairs in bulk, as nothing but a benchmark does."""
    rng = np.random.default_rng([seed, 1])
    with store._engine.begin() as connection:
        known = [_protocol(number) for number in range(runs + 1)]
        rows = [{"fingerprint": each.fingerprint, "content": each.to_json()} for each in known]
        connection.execute(protocols.insert(), rows)
        for first in range(0, count, _AT_ONCE):
            some = list(_drawn(rng, _AT_ONCE))
            kl = rng.gamma(2.0, 0.1, _AT_ONCE).tolist()
            blocks = [blocks_to_bytes(row) for row in rng.gamma(2.0, 0.1, (_AT_ONCE, _BLOCKS))]
            contents, kept = [], []
            for number, architecture in enumerate(some):
                fingerprint, place = architecture.fingerprint, first + number
                # The runs' pairs lie among the others, as in a store that many wrote to.
                run = place // 7 % runs + 1 if place % 7 == 0 and place // 7 < runs * _OF_A_RUN else 0
                contents.append({"fingerprint": fingerprint, "content": architecture.to_json()})
                kept.append(
                    {
                        "fingerprint": fingerprint,
                        "protocol": known[run].fingerprint,
                        "origin": "random",
                        "nll": 3.0 + kl[number],
                        "nll_standard_error": 0.02,
                        "kl": kl[number],
                        "kl_standard_error": 0.01,
                        "agreement": 0.7,
                        "tokens": 4088,
                        "wall_seconds": 1.0,
                        "measured_at": "2026-11-28T00:00:00+00:00",
                        "genes": pack(architecture),
                        "nll_blocks": blocks[number],
                        "kl_blocks": blocks[-1 - number],
                    }
                )
            connection.execute(architectures.insert(), contents)
            connection.execute(pairs.insert().inline(), kept)


def _settle(store: PairStore) -> None:
    """Do now what a PostgreSQL server does by itself some minutes after so much was written."""
    with store._engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(sa.text("VACUUM ANALYZE pairs"))


def _measure(place: Place, runs: int, seed: int) -> dict[str, float]:
    """Time what a run does with a store."""
    rng = np.random.default_rng([seed, 2])
    opened = _times(lambda: PairStore(place).close(), _OPENED)
    with closing(PairStore(place)) as store:
        run = _protocol(1)
        of_a_run = [pair.architecture for pair in store.pairs(run.fingerprint)]
        asked = [of_a_run[index] for index in rng.integers(0, len(of_a_run), _FOUND)]
        found = _times(lambda: store.find(asked.pop(), run), _FOUND)
        new = list(_drawn(rng, _ADDED))
        told = tuple(rng.gamma(2.0, 0.1, _BLOCKS).tolist())
        measured = Measurement(3.1, 0.02, 0.1, 0.01, 0.7, 4088, run.fingerprint, 1.0, told, told)
        added = _times(lambda: store.add(new.pop(), measured, run, "random"), _ADDED)
        claimed = list(_drawn(rng, _ADDED))
        claims = _times(lambda: (store.claim(claimed[-1], run), store.release(claimed.pop(), run)), _ADDED)
        load = _times(lambda: store.pairs(_protocol(2).fingerprint), 10)
        started = _times(store.seconds_measured, 5)
        before, begun, own = psutil.Process().memory_info().rss, time.perf_counter(), time.process_time()
        table = store.table(_protocol(0).fingerprint)
        taken, worked = time.perf_counter() - begun, time.process_time() - own
        held = psutil.Process().memory_info().rss - before
    return {
        "open_seconds": float(np.median(opened)),
        "add_median_seconds": float(np.median(added)),
        "add_p99_seconds": float(np.quantile(added, 0.99)),
        "find_median_seconds": float(np.median(found)),
        "find_p99_seconds": float(np.quantile(found, 0.99)),
        "claim_and_release_median_seconds": float(np.median(claims)),
        "load_of_a_run_seconds": float(np.median(load)),
        "pairs_of_a_run": len(of_a_run),
        "sum_of_seconds_measured_seconds": float(np.median(started)),
        "load_of_all_seconds": taken,
        "load_of_all_processor_seconds": worked,  # of this process, whatever else the machine does
        "pairs_of_all": len(table.kl),
        "load_of_all_gigabytes": held / 1e9,
    }


def _times(call: Callable[[], Any], count: int) -> list[float]:
    taken = []
    for _ in range(count):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return taken


@contextmanager
def _timed(details: dict[str, Any], name: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    details[name] = time.perf_counter() - begun


def _size(place: Place) -> int:
    if isinstance(place, Path):
        return place.stat().st_size
    engine = connect(place)
    try:
        with engine.connect() as connection:
            return int(connection.execute(sa.select(sa.func.pg_database_size(sa.func.current_database()))).scalar_one())
    finally:
        engine.dispose()


if __name__ == "__main__":
    main()
