"""Reality beside the simulation of benchmark `scale`: a store that is timed, finished runs, processes that join."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from evaluator import PairStore
from evaluator.measurement import Measurement, Protocol
from space import Architecture, sample
from tests.benchmarks.scale_cluster import CALM, Cluster
from tests.benchmarks.scale_costs import AS_IS, LLAMA_70B, Code, Costs
from tests.benchmarks.scale_plan import Habits, Stage, planned
from tests.benchmarks.scale_trace import Trace
from tests.search.pieces import SPACE


def stored(pairs: int) -> dict[str, float]:
    """Time the transactions of a pair in a store on this machine's disk, and count its bytes."""
    rng = np.random.default_rng(0)
    rows = SPACE.decode(sample(SPACE, pairs, rng))
    protocol = Protocol("0" * 16, "text", "made up", "search", 4088, 512, "wanda", "text", "bfloat16")
    taken: dict[str, list[float]] = {"pair": [], "look": []}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.db"
        store = PairStore(file)
        empty = file.stat().st_size
        for row in rows:
            blocks = tuple(rng.random(64).tolist())
            measured = Measurement(3.0, 0.1, 0.3, 0.01, 0.7, 4088, protocol.fingerprint, 1.0, blocks, blocks)
            taken["pair"].append(_timed(store, row, protocol, measured))
            store.claim(row, protocol)
            began = time.perf_counter()
            store.find(row, protocol)
            store.claim(row, protocol)
            taken["look"].append(time.perf_counter() - began)
            store.release(row, protocol)
        store.close()
        size = (file.stat().st_size - empty) / len(set(rows))
    small, large = (len(Architecture.dense(layout).to_json()) for layout in (SPACE.layout, LLAMA_70B))
    return {
        "pair_seconds": round(median(taken["pair"]), 5),
        "look_seconds": round(median(taken["look"]), 5),
        "pairs_per_second": round(1 / median(taken["pair"]), 1),
        "bytes_a_pair": round(size),
        "bytes_a_pair_70b": round(size + large - small),
    }


def _timed(store: PairStore, row: Architecture, protocol: Protocol, measured: Measurement) -> float:
    began = time.perf_counter()
    store.find(row, protocol)
    store.claim(row, protocol)
    store.find(row, protocol)
    store.add(row, measured, protocol, "random")
    store.release(row, protocol)
    return time.perf_counter() - began


def repeated(traces: Sequence[Trace], code: Code) -> dict[str, Any]:
    """Return what finished runs on one machine took, and what the simulation makes of each by the others."""
    found: dict[str, Any] = {}
    for trace in traces:
        others = [each for each in traces if each is not trace]
        cluster = Cluster(Costs(code=code), 1, CALM, joined=True)
        found[trace.name] = _compared(trace.wall, run_one(cluster, like(trace, others)))
    return found


def joined(runs: Mapping[int, tuple[float, list[Stage]]], code: Code) -> dict[str, Any]:
    """Return what real processes took together, and what the simulation says by the stages of one alone.

    They share cores that others want as well, so that fits and plans take longer the more they are; their seconds are
    taken as they were. What is simulated is the measuring: who takes what, who waits, who looks for it.

    Args:
        runs: by the number of processes, what they took, and the stages of the first.
        code: with the store's times.
    """
    found: dict[str, Any] = {}
    stages = runs[1][1]
    for count, (took, own) in runs.items():
        slowed = _thinking(own) / _thinking(stages)
        expected = [replace(stage, driver=slowed * stage.driver) for stage in stages]
        cluster = Cluster(Costs(code=code), count, CALM, joined=True)
        says = run_one(cluster, expected)
        found[str(count)] = {**_compared(took, says), "thinking": round(_thinking(own), 1)}
    return found


def _thinking(stages: Sequence[Stage]) -> float:
    return sum(stage.driver for stage in stages)


def run_one(cluster: Cluster, stages: Sequence[Stage]) -> float:
    """Let one search go through its stages; return the seconds that it took."""
    ended: list[float] = []
    cluster.loop.start(cluster.search(stages)).then(ended.append)
    cluster.loop.run()
    return ended[0]


def _compared(took: float, says: float) -> dict[str, float]:
    return {"seconds": round(took, 1), "simulated": round(says, 1), "error": round(says / took - 1, 3)}


def like(trace: Trace, others: Sequence[Trace]) -> list[Stage]:
    """Return the stages of a run on one machine as other runs let expect them.

    Of the run itself they know its seconds per token, which is the machine and who else was on it, how many slopes it
    took and whether it wrote its text. All else is the others' by their own seconds per token.
    """
    pace = trace.seconds_per_token
    ours = Habits.of(others)
    costs = Costs(code=AS_IS)

    def by_pace(seconds: str, among: Sequence[Trace]) -> float:
        return pace * fmean(getattr(each, seconds) / each.seconds_per_token for each in among)

    slopes = pace * fmean(each.slopes_seconds / each.slopes / each.seconds_per_token for each in others)
    singles = pace * fmean(_alone(each) / each.seconds_per_token for each in others)
    stages = planned(costs, 1, replace(ours, slopes_per_round=0.0, driver_per_round=0.0))
    whole = sum(stage.tokens for stage in stages if _is_whole(stage))
    steps = fmean((sum(p.tokens for p in each.parts if p.origin != "prior") - whole) / each.slopes for each in others)
    writers = [each for each in others if each.generating > 60]
    return [
        Stage("generate", (by_pace("generating", writers) if trace.generating > 60 else 0.0,)),
        Stage("calibrate", (by_pace("calibrating", others),)),
        Stage("alone", (singles,)),
        Stage("slopes", (slopes,) * trace.slopes),
        Stage("whole", (pace * (whole + steps * trace.slopes),), by_pace("driver", others)),
    ]


def _alone(trace: Trace) -> float:
    return sum(part.seconds for part in trace.parts if part.origin == "prior")


def _is_whole(stage: Stage) -> bool:
    return bool(stage.tokens) and "slopes" not in stage.name and stage.name not in ("alone", "first descent: steps")
