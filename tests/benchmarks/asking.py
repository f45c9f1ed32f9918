"""How fast a fitted predictor answers: from JSON or an array to values with intervals, and costs.

    python -m tests.benchmarks.asking [--quick] [--seed N] [--run RUN]

What a service does below its route. Without a run, the predictors are of a made-up model of 30 layers: singles, as many
whole architectures and expansions as a run of the built-in model has, and its residual stream; one for each regressor.
What is told by the clock needs an idle machine: the load average is kept with the result.
Each figure is the best of several repeats; `core` is by processor time of the calling process, which a busy machine
distorts less than the clock, so a figure by two threads is by the clock.

| figure | meaning |
| --- | --- |
| `milliseconds` | one architecture: JSON text read, found in the space, costs told, predicted with its interval |
| `milliseconds_of_16` | the same for each of 16 that are predicted together, as requests that meet are |
| `architectures_per_second_records` | the same for 1,000 |
| `architectures_per_second_core` | arrays of genes by batch size: checked, encoded, costs told, predicted; one core |
| `architectures_per_second_two_threads` | the largest batch by the clock, two threads sharing the prediction |
| `microseconds` | what an architecture takes of that by part, in the largest batch |
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from predictor import REGRESSORS, AccuracyPredictor, Expansion, ResidualStream, fitting
from predictor.threads import one_thread
from search.folder import RunFolder
from space import Architecture, SearchSpace, encode_genes, read_genes, sample
from tests.benchmarks.record import finish
from tests.predictor.synthetic import SINGLES, SPACE, draw, measure
from tests.space.layouts import SMOLLM2_135M

BATCHES = (1, 10, 100, 1_000, 10_000, 100_000)
QUICK_BATCHES = (1, 100, 4_000)
TOGETHER, RECORDS = 16, 1_000
PAIRS, EXPANSIONS = 150, 25  # of a run of the built-in model with 400 measurements


def main() -> None:
    """Ask each predictor and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small batches and two regressors, not recorded")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path, help="run folder whose predictor to ask, not recorded")
    options = parser.parse_args()
    if options.run:
        folder = RunFolder(options.run)
        asked = {"run": (folder.search_space(), AccuracyPredictor.load(folder.predictors()[0]))}
    else:
        names = ["xgboost", "gaussian_process"] if options.quick else list(REGRESSORS)
        asked = {name: (SPACE, made_up(name, options.seed)) for name in names}
    figures, details = {}, {}
    batches = QUICK_BATCHES if options.quick else BATCHES
    with one_thread():
        for name, (space, predictor) in asked.items():
            figures[name] = ask(space, predictor, batches, options.seed)
            details[name] = {
                "regressor": predictor.quality.regressor,
                "pairs": predictor.quality.pairs,
                "expansions": len(predictor.expansions),
            }
            print(f"{name}: {figures[name]}", flush=True)
    machine = {"cores": os.cpu_count(), "load_average": [round(each, 1) for each in os.getloadavg()]}
    finish(
        "asking",
        figures,
        {"seed": options.seed, "machine": machine, "asked": details},
        options.quick or options.run is not None,
    )


def made_up(name: str, seed: int) -> AccuracyPredictor:
    """Return a predictor of the made-up model that knows as much as a run's."""
    drawn = draw(PAIRS, seed)
    values = measure(SINGLES + drawn, seed)
    best = sorted(range(len(drawn)), key=lambda index: values[len(SINGLES) + index])[:EXPANSIONS]
    expansions = [expansion(drawn[index], seed) for index in best]
    layers = np.arange(SMOLLM2_135M.layers + 1)
    stream = ResidualStream(np.abs(np.subtract.outer(layers, layers)) / 60, np.eye(SMOLLM2_135M.layers))
    # Whether slopes make a made-up model's predictions better is not asked here, but what they take.
    kept, fitting._judged = fitting._judged, lambda problem, _: problem.expansions
    try:
        return AccuracyPredictor.fit(
            SMOLLM2_135M, SINGLES + drawn, values, expansions=expansions, stream=stream, seed=seed, regressors=[name]
        )
    finally:
        fitting._judged = kept


def expansion(centre: Architecture, seed: int) -> Expansion:
    """Return what differences of the made-up model, without its noise, say around an architecture."""
    places = [
        (layer, gene, choice.width)
        for layer in range(SMOLLM2_135M.layers)
        for gene, options in (("kv_groups", SPACE.choices[2 * layer]), ("mlp_width", SPACE.choices[2 * layer + 1]))
        for choice in options
    ]
    around = [centre.replace(layer, **{gene: width}) for layer, gene, width in places]
    damage, *others = measure([centre, *around], seed, noise=0.0)
    told: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for (layer, gene, width), value in zip(places, others, strict=True):
        told.setdefault((layer, gene), []).append((float(width), value - damage))
    return Expansion(SMOLLM2_135M, centre, damage, tuple(map(tuple, told.values())), ((),) * len(told))


def ask(space: SearchSpace, predictor: AccuracyPredictor, batches: tuple[int, ...], seed: int) -> dict[str, Any]:
    """Return the figures of one predictor."""
    drawn = sample(space, RECORDS, np.random.default_rng(seed))
    texts = [architecture.to_json() for architecture in space.decode(drawn)]
    genes = space.genes(drawn[np.arange(batches[-1]) % RECORDS])

    def records(count: int) -> None:
        found = [Architecture.from_dict(json.loads(text)) for text in texts[:count]]
        space.encode(found)
        for architecture in found:
            space.amounts(architecture)
        predictor.predict(found)

    def batch(count: int, threads: int = 1) -> None:
        found = read_genes(space.layout, genes[:count])
        space.costs(encode_genes(space, found))
        predictor.predict_genes(found, threads=threads)

    alone, together, many = (seconds(lambda count=count: records(count))[1] for count in (1, TOGETHER, RECORDS))
    by_batch = {str(count): seconds(lambda count=count: batch(count))[1] / count for count in batches}
    encoded = encode_genes(space, genes)
    parts: dict[str, Callable[[], object]] = {
        "read": lambda: read_genes(space.layout, genes),
        "encode": lambda: encode_genes(space, genes),
        "costs": lambda: space.costs(encoded),
        "predict": lambda: predictor.predict_genes(genes),
        "without_intervals": lambda: predictor.damages(genes),
    }
    return {
        "milliseconds": round(1e3 * alone, 3),
        "milliseconds_of_16": round(1e3 * together / TOGETHER, 3),
        "architectures_per_second_records": round(RECORDS / many),
        "architectures_per_second_core": {count: round(1 / each) for count, each in by_batch.items()},
        "architectures_per_second_two_threads": round(len(genes) / seconds(lambda: batch(len(genes), 2))[0]),
        "microseconds": {name: round(1e6 * seconds(part)[1] / len(genes), 2) for name, part in parts.items()},
    }


def seconds(call: Callable[[], object], least: float = 0.3, fewest: int = 2) -> tuple[float, float]:
    """Return the least time that a call took, by the clock and by this process' processor time."""
    clock, own, started, calls = np.inf, np.inf, time.perf_counter(), 0
    while calls < fewest or time.perf_counter() - started < least:
        calls += 1
        before, own_before = time.perf_counter(), time.process_time()
        call()
        clock, own = min(clock, time.perf_counter() - before), min(own, time.process_time() - own_before)
    return float(clock), float(own)


if __name__ == "__main__":
    main()
