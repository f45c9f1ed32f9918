"""Which search finds the better model for the same tokens: ours, evolution, additive scores, random, or none at all.

    python -m tests.benchmarks.search [--quick] [--seed N ...] [--space NAME ...] [--strategy NAME ...] [--device NAME]

SmolLM2-135M; calibrated and searched on WikiText-2 training text and C4 in equal parts, reported on 16,384 tokens of
WikiText-2 test, which nothing here chooses by. Every strategy may spend TOKENS tokens through the decoder: the prior,
evaluations on fewer tokens, and backward passes (two forward each) included, calibration apart, since all share it.
What the dense model does once (reference, residual stream) is not counted either.
They share one store of measurements and pay as if they had none. At each share of the spending, the strategy's best so
far on the search text is what it would hand over; its perplexity is the curve.

What was measured lies in runs/benchmark-search and, packed, beside the results (`measured/`), so that the benchmark
goes on where it was stopped, on another machine as well. What an earlier call finished stays in the result, each row
with its seed and commit; strategies that are not finished are left out of the figures.

| figure | meaning |
| --- | --- |
| `perplexity_final` | on the report text with all tokens spent, mean over seeds, by strategy |
| `perplexity_curve` | the same by share of the spending |
| `tokens_to_match_evolution` | spent by ours when it is first as good as evolution in the end |
| `gain_over_uniform` | 1 less perplexity by that of uniform pruning with the same criterion and update; by the least |
| | influential blocks removed where whole blocks are searched |
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from evaluator import DenseModel, Evaluator, Measurement, PairStore, Texts, difference, open_model
from evaluator.sources import tokenise
from search.baselines import fixed_allocations, scored_allocations
from search.config import RunConfig, load_config
from search.environment import commit, device_name
from search.folder import RunFolder
from search.job import Run, Spent
from search.progress import Reporter
from search.strategies import STRATEGIES
from space import Architecture
from tests.benchmarks.pool import sequences_of
from tests.benchmarks.record import DATA, RESULTS, ROOT, finish, keep, restore

TOKENS = 800_000
LENGTH, CALIBRATE, VALIDATE, REPORT = 512, 128, 16, 32  # sequences
# Sequences of the search text that a strategy measures on, the beginning of the same text for all.
SEARCH = {name: 8 if name == "predictor" else 4 for name in STRATEGIES}
Rows = dict[str, dict[str, list[dict[str, Any]]]]  # by space and strategy, one a seed
SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
ORDER = ("predictor", "evolution", "additive", "random")
SPACES: dict[str, dict[str, Any]] = {
    "depth_22": {"budget": "parameters=0.74", "space.whole_blocks": True},
    "widths_80": {"budget": "parameters=0.8"},
    "sparsity_70": {"budget": "nonzero_parameters=0.3", "space.sparsities": [0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]},
    "widths_60": {"budget": "parameters=0.6"},
    "widths_90": {"budget": "parameters=0.9"},
}


@dataclass
class Bench:
    """One space and seed, whose store all strategies share."""

    config: RunConfig
    judge: Evaluator
    baselines: dict[str, Architecture]
    files: RunFolder
    tokens: float

    def run(self) -> Run:
        """Return a run that has measured nothing but the baselines."""
        space = self.config.search_space(self.judge.dense.layout)
        run = Run(self.config, self.files, Reporter(), self.judge, space, self.baselines, [], [], None)
        run.measure("Baselines", list(self.baselines.values()), "baseline")
        return run


def main() -> None:
    """Run what is asked for and print the figures of all that is finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model and few tokens, in a minute or two")
    parser.add_argument("--seed", action="append", type=int, help="which; 0 and 1 without")
    parser.add_argument("--space", action="append", choices=list(SPACES), help="which; all without")
    parser.add_argument("--strategy", action="append", choices=list(STRATEGIES), help="which; those of ORDER without")
    parser.add_argument("--device", default="cpu", help="where the model is, e.g. cuda")
    options = parser.parse_args()
    dense = open_dense(options.quick, options.device)
    rows: Rows = {}
    for seed in options.seed or (0, 1):
        for name in options.space or SPACES:
            for strategy in options.strategy or ORDER:
                with prepared(name, seed, dense, SEARCH[strategy], options.quick) as bench:
                    row = curve(bench, strategy)
                    print(f"{name} {strategy} seed {seed}: {row['perplexity']}", flush=True)
                    with FileLock(bench.files.path.parent / "rows.lock"):  # of calls beside this one
                        rows = rows if options.quick else finished()
                        put(rows, name, strategy, seed, row)
                        put(rows, name, "baselines", seed, unsearched(bench))
                        put(rows, name, "differences", seed, differences(bench, rows[name], seed))
                        details = {"tokens": TOKENS, "shares": SHARES, "rows": rows}
                        finish("search", {name: figures_of(own) for name, own in rows.items()}, details, options.quick)
                keep(bench.files.measurements_file, "search", options.quick)


def open_dense(quick: bool, device: str) -> DenseModel:
    """Open the benchmark's model."""
    return open_model(str(DATA / "models" / "stories260K") if quick else "smollm2-135m", device=device)


def finished() -> Rows:
    """Return the rows of earlier calls."""
    file = RESULTS / "search.json"
    found: Rows = json.loads(file.read_text())["rows"] if file.exists() else {}
    return found


def put(rows: Rows, space: str, strategy: str, seed: int, row: Mapping[str, Any]) -> None:
    """Put a row in the place of an earlier one of its space, strategy and seed, by the order of seeds."""
    own = rows.setdefault(space, {}).setdefault(strategy, [])
    others = [each for each in own if each["seed"] != seed]
    own[:] = sorted([*others, {"seed": seed, "commit": commit(), **row}], key=lambda each: each["seed"])


@contextmanager
def prepared(name: str, seed: int, dense: DenseModel, sequences: int, quick: bool) -> Iterator[Bench]:
    """Prepare texts and open the store of a space and seed for a while; the dense model is installed afterwards.

    Args:
        name: of the space.
        seed: of texts and searches.
        dense: the model.
        sequences: of the search text.
        quick: takes few tokens.
    """
    # Rounds without end: the tokens end the search. The shift is a run's where texts are given, not self-generated.
    own = {"search.rounds": 1000, "text.shift": 0.0, **SPACES[name]}
    config = load_config(None, {"model": dense.name, "seed": seed, **own})
    files = RunFolder(folder_of(name, seed, quick))
    files.path.mkdir(parents=True, exist_ok=True)
    restore(files.measurements_file, "search", quick)
    store, criterion = PairStore(files.measurements_file), config.criterion.criterion
    try:
        with Reporter().stage(f"{name}: calibrating", dense.layout.layers, "layers") as advance:
            judge = Evaluator(
                dense,
                texts(dense, seed, sequences),
                store,
                criterion=criterion,
                folder=files.prepared,
                progress=advance,
            )
        space = config.search_space(dense.layout)
        baselines = fixed_allocations(space) | scored_allocations(space, judge.surgeon)
        if space.whole_blocks:  # narrower layers are another kind of pruning
            baselines = {name: each for name, each in baselines.items() if name == "dense" or space.allows(each)}
        yield Bench(config, judge, baselines, files, TOKENS / 20 if quick else TOKENS)
        judge.surgeon.restore()
    finally:
        store.close()


def folder_of(name: str, seed: int, quick: bool) -> Path:
    """Return the folder of a space's studies, or of a store."""
    return ROOT / "runs" / "benchmark-search" / f"{name}-{seed}{'-quick' if quick else ''}"


def texts(dense: DenseModel, seed: int, sequences: int) -> Texts:
    """Return text of two kinds by turns to calibrate, choose and search on, and WikiText-2 test."""
    files = [DATA / "text" / name for name in ("wikitext2.train-first1mb.txt", "c4.jsonl")]
    kinds = [sequences_of(dense, file, LENGTH, seed) for file in files]
    count = min(len(kind) for kind in kinds)
    both = torch.stack([kind[:count] for kind in kinds], dim=1).flatten(0, 1)  # by turns: any beginning has both
    sizes = (CALIBRATE, VALIDATE, sequences)
    parts = both[: sum(sizes)].split(sizes)
    tokens = dict(zip(("calibrate", "validate", "search"), parts, strict=True))
    report = tokenise(dense, str(DATA / "text" / "wikitext2.test.txt"))[: REPORT * LENGTH].view(REPORT, LENGTH)
    mixed = dict.fromkeys(tokens, "WikiText-2 training text and C4")
    return Texts({**tokens, "report": report}, {**mixed, "report": "wikitext2.test.txt"})


def curve(bench: Bench, strategy: str) -> dict[str, Any]:
    """Run a strategy and return what it would hand over at each share of the spending."""
    run = bench.run()
    STRATEGIES[strategy](run, bench.tokens)
    found = [incumbent(run.trace, run, share * bench.tokens) for share in SHARES]
    measured = reported(bench, found)
    return {
        "spent": round(run.spent),
        "device": device_name(bench.judge.dense),
        "kernels": bench.judge.kernels.name,
        "search_sequences": len(bench.judge.texts.of("search")),
        "search_kl": {each.architecture: each.measurement.kl for each in run.pairs}.get(found[-1]),
        "architectures": [each.fingerprint for each in found],
        "perplexity": [round(each.perplexity, 3) for each in measured],
        "kl": [round(each.kl, 5) for each in measured],
        "final": measured[-1].to_dict(),
        "winner": found[-1].to_dict(),
    }


def incumbent(trace: Sequence[Spent], run: Run, tokens: float) -> Architecture:
    """Return the best on the whole search text that was measured within the tokens, a baseline while there is none."""
    pairs = [each.pair for each in trace if each.tokens <= tokens and each.split == "search"]
    fixed = [architecture for name, architecture in run.baselines.items() if name != "dense"]
    inside = [pair for pair in pairs if pair.architecture in fixed or run.space.allows(pair.architecture)]
    if not inside:
        return next(iter(fixed))
    return min(inside, key=lambda pair: pair.measurement.kl).architecture


def reported(bench: Bench, architectures: Sequence[Architecture]) -> list[Measurement]:
    """Return what architectures measure on the report text, each measured once."""
    with Reporter().stage("On the report text", len(set(architectures)), "architectures") as advance:
        known = {each: bench.judge.measure([each], "report", "report")[0] for each in dict.fromkeys(architectures)}
        advance(len(known))
    return [known[each] for each in architectures]


def unsearched(bench: Bench) -> dict[str, Any]:
    """Return the perplexity of each allocation that no search chose, and of the dense model."""
    measured = reported(bench, list(bench.baselines.values()))
    return {name: round(each.perplexity, 3) for name, each in zip(bench.baselines, measured, strict=True)}


def differences(bench: Bench, rows: Mapping[str, Sequence[Mapping[str, Any]]], seed: int) -> dict[str, Any]:
    """Return by how much each final architecture differs from each other one, token by token on the report text."""
    final = dict(bench.baselines)
    for name, own in rows.items():
        for row in own:
            if "winner" in row and row["seed"] == seed:
                final[name] = Architecture.from_dict(row["winner"])
    measured = dict(zip(final, reported(bench, list(final.values())), strict=True))
    return {
        f"{one} less {other}": difference(measured[one], measured[other]).to_dict()
        for one in final
        for other in final
        if one not in bench.baselines and one != other and final[one] != final[other]
    }


def figures_of(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the figures of one space."""
    plain = rows["baselines"]
    names = [name for name in plain[0] if name not in ("dense", "seed", "commit")]
    fixed = {name: float(np.mean([row[name] for row in plain])) for name in names}
    best = min(fixed, key=lambda name: fixed[name])
    curves = {name: np.array([row["perplexity"] for row in own]) for name, own in rows.items() if name in STRATEGIES}
    final = {name: round(float(own[:, -1].mean()), 3) for name, own in curves.items()}
    return {
        "perplexity_final": {**final, f"not_searched_{best}": round(fixed[best], 3)},
        "perplexity_curve": {name: own.mean(axis=0).round(2).tolist() for name, own in curves.items()},
        "tokens_to_match_evolution": {
            name: [matched(row, target[-1]) for row, target in zip(own, curves["evolution"], strict=False)]
            for name, own in curves.items()
            if "evolution" in curves
        },
        "gain_over_uniform": {
            name: round(1 - value / fixed.get("uniform", fixed[best]), 4) for name, value in final.items()
        },
    }


def matched(row: np.ndarray, target: float) -> int | None:
    """Return the fewest tokens with which a curve is as low as a target; None where it never is."""
    reached = np.flatnonzero(row <= target)
    return round(SHARES[reached[0]] * TOKENS) if len(reached) else None


if __name__ == "__main__":
    main()
