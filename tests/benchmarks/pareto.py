"""Which search finds the better Pareto set for the same tokens: one search, one at each of three budgets, or chance.

    python -m tests.benchmarks.pareto [--quick] [--seeds N]

stories260K, a model of 260 thousand parameters, on TinyStories: 80 % of the decoder's parameters at most, against
weight bytes, and against weight bytes and KV cache bytes, down to the middle between the smallest architecture and the
dense one. Each way may spend as many tokens as the prior and ARCHITECTURES whole architectures take; the three searches
share one prior and the rest. `set` is one search with `search.against`; `budgets` are three without, at the budgets, at
the floor of all costs, and in the middle between these; `random` are samples on the rungs.

Of all that each measured the set on the search text is taken, and the 12 members that reach most of its hypervolume are
measured on validation text that no search saw. Reference points are the same for all: the KL of uniform pruning at the
floor, and a fifth of the range beyond the budgets in every cost. What each way found lies in runs/benchmark-pareto, so
that the benchmark goes on where it was stopped.

| figure | meaning |
| --- | --- |
| `hypervolume_search` | of the set on the search text, mean over seeds; in nats times shares of dense costs |
| `hypervolume_validate` | of the 12 on the validation text |
| `kl_validate` | geometric mean over budgets spread evenly over the range of the lowest KL within each, of the 12 |
| `tokens` | spent, in thousands: a search ends when it promises too little |
"""

import argparse
import json

import numpy as np

from evaluator import Evaluator, Pair, PairStore, Texts, open_model
from search.baselines import fixed_allocations, scored_allocations
from search.config import RunConfig, load_config
from search.folder import RunFolder
from search.job import Run
from search.ladder import Ladder
from search.pareto_set import ParetoSet
from search.progress import Reporter
from search.proposals import prior_architectures
from search.strategies import STRATEGIES
from tests.benchmarks.pool import sequences_of
from tests.benchmarks.record import DATA, ROOT, finish

LENGTH, CALIBRATE, SEARCH, VALIDATE = 512, 32, 8, 16  # sequences
ARCHITECTURES = 144  # whole ones, as a run measures by default
QUICK = 90
FOLDER = ROOT / "runs" / "benchmark-pareto"
TOLD = 12
WAYS = ("set", "budgets", "random")
CASES = {"weight_bytes": ("weight_bytes",), "weight_and_kv_bytes": ("weight_bytes", "kv_cache_bytes_per_token")}


def main() -> None:
    """Search in every way and print how far each came."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed and fewer architectures, in some minutes")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    rows: dict[str, dict[str, list[dict[str, float]]]] = {case: {way: [] for way in WAYS} for case in CASES}
    for seed in range(1 if options.quick else options.seeds):
        for case, against in CASES.items():
            judge = opened(seed, options.quick)
            config = settings(seed, against)
            ladder = config.ladder(config.search_space(judge.dense.layout))
            for way in WAYS:
                file = FOLDER / f"{case}-{way}-{seed}{'-quick' if options.quick else ''}.json"
                if not file.exists():
                    found = searched(way, config, judge, ladder, QUICK if options.quick else ARCHITECTURES)
                    file.write_text(json.dumps(found))
                found = json.loads(file.read_text())
                rows[case][way].append(found)
                print(f"{case} {way} seed {seed}: {found}", flush=True)
            judge.store.close()
    figures = {
        case: {
            way: {name: round(float(np.mean([row[name] for row in own])), 4) for name in own[0]}
            for way, own in ways.items()
        }
        for case, ways in rows.items()
    }
    details = {"seeds": options.seeds, "architectures": ARCHITECTURES, "rows": rows}
    finish("pareto", figures, details, options.quick)


def settings(seed: int, against: tuple[str, ...], share: int = 1, budget: tuple[str, ...] = ()) -> RunConfig:
    """Return the settings of a search that takes a share of the pairs; rounds without end, tokens end it."""
    pairs = {
        f"search.{name}_pairs": count // share for name, count in (("random", 16), ("profile", 24), ("guided", 24))
    }
    model = str(DATA / "models" / "stories260K")
    values = {"model": model, "budget": ["parameters=0.8", *budget], "seed": seed, "search.rounds": 1000}
    return load_config(None, {**values, **pairs, "search.against": against})


def opened(seed: int, quick: bool) -> Evaluator:
    """Return an evaluator with a store that all ways share."""
    files = RunFolder(FOLDER / f"{seed}{'-quick' if quick else ''}")
    files.path.mkdir(parents=True, exist_ok=True)
    dense = open_model(str(DATA / "models" / "stories260K"), dtype="float32")
    drawn = sequences_of(dense, DATA / "text" / "tinystories.txt", LENGTH, seed)
    sizes = (CALIBRATE, SEARCH, VALIDATE)
    parts = dict(zip(("calibrate", "search", "validate"), drawn[: sum(sizes)].split(sizes), strict=True))
    texts = Texts({**parts, "report": parts["validate"]}, dict.fromkeys((*parts, "report"), "TinyStories"))
    return Evaluator(dense, texts, PairStore(files.measurements_file), folder=files.prepared)


def at_work(config: RunConfig, judge: Evaluator) -> Run:
    """Return a run that has measured nothing but its baselines, and the prior."""
    space = config.search_space(judge.dense.layout)
    baselines = fixed_allocations(space) | scored_allocations(space, judge.surgeon)
    files = RunFolder(FOLDER / str(config.seed))
    run = Run(config, files, Reporter(quiet=True), judge, space, baselines, [], [], None)
    run.measure("Baselines", list(baselines.values()), "baseline")
    run.measure("Prior", prior_architectures(space), "prior")
    return run


def searched(way: str, config: RunConfig, judge: Evaluator, ladder: Ladder, architectures: int) -> dict[str, float]:
    """Return how far one way to find a Pareto set comes."""
    tokens = architectures * judge.protocol("search").tokens
    if way == "budgets":
        runs = [at_work(settings(config.seed, (), 3, budget), judge) for budget in budgets(ladder)]
    else:
        runs = [at_work(config, judge)]
    spent = 0.0
    for run in runs:
        begun = run.spent
        STRATEGIES["random" if way == "random" else "predictor"](run, begun + tokens / len(runs))
        spent += run.spent - begun
    pairs = [pair for run in runs for pair in run.pairs]
    judged = at_work(config, judge)
    found = ParetoSet.of(ladder, pairs, judged.reference())
    validated = judged.score(found.widest(TOLD), "searched", "validate")
    told = ParetoSet.of(ladder, validated, judged.reference("validate"))
    return {
        "hypervolume_search": found.hypervolume,
        "hypervolume_validate": told.hypervolume,
        "kl_validate": mean_lowest(ladder, validated, judged.reference("validate")[0]),
        "members": len(found.members),
        "tokens": spent / 1000,
    }


def budgets(ladder: Ladder) -> list[tuple[str, ...]]:
    """Return the budgets of three searches, besides that of all: none, halfway down, at the floor."""
    places = [None, (ladder.top + ladder.floor) / 2, ladder.floor]
    return [
        () if place is None else tuple(f"{m}={share}" for m, share in zip(ladder.against, place.tolist(), strict=True))
        for place in places
    ]


def mean_lowest(ladder: Ladder, pairs: list[Pair], worst: float) -> float:
    """Return the geometric mean over budgets of the lowest KL within each, at worst that of the reference."""
    marks = ladder.marks[(ladder.marks <= ladder.top).all(axis=1)]
    inside = (ladder.shares([pair.architecture for pair in pairs])[:, None] <= marks).all(axis=2)
    kl = np.array([pair.measurement.kl for pair in pairs])[:, None]
    lowest = np.where(inside, kl, worst).min(axis=0).clip(max=worst)
    return float(np.exp(np.log(lowest).mean()))


if __name__ == "__main__":
    main()
