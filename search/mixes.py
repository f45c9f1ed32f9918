"""The calibration set as one more gene: which of a few the search goes by, and whether its winner bears that out.

What a set is worth depends on the architecture, and whole searches under each would cost as many times as much. So the
gene is settled before the search, by allocations on the budget that no search chose and samples, all measured under
every set; and afterwards the winner is measured under every set on text that no search has seen.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from evaluator import CalibrationSet, DenseModel, Evaluator, Measurement, Texts, difference
from search.baselines import fixed_allocations
from search.config import RunConfig
from search.database import open_store
from search.folder import RunFolder
from search.job import Run
from search.progress import Reporter
from search.selection import unique
from space import Architecture, Criterion, sample

_SAMPLES = 4
_ORIGIN = "mix"


def choose_mix(
    config: RunConfig,
    files: RunFolder,
    dense: DenseModel,
    texts: Texts,
    sets: Mapping[str, CalibrationSet],
    reporter: Reporter,
) -> tuple[str, dict[str, Any]]:
    """Return the mix under which allocations lose least on half of the search text, and what each measured.

    Args:
        config: the settings.
        files: the run folder, in whose store the measurements are kept.
        dense: the model.
        texts: to measure on.
        sets: by mix.
        reporter: tells a person about the progress.
    """
    criterion = config.criterion.criterion
    space = config.search_space(dense.layout, files.latency())
    fixed = [each for name, each in fixed_allocations(space, criterion.group).items() if name != "dense"]
    drawn = unique(space, sample(space, _SAMPLES, np.random.default_rng([config.seed, 41])))
    architectures = list(dict.fromkeys([*fixed, *drawn]))
    split = f"search:{max(1, len(texts.of('search')) // 2)}"
    store = open_store(files)
    try:
        # Nothing is pruned by its own calibration set, so that the least there is will do.
        least = Texts({"calibrate": texts.of("search:1"), **texts.tokens}, {"calibrate": "", **texts.sources})
        judge = Evaluator(dense, least, store, criterion=Criterion("magnitude", "magnitude", "none"))
        found = {}
        for mix, made in sets.items():
            steps = dense.layout.layers + len(architectures)
            with (
                reporter.stage(f"Calibrating on {mix}", steps, "layers and architectures") as advance,
                judge.calibrated_on(made.tokens, criterion, advance),
            ):
                found[mix] = judge.measure(architectures, split, _ORIGIN, advance)
        judge.surgeon.restore()
    finally:
        store.close()
    logs = {mix: np.log([each.kl for each in measured]) for mix, measured in found.items()}
    chosen = min(logs, key=lambda mix: logs[mix].mean())
    told = {mix: _compared(sets[mix], own, logs[chosen]) for mix, own in logs.items()}
    reporter.say(f"Of the mixes {', '.join(told)} the search calibrates on {chosen}: {_in_words(told, chosen)}")
    return chosen, told


def _compared(made: CalibrationSet, logs: np.ndarray, best: np.ndarray) -> dict[str, Any]:
    """Return what a mix measured, and by which share it is worse than the best, over architectures."""
    less = logs - best
    error = float(less.std(ddof=1) / np.sqrt(len(less))) if len(less) > 1 else 0.0
    return {
        "hash": made.record["hash"],
        "architectures": len(logs),
        "kl": float(np.exp(logs.mean())),
        "above_best": float(less.mean()),
        "above_best_standard_error": error,
    }


def _in_words(told: Mapping[str, Mapping[str, Any]], chosen: str) -> str:
    others = (
        f"{mix} loses {each['above_best']:+.1%} ± {each['above_best_standard_error']:.1%}"
        for mix, each in told.items()
        if mix != chosen
    )
    return ", ".join(others)


def winner_under_each(run: Run, winner: Architecture) -> dict[str, dict[str, Any]]:
    """Return what the winner measures on the validation text under each mix, and its difference to the chosen one's.

    Args:
        run: the run at work.
        winner: its winner.
    """
    mixes, criterion = run.config.calibration.mixes, run.config.criterion.criterion
    own = run.evaluator.measure([winner], "validate", _ORIGIN)[0]
    found: dict[str, Measurement] = {}
    with run.reporter.stage("Measuring the winner under each mix", len(mixes), "mixes") as advance:
        for number, mix in enumerate(mixes):
            made = CalibrationSet.load(run.folder.mix_file(number))
            if mix == run.evaluator.texts.calibration["chosen"]:
                found[mix] = own
            else:
                with run.evaluator.calibrated_on(made.tokens, criterion):
                    found[mix] = run.evaluator.measure([winner], "validate", _ORIGIN)[0]
            advance(1)
    return {
        mix: {
            "kl": each.kl,
            "perplexity": each.perplexity,
            **({} if each is own else {"less_chosen": difference(each, own, same_text=True).to_dict()}),
        }
        for mix, each in found.items()
    }
