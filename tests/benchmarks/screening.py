"""How fast a plan breeds and screens architectures, and what Optuna takes of a run's time.

    python -m tests.benchmarks.screening [--quick] [--seed N]

Screening is what a round does before it measures: `ArchitectureSampler.plan` with the settings of a run, until a
million architectures have been bred, landed on the budget and scored by a predictor. Where `tests.benchmarks.search`
has kept what it measured of SmolLM2-135M in a space, predictor, slopes and what to expect elsewhere are learned from
that; otherwise KL is made up for architectures of the same layout (`screened_by` says which).

Optuna's share is timed in a run of `secateur run` on stories260K, whose measurements take a tenth of a second: all
calls from outside into Optuna's study and storage. For SmolLM2-135M it is what a trial of as many parameters takes, by
what it takes with a measurement.

| figure | meaning |
| --- | --- |
| `seconds_per_million`, `candidates_per_minute` | bred and screened, by space |
| `processor_seconds_per_million` | the same by the processor's clock, which does not count who else is at work |
| `optuna_seconds_per_trial` | begun and told, with 60 parameters: mean, and of the last tenth |
| `optuna_overhead_share` | of the time of a run on stories260K, and of a trial of SmolLM2-135M |
"""

import inspect
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from evaluator import PairStore, Slopes
from predictor import AccuracyPredictor, AdditivePrior
from search.config import load_config
from search.objective import Elsewhere, expansion_of, fit_pairs, stream_of
from search.run import run_search
from search.sampler import ArchitectureSampler, Knowledge
from search.study import ArchitectureStudy
from space import Architecture, sample
from tests.benchmarks import search
from tests.benchmarks.record import DATA, arguments, finish, restore
from tests.predictor.synthetic import SINGLES, SPACE, draw, measure
from tests.space.layouts import SMOLLM2_135M

SCREENED = {"depth_22": "of whole blocks", "widths_80": "of widths"}
CANDIDATES = 1_000_000
PAIRS = 110  # that a predictor learns from, as in the middle of a run
SLOPES = 3
TRIALS = 300
MEASUREMENT_SECONDS = 4.5  # SmolLM2-135M at 80 % of its parameters on 4,088 tokens, two cores

Known = tuple[Knowledge, dict[Architecture, float], str]  # what was measured, and how


def main() -> None:
    """Time both and print the figures."""
    options = arguments(__doc__ or "")
    names = ("seconds_per_million", "processor_seconds_per_million", "candidates_per_minute", "screened_by")
    figures: dict[str, Any] = {name: {} for name in names}
    for name in SCREENED:
        known = measured(name) or made_up(options.seed)
        seconds, processor = screen(known, options.seed, CANDIDATES // 20 if options.quick else CANDIDATES)
        figures["seconds_per_million"][name] = round(1e6 * seconds, 1)
        figures["processor_seconds_per_million"][name] = round(1e6 * processor, 1)
        figures["candidates_per_minute"][name] = round(60 / seconds)
        figures["screened_by"][name] = known[2]
        print(f"{name} ({SCREENED[name]}): {1e6 * seconds:.1f} s a million", flush=True)
    mean, last = of_trials(options.seed, TRIALS // 10 if options.quick else TRIALS)
    figures["optuna_seconds_per_trial"] = {"mean": round(mean, 4), "last": round(last, 4)}
    run = of_a_run(options.seed)
    share = {"stories260K": run["optuna_seconds"] / run["seconds"], "smollm2-135m": mean / (mean + MEASUREMENT_SECONDS)}
    figures["optuna_overhead_share"] = {name: round(value, 4) for name, value in share.items()}
    details = {"seed": options.seed, "pairs": PAIRS, "trials": TRIALS, "measurement_seconds": MEASUREMENT_SECONDS}
    finish("screening", figures, {**details, "run": run}, options.quick)


def measured(name: str) -> Known | None:
    """Return what is known in a space from the pairs that `tests.benchmarks.search` kept, if it did."""
    config = load_config(None, {"model": "smollm2-135m", **search.SPACES[name]})
    space = config.search_space(SMOLLM2_135M)
    file = search.folder_of(name, 0, quick=False) / "measurements.db"
    file.parent.mkdir(parents=True, exist_ok=True)
    restore(file, "search", quick=False)
    if not file.exists():
        return None
    store = PairStore(file)
    try:
        splits = {key: protocol.split for key, protocol in store.protocols().items()}
        # Of those of the whole search text, the one that slopes were taken under is ours.
        protocol = max(
            (key for key, split in splits.items() if split == "search"), key=lambda key: len(store.slopes(key))
        )
        beginnings = [key for key, split in splits.items() if split == f"search:{config.prior_sequences}"]
        alone = [pair for key in beginnings for pair in store.pairs(key, ["prior"])]
        whole = [pair for pair in store.pairs(protocol) if space.allows(pair.architecture)][:PAIRS]
        stream, slopes = store.stream(protocol), store.slopes(protocol)[:SLOPES]
    finally:
        store.close()
    if not alone or not whole:
        return None
    predictor = fit_pairs(space, whole, protocol, 0, slopes, stream_of(stream) if stream else None, alone=alone)
    elsewhere = Elsewhere.from_pairs(space, alone, config.prior_sequences, config.text.shift)
    values = {pair.architecture: pair.measurement.kl for pair in whole}
    return Knowledge(predictor, space, elsewhere), values, f"measured, {predictor.quality.regressor}"


def made_up(seed: int) -> Known:
    """Return what is known in the space of widths of a model that was made up, with as much to compute."""
    drawn = draw(PAIRS, seed)
    values = dict(zip(drawn, measure(drawn, seed), strict=True))
    alone = measure(SINGLES, seed)
    best = sorted(values, key=lambda each: values[each])[:SLOPES]
    predictor = AccuracyPredictor.fit(
        SMOLLM2_135M,
        SINGLES + drawn,
        [*alone, *values.values()],
        expansions=[expansion_of(SPACE, slopes_at(each, seed)) for each in best],
        seed=seed,
    )
    elsewhere = Elsewhere(predictor.prior, AdditivePrior.from_pairs(SMOLLM2_135M, SINGLES, [0.9 * kl for kl in alone]))
    return Knowledge(predictor, SPACE, elsewhere), values, f"made up, {predictor.quality.regressor}"


def slopes_at(architecture: Architecture, seed: int) -> Slopes:
    """Return what changing each sub-block by itself does to the KL of a made-up model."""
    [own] = measure([architecture], seed, noise=0.0)
    widths = []
    for column, options in enumerate(SPACE.choices):
        gene = "mlp_width" if column % 2 else "kv_groups"
        changed = [architecture.replace(column // 2, **{gene: option.width}) for option in options]
        told = measure(changed, seed, noise=0.0)
        widths.append(tuple((float(option.width), kl - own) for option, kl in zip(options, told, strict=True)))
    return Slopes(architecture, own, tuple(widths), ((),) * SPACE.columns)


def screen(known: Known, seed: int, candidates: int) -> tuple[float, float]:
    """Return the seconds, and those of the processor, that a candidate takes in plans of a run's size."""
    knowledge, values, _ = known
    settings = load_config(None, {"model": "smollm2-135m", "budget": "parameters=0.8"}).search
    sampler = ArchitectureSampler(knowledge.space, seed, settings.candidates, settings.generations, settings.picks)
    sampler.learn(knowledge)
    screened, plans = 0, 0
    started, before = time.perf_counter(), time.process_time()
    while screened < candidates:
        plan = sampler.plan(values, values, np.random.default_rng([seed, plans]))
        assert plan, "nothing was found, so nothing was screened"
        screened += settings.candidates * settings.generations
        plans += 1
    return (time.perf_counter() - started) / screened, (time.process_time() - before) / screened


def of_trials(seed: int, count: int) -> tuple[float, float]:
    """Return Optuna's seconds a trial in the space of widths: the mean, and that of the last tenth."""
    rows = SPACE.decode(sample(SPACE, count, np.random.default_rng(seed)))
    with tempfile.TemporaryDirectory() as folder, optuna_clock() as clock:
        study = ArchitectureStudy(Path(folder) / "study.db", SPACE, ArchitectureSampler(SPACE, seed), "benchmark")
        times = [clock()]
        for row in rows:
            study.measure(0, [row], "random", lambda *_: 1.0)
            times.append(clock())
        study.close()
    return (times[-1] - times[0]) / count, (times[-1] - times[-1 - count // 10]) / (count // 10)


def of_a_run(seed: int) -> dict[str, float]:
    """Return the seconds of a run on stories260K, and Optuna's part of them."""
    config = load_config(
        None, {"model": str(DATA / "models" / "stories260K"), "budget": "parameters=0.8", "seed": seed}
    )
    with tempfile.TemporaryDirectory() as folder, optuna_clock() as clock:
        started = time.perf_counter()
        run_search(config, Path(folder) / "run")
        seconds = time.perf_counter() - started
        trials = optuna.load_study(study_name="search", storage=f"sqlite:///{folder}/run/study.db").trials
        return {"seconds": seconds, "optuna_seconds": clock(), "trials": len(trials)}


@contextmanager
def optuna_clock() -> Iterator[Callable[[], float]]:
    """Time what is called of Optuna's studies and storages from outside; yields a function that returns the sum."""
    spent, inside = 0.0, False

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal spent, inside
            if inside:
                return function(*args, **kwargs)
            inside, started = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                inside, spent = False, spent + time.perf_counter() - started

        return call

    with pytest.MonkeyPatch.context() as patch:
        for kind in (optuna.Study, optuna.storages.RDBStorage):
            for name, member in inspect.getmembers_static(kind):
                if inspect.isfunction(member) and (name == "__init__" or not name.startswith("_")):
                    patch.setattr(kind, name, timed(member))
                elif isinstance(member, property) and member.fget is not None:
                    patch.setattr(kind, name, property(timed(member.fget), member.fset))
        patch.setattr(optuna, "create_study", timed(optuna.create_study))
        yield lambda: spent


if __name__ == "__main__":
    main()
