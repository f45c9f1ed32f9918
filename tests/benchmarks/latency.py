"""How far a table of sub-block timings is from whole models that it was not made from.

    python -m tests.benchmarks.latency [--quick] [--seed N]

SmolLM2-135M, batch 1, a prefill of 512 tokens and a token behind 512 in the cache; 12 random architectures between 30
and 95 % of the decoder's parameters and the dense model, in the same rounds as those that the table is made from.

| figure | what it is |
| --- | --- |
| `mean_error`, `largest_error` | of the table's sums, as shares of what the whole models took |
| `kendall_tau` | of sums and whole models |
| `seconds` | that the table and its check took |
| `layer_spread` | deviation over layers of what the same widths take |

With one thread times are of the processor, which other work on the machine does not count in; `--wall` takes those of
the clock on the wall, as runs do, and as more threads need.
"""

import argparse
import os
import sys
import time
from typing import Any

import numpy as np
import torch

from evaluator import open_model
from evaluator.latency import measure_latency
from evaluator.timing import Bench
from search.environment import describe_environment
from space import Phase, build_space
from tests.benchmarks.record import DATA, finish

ROUNDS = {"prefill": 5, "decode": 10}
MODELS = 13


def main() -> None:
    """Time both phases and print how far off the table is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small version in a minute or two, not recorded")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wall", action="store_true", help="by the clock on the wall")
    options = parser.parse_args()
    wall = options.wall or torch.get_num_threads() > 1
    dense = open_model(str(DATA / "models" / "stories260K") if options.quick else "smollm2-135m")
    length, models = (64, 5) if options.quick else (512, MODELS)
    figures: dict[str, Any] = {"clock": "wall" if wall else "processor"}
    details: dict[str, Any] = {"seed": options.seed, "environment": describe_environment(dense), "tables": {}}
    phases: tuple[Phase, ...] = ("prefill", "decode")
    for phase in phases:
        rounds = 2 if options.quick else ROUNDS[phase]
        bench = Bench(dense, phase, 1, length, clock=time.perf_counter if wall else time.thread_time)
        before = os.getloadavg()[0]
        table = measure_latency(bench, build_space(dense.layout), rounds, models, np.random.default_rng(options.seed))
        assert table.check is not None
        figures[phase] = {
            **{name: round(getattr(table.check, name), 4) for name in ("mean_error", "largest_error", "kendall_tau")},
            "seconds": table.seconds,
            "layer_spread": round(table.layer_spread, 4),
        }
        details["tables"][phase] = table.to_dict() | {"load_average": [before, os.getloadavg()[0]]}
        print(f"{phase}: {figures[phase]}", file=sys.stderr, flush=True)
    finish("latency-wall" if options.wall else "latency", figures, details, options.quick)


if __name__ == "__main__":
    main()
