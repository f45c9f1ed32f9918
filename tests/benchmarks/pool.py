"""Measured pairs to judge predictors and searches on: one pool for each search space, measured once and kept.

    python -m tests.benchmarks.pool [--quick] [--seed N] [--space NAME ...]

SmolLM2-135M, calibrated and scored on text of two kinds, WikiText-2 training text and C4 in equal parts. By space:
every sub-block alone at every width (the prior), architectures to train on, most of them near the additive prior's
optimum, slopes at the best of them, and architectures held out, half at random and half near that optimum, each from
draws of its own. Those held out are also measured on 128 tokens of other text (cheap enough to be asked of any
candidate) and on 16,384 tokens of WikiText-2 test, which nothing here chooses by. Pools lie in runs/benchmark-pool
and, packed, beside the results; what was measured is not measured again.
"""

import argparse
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from evaluator import DenseModel, Evaluator, Pair, PairStore, Slopes, Stream, Texts, open_model
from evaluator.sources import tokenise
from search.config import RunConfig, load_config
from search.objective import additive_prior
from search.progress import Reporter
from search.proposals import Score, evolve, mutate, prior_architectures, profiles, rounding_architectures
from search.selection import prior_score, unique
from space import Architecture, Choice, Indices, Layout, SearchSpace, sample
from tests.benchmarks.record import DATA, ROOT, keep, restore
from tests.space.layouts import SMOLLM2_135M

TRAIN = {"random": 15, "profile": 15, "near": 70}
HELD_OUT = {"random": 60, "near": 60}
LENGTH = 512
CALIBRATE, SEARCH, REPORT = 128, 8, 32  # sequences
FEW = 128  # predicted tokens of the cheapest measurement
REMOVED = 8  # blocks, in the space of depth
_MOST_SWAPS = 12  # by which architectures near the optimum differ from it
T = TypeVar("T")
_STREAMS = {"train": 1, "held_out": 2}


@dataclass(frozen=True)
class PoolSpace:
    """A search space to measure a pool of.

    Args:
        budget: METRIC=AMOUNT.
        store: name of the store; spaces whose architectures are pruned by the same levels share one.
        depth: whether whole blocks are all that is removed.
    """

    budget: str
    store: str
    depth: bool = False

    def config(self, model: str) -> RunConfig:
        """Return the settings of a run in this space."""
        return load_config(None, {"model": model, "budget": self.budget})


SPACES = {
    "parameters_80": PoolSpace("parameters=0.8", "widths"),
    "parameters_70": PoolSpace("parameters=0.7", "widths"),
    "sparsity_60": PoolSpace("nonzero_parameters=0.4", "sparsity"),
    "depth_22": PoolSpace("parameters=0.74", "widths", depth=True),
}


@dataclass(frozen=True)
class Pool:
    """What was measured in one space; every pair on the search text, those held out also by `few` and `unseen`."""

    space: SearchSpace
    prior: list[Pair]
    train: list[Pair]
    held_out: list[Pair]
    near: list[bool]  # of those held out, which were drawn near the optimum
    slopes: list[Slopes]  # at the best of those to train on
    stream: Stream  # of the dense model on the search text
    few: dict[str, list[Pair]]  # of `train` and `held_out`, on few tokens
    unseen: list[Pair]  # of those held out


def main() -> None:
    """Measure the pools that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small model and few pairs, in a minute or two")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--space", action="append", choices=list(SPACES), help="which; all without")
    parser.add_argument("--device", default="cpu", help="where the model is, e.g. cuda")
    options = parser.parse_args()
    for name in options.space or SPACES:
        pool = measure_pool(name, options.seed, options.quick, options.device)
        print(f"{name}: {len(pool.prior)} alone, {len(pool.train)} to train on, {len(pool.held_out)} held out")


def measure_pool(name: str, seed: int, quick: bool = False, device: str = "cpu") -> Pool:
    """Return a pool as it was kept, or measure what is not there yet.

    Args:
        name: of `SPACES`.
        seed: of texts and draws.
        quick: takes stories260K and a tenth of the pairs.
        device: where the model is.
    """
    own = SPACES[name]
    folder = ROOT / "runs" / "benchmark-pool" / f"{own.store}-{seed}{'-quick' if quick else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "pairs.db"
    restore(file, "pool", quick)
    store = PairStore(file)
    try:
        if not quick and (kept := _kept(name, seed, store)) is not None:
            return kept
        dense = open_model(str(DATA / "models" / "stories260K") if quick else "smollm2-135m", device=device)
        config = own.config(dense.name)
        with Reporter().stage("Calibrating", dense.layout.layers, "layers") as advance:
            judge = Evaluator(
                dense, _texts(dense, seed), store, criterion=config.criterion.criterion, folder=folder, progress=advance
            )
        pool = _assemble(name, seed, config.search_space(dense.layout), _Measuring(name, judge), 10 if quick else 1)
    finally:
        store.close()
    keep(file, "pool", quick)
    return pool


class _Source(Protocol):
    """Where a pool's numbers come from."""

    def measure(self, title: str, asked: list[Architecture], origin: str, split: str = "search") -> list[Pair]: ...
    def slopes(self, architecture: Architecture, choices: Sequence[Sequence[Choice]]) -> Slopes: ...
    def stream(self) -> Stream: ...


class _Measuring:
    """A model that measures what its store does not know."""

    def __init__(self, name: str, judge: Evaluator) -> None:
        self._name, self._judge, self._reporter = name, judge, Reporter()

    def measure(self, title: str, asked: list[Architecture], origin: str, split: str = "search") -> list[Pair]:
        with self._reporter.stage(f"{self._name}: {title}", len(asked), "architectures") as advance:
            found = self._judge.measure(asked, split, origin, advance)
        return [Pair(a, m, origin) for a, m in zip(asked, found, strict=True)]

    def slopes(self, architecture: Architecture, choices: Sequence[Sequence[Choice]]) -> Slopes:
        with self._reporter.stage(f"{self._name}: slopes", SEARCH, "sequences") as advance:
            return self._judge.slopes(architecture, choices, advance)

    def stream(self) -> Stream:
        return self._judge.stream()


class _NotMeasuredError(Exception):
    """A store does not know all of a pool."""


class _Remembering:
    """A store alone, whichever machine measured; of several protocols of a split that of the most pairs."""

    def __init__(self, store: PairStore) -> None:
        self._store = store
        found = sorted(store.protocols().values(), key=lambda each: len(store.pairs(each.fingerprint)))
        self._protocols = {each.split: each for each in found}

    def measure(self, title: str, asked: list[Architecture], origin: str, split: str = "search") -> list[Pair]:
        protocol = self._protocols[split]
        return [Pair(each, _there(self._store.find(each, protocol)), origin) for each in asked]

    def slopes(self, architecture: Architecture, choices: Sequence[Sequence[Choice]]) -> Slopes:
        return _there(self._store.find_slopes(architecture, self._protocols["search"], choices))

    def stream(self) -> Stream:
        return _there(self._store.stream(self._protocols["search"].fingerprint))


def _there(found: T | None) -> T:
    if found is None:
        raise _NotMeasuredError
    return found


def _kept(name: str, seed: int, store: PairStore) -> Pool | None:
    """Return a pool all of which is in the store, for which no model is needed; none where something is missing."""
    source = _Remembering(store)
    with suppress(_NotMeasuredError, KeyError):
        return _assemble(name, seed, SPACES[name].config("smollm2-135m").search_space(SMOLLM2_135M), source, 1)
    return None


def _assemble(name: str, seed: int, space: SearchSpace, source: _Source, fewer: int) -> Pool:
    own = SPACES[name]
    singles = _blocks_alone(space.layout) if own.depth else prior_architectures(space, levels=None)
    if not own.depth:
        singles += rounding_architectures(space)
    prior = source.measure("each sub-block alone", singles, "prior")
    kinds = _draw(space, own, prior, seed, fewer)
    drawn = {part: list(found) for part, found in kinds.items()}
    pairs = {part: source.measure(part, asked, part) for part, asked in drawn.items()}
    best = min(pairs["train"], key=lambda pair: pair.measurement.kl).architecture
    slopes = [source.slopes(best, _choices(space, own))]
    few = {part: source.measure(f"{part} on few tokens", asked, part, "validate") for part, asked in drawn.items()}
    unseen = source.measure("held out on unseen text", drawn["held_out"], "held_out", "report")
    near = [kind == "near" for kind in kinds["held_out"].values()]
    return Pool(space, prior, pairs["train"], pairs["held_out"], near, slopes, source.stream(), few, unseen)


def _choices(space: SearchSpace, own: PoolSpace) -> Sequence[Sequence[Choice]]:
    """Return what a sub-block can be in this pool."""
    if not own.depth:
        return space.choices
    layout = space.layout
    return [(Choice(0), Choice(size)) for _ in range(layout.layers) for size in (layout.kv_groups, layout.mlp_width)]


def _texts(dense: DenseModel, seed: int) -> Texts:
    """Return text of two kinds to calibrate and score on, a little of the same kinds, and WikiText-2 test."""
    kinds = [
        sequences_of(dense, DATA / "text" / file, LENGTH, seed) for file in ("wikitext2.train-first1mb.txt", "c4.jsonl")
    ]
    half, own = CALIBRATE // 2, SEARCH // 2
    few = [kind[half + own][: FEW // 2 + 1] for kind in kinds]
    tokens = {
        "calibrate": torch.cat([kind[:half] for kind in kinds]),
        "search": torch.cat([kind[half : half + own] for kind in kinds]),
        "validate": torch.stack(few),
        "report": tokenise(dense, str(DATA / "text" / "wikitext2.test.txt"))[: REPORT * LENGTH].view(REPORT, LENGTH),
    }
    mixed = "WikiText-2 training text and C4"
    return Texts(tokens, {**dict.fromkeys(tokens, mixed), "report": "wikitext2.test.txt"})


def sequences_of(dense: DenseModel, file: Path, length: int, seed: int) -> Tensor:
    """Return a text's sequences (sequences, length) in an order drawn by a seed."""
    stream = tokenise(dense, str(file))
    sequences = stream[: len(stream) // length * length].view(-1, length)
    return sequences[torch.randperm(len(sequences), generator=torch.Generator().manual_seed(seed))]


def _draw(
    space: SearchSpace, own: PoolSpace, prior: list[Pair], seed: int, fewer: int
) -> dict[str, dict[Architecture, str]]:
    """Return what to train on and what is held out, no architecture in both, and how each was drawn."""
    score = prior_score(space, additive_prior(space, prior))
    found: dict[str, dict[Architecture, str]] = {}
    known: set[Architecture] = set()
    for part, counts in (("train", TRAIN), ("held_out", HELD_OUT)):
        rng = np.random.default_rng([seed, _STREAMS[part]])
        drawn: dict[Architecture, str] = {}
        for kind, count in counts.items():
            wanted = max(10, count // fewer)
            if own.depth:
                some = _draw_depth(space.layout, prior, kind, wanted, rng)
            else:
                some = unique(space, _draw_widths(space, score, kind, wanted, rng))
            drawn |= {each: kind for each in some if each not in known and each not in drawn}
        found[part] = drawn
        known |= set(drawn)
    return found


def _draw_widths(space: SearchSpace, score: Score, kind: str, count: int, rng: np.random.Generator) -> Indices:
    if kind == "random":
        return sample(space, count, rng)
    if kind == "profile":
        return profiles(space, count, rng)
    best = evolve(space, score, rng)
    parents = best[rng.integers(len(best), size=count)]
    moved = [mutate(space, parents[[index]], rng, 1 + index * _MOST_SWAPS // count) for index in range(count)]
    return np.concatenate(moved)


def _blocks_alone(layout: Layout) -> list[Architecture]:
    """Return the dense model less the attention, the MLP and both of each layer."""
    dense = Architecture.dense(layout)
    return [
        dense.replace(layer, **gone)
        for layer in range(layout.layers)
        for gone in ({"kv_groups": 0}, {"mlp_width": 0}, {"kv_groups": 0, "mlp_width": 0})
    ]


def _draw_depth(
    layout: Layout, prior: list[Pair], kind: str, count: int, rng: np.random.Generator
) -> list[Architecture]:
    """Return models less REMOVED blocks: any, or mostly those that are missed least."""
    removed = min(REMOVED, layout.layers // 2)
    gone = {pair.architecture: pair.measurement.kl for pair in prior}
    dense = Architecture.dense(layout)
    alone = np.array([gone[dense.replace(layer, kv_groups=0, mlp_width=0)] for layer in range(layout.layers)])
    drawn: dict[Architecture, None] = {}
    for _ in range(20 * count):
        if len(drawn) == count:
            break
        # From the additive optimum to nearly anything.
        spread = rng.uniform(0.1, 2.0) if kind == "near" else np.inf
        noise = rng.gumbel(size=layout.layers)
        order = np.argsort(noise if spread == np.inf else np.log(alone) - spread * noise)
        architecture = dense
        for layer in order[:removed].tolist():
            architecture = architecture.replace(layer, kv_groups=0, mlp_width=0)
        drawn[architecture] = None
    return list(drawn)


if __name__ == "__main__":
    main()
