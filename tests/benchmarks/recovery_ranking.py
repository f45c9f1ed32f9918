"""Architectures of the FLOPs that removed blocks leave: the best that a search finds, and 30 to be recovered."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau

from evaluator import DenseModel, Evaluator, PairStore, Texts
from evaluator.recovery.short import ShortRecipe
from evaluator.sources import tokenise
from search.config import RunConfig, load_config
from search.progress import Reporter
from search.run import run_search
from search.selection import unique
from space import Architecture, cost_of, sample
from tests.benchmarks.record import DATA

LENGTH, EACH, CALIBRATE, MEASURED = 512, 15, 64, 16
WIKITEXT = str(DATA / "text" / "wikitext2.valid.txt")  # as `tests.benchmarks.pipeline`


def searched_folder(dense: DenseModel, folder: Path, like: Architecture, seed: int, quick: bool, source: str) -> Path:
    """Return the export of a search's winner; the search goes on where it was. It reports on WikiText-2 test.

    Args:
        dense: the model.
        folder: of the search.
        like: an architecture of as many FLOPs.
        seed: of the search.
        quick: short.
        source: the text to search on.
    """
    run_search(_config(dense, like, seed, quick, False, source), folder, Reporter())
    return folder / "export"


def _config(
    dense: DenseModel, like: Architecture, seed: int, quick: bool, blocks: bool, source: str = WIKITEXT
) -> RunConfig:
    share = cost_of(dense.layout, like).flops_per_token / cost_of(
        dense.layout, Architecture.dense(dense.layout)
    ).flops_per_token  # fmt: skip
    values: dict[str, Any] = {
        "model": dense.name,
        "budget": [f"flops_per_token={share:.6f}"],
        "seed": seed,
        "text.source": source,
        "text.report": str(DATA / "text" / "wikitext2.test.txt"),
        "space.whole_blocks": blocks,
    }
    if quick:
        values |= {"text.sequence_length": 64, "text.calibrate": 8, "search.rounds": 1}
    return load_config(None, values)


def ranking(dense: DenseModel, folder: Path, like: Architecture, seed: int, quick: bool) -> dict[str, Any]:
    """Measure architectures as they are pruned and after a short recovery, on C4; return how their ranks agree.

    Args:
        dense: the model.
        folder: where measurements are kept.
        like: whose FLOPs they have.
        seed: of the draw and of the recovery.
        quick: few and short.
    """
    kinds = {
        "narrower": _drawn(dense, like, seed, quick, False),
        "without_blocks": _drawn(dense, like, seed, quick, True),
    }
    everyone = [architecture for own in kinds.values() for architecture in own]
    recipe = ShortRecipe(steps=2, step_tokens=128) if quick else ShortRecipe(seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, recovery in (("before", None), ("after", recipe)):
        store = PairStore(folder / "pairs.db")
        judge = Evaluator(dense, _texts(dense, quick), store, folder=folder / "prepared", recovery=recovery)
        with Reporter().stage(f"Measuring {name} recovery", len(everyone), "architectures") as advance:
            found[name] = judge.measure(everyone, "validate", "ranking", advance)
        judge.surgeon.restore()
        store.close()
    kl = {name: np.array([each.kl for each in measured]) for name, measured in found.items()}
    places = {"all": slice(None), "narrower": slice(EACH), "without_blocks": slice(EACH, None)}
    if quick:
        places = {"all": slice(None)}
    best = int(kl["before"].argmin())
    return {
        "kendall_tau": {name: _tau_and_error(kl["before"][own], kl["after"][own]) for name, own in places.items()},
        "recovery": str(recipe),
        "kl": {name: values.round(4).tolist() for name, values in kl.items()},
        "kl_standard_error": {
            name: [round(each.kl_standard_error, 4) for each in measured] for name, measured in found.items()
        },
        "best_before_is_after": int((kl["after"] < kl["after"][best]).sum()) + 1,
        "architectures": [architecture.fingerprint for architecture in everyone],
    }


def _tau_and_error(before: np.ndarray, after: np.ndarray) -> list[float]:
    """Return Kendall's tau and its standard error by the jackknife over architectures."""
    count = len(before)
    without = [kendalltau(np.delete(before, i), np.delete(after, i)).statistic for i in range(count)]
    error = np.sqrt((count - 1) * np.var(without))
    return [round(float(kendalltau(before, after).statistic), 4), round(float(error), 4)]


def _drawn(dense: DenseModel, like: Architecture, seed: int, quick: bool, blocks: bool) -> list[Architecture]:
    space = _config(dense, like, seed, quick, blocks).search_space(dense.layout)
    rng = np.random.default_rng([seed, 53, blocks])
    return unique(space, sample(space, 20 * EACH, rng))[: 3 if quick else EACH]


def _texts(dense: DenseModel, quick: bool) -> Texts:
    """Return text to calibrate and recover on, and other text to measure on, all of C4."""
    length, calibrate, measured = (64, 8, 4) if quick else (LENGTH, CALIBRATE, MEASURED)
    stream = tokenise(dense, str(DATA / "text" / "c4.jsonl"))
    rows = stream[: len(stream) // length * length].view(-1, length)
    chosen = rows[torch.from_numpy(np.random.default_rng(0).permutation(len(rows)))]
    tokens = {"calibrate": chosen[:calibrate], "validate": chosen[calibrate : calibrate + measured]}
    return Texts(tokens, dict.fromkeys(tokens, "c4"))
