"""How well the predictor ranks architectures that it never saw, whether its intervals hold, and how fast it is.

    python -m tests.benchmarks.predictor [--quick] [--seed N] [--space NAME ...]

Pools of `tests.benchmarks.pool`, measured once: SmolLM2-135M, every sub-block alone, 100 architectures to train on,
slopes at the best of them, and 120 held out, half at random and half near the additive prior's optimum. Fitted three
times, with three seeds; figures are means of the three. What an earlier call judged stays in the result, each space
with the seed of its pool and its commit.

| figure | meaning |
| --- | --- |
| `kendall_tau`, `_best_quarter` | rank correlation with measured KL, over all held out, and among the best quarter |
| `kendall_tau_additive`, `_best_quarter` | that of the additive prior alone |
| `kendall_tau_no_slopes`, `_best_quarter` | that of a predictor without slopes, from pairs alone |
| `kendall_tau_few`, `_best_quarter` | that of a predictor that also sees each candidate's KL on 128 tokens |
| `unseen` | rank correlation with perplexity on 16,384 tokens of other text; of predictor, prior, measurements |
| `unseen` `_elsewhere` | the predictor as a search takes it, with what the prior should be on other text |
| `coverage_90` | share of held-out measurements inside their 90 % interval; also by how they were drawn |
| `top_pick_excess_perplexity` | perplexity of the predictor's first choice by the lowest held out, less 1, other text |
| `top_pick_excess_perplexity_measured`, `_kl` | the same on the text that the predictor learned |
| `architectures_per_second` | predicted in one call on one core, without and with intervals |
| `answer_milliseconds` | one architecture with its interval, median |
| `fit_seconds` | on as many pairs of a made-up model of 30 layers, all regressors and cross-validation included |
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import kendalltau
from threadpoolctl import threadpool_limits

from evaluator import Pair
from predictor import AccuracyPredictor
from search.environment import commit
from search.objective import Elsewhere, expansion_of, stream_of
from space import genes_of, sample
from tests.benchmarks.pool import SEARCH, SPACES, Pool, measure_pool
from tests.benchmarks.record import RESULTS, finish
from tests.predictor.synthetic import SINGLES, draw, measure
from tests.space.layouts import SMOLLM2_135M

SEEDS = 3
ASKED = 50_000
FITTED = (1_000, 100_000)


def main() -> None:
    """Judge the predictor on each pool and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model and few pairs, in a minute or two")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--space", action="append", choices=list(SPACES), help="which; all without")
    options = parser.parse_args()
    figures, details = ({}, {}) if options.quick else judged_before()
    for name in options.space or SPACES:
        pool = measure_pool(name, options.seed, options.quick)
        judged = [judge(pool, seed) for seed in range(SEEDS)]
        figures[name] = {"seed": options.seed, "commit": commit(), **mean_of(judged), **speed(pool)}
        details[name] = judged
        print(f"{name}: {figures[name]}", flush=True)
    figures["fit_seconds"] = {str(count): fit_seconds(count) for count in (FITTED[:1] if options.quick else FITTED)}
    finish("predictor", figures, {"fits": SEEDS, **details}, options.quick)


def judged_before() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the figures and the single fits of the spaces that earlier calls judged."""
    file = RESULTS / "predictor.json"
    kept = json.loads(file.read_text()) if file.exists() else {"figures": {}}
    names = [name for name in SPACES if name in kept["figures"]]
    return {name: kept["figures"][name] for name in names}, {name: kept[name] for name in names}


def judge(pool: Pool, seed: int) -> dict[str, Any]:
    """Return the figures of one fit."""
    held = [pair.architecture for pair in pool.held_out]
    kl = np.array([pair.measurement.kl for pair in pool.held_out])
    searched, unseen = (np.array([pair.measurement.nll for pair in pairs]) for pairs in (pool.held_out, pool.unseen))
    plain = fitted(pool, seed)
    told = plain.predict(held)
    additive = plain.prior.terms(genes_of(held)).sum(axis=1)
    without = fitted(pool, seed, slopes=False).predict(held)
    few = {part: [pair.measurement.kl for pair in pairs] for part, pairs in pool.few.items()}
    told_few = fitted(pool, seed, few).predict(held, few["held_out"])
    elsewhere = Elsewhere.from_pairs(pool.space, pool.prior, SEARCH, shift=0.0).factor(genes_of(held))
    half = fitted(pool, seed, blocks=HALF, slopes=False).predict(held)
    inside = (told.lower <= kl) & (kl <= told.upper)
    near = np.array(pool.near)
    return {
        **ranks("kendall_tau", told.value, kl),
        **ranks("kendall_tau_no_slopes", without.value, kl),
        **ranks("kendall_tau_additive", additive, kl),
        **ranks("kendall_tau_few", told_few.value, kl),
        "kendall_tau_near": tau(told.value[near], kl[near]),
        "unseen": {
            "predictor": tau(told.value, unseen),
            "predictor_elsewhere": tau(told.value * elsewhere, unseen),
            "predictor_no_slopes": tau(without.value, unseen),
            "predictor_few": tau(told_few.value, unseen),
            "predictor_2k": tau(half.value, unseen),
            "additive": tau(additive, unseen),
            "few": tau(np.array(few["held_out"]), unseen),
            "measured_2k": tau(np.array([kl_of(pair, HALF) for pair in pool.held_out]), unseen),
            "measured": tau(kl, unseen),
        },
        "coverage_90": float(inside.mean()),
        "coverage_90_random": float(inside[~near].mean()),
        "coverage_90_near": float(inside[near].mean()),
        "coverage_90_no_slopes": float(((without.lower <= kl) & (kl <= without.upper)).mean()),
        "coverage_90_few": float(((told_few.lower <= kl) & (kl <= told_few.upper)).mean()),
        "half_width": float(np.median(np.log(told.upper / told.value))),
        "top_pick_excess_perplexity": float(np.expm1(unseen[told.value.argmin()] - unseen.min())),
        "top_pick_excess_perplexity_measured": float(np.expm1(searched[told.value.argmin()] - searched.min())),
        "top_pick_excess_kl": float(kl[told.value.argmin()] / kl.min() - 1),
        "held_out": len(held),
        "regressor": plain.quality.regressor,
        "slopes_used": float(bool(plain.expansions)),
        "cross_validation": plain.quality.to_dict(),
    }


def fitted(
    pool: Pool,
    seed: int,
    few: Mapping[str, Sequence[float]] | None = None,
    blocks: Sequence[int] | None = None,
    slopes: bool = True,
) -> AccuracyPredictor:
    """Return a predictor fitted on a pool's prior and training pairs.

    Args:
        pool: what was measured.
        seed: of the fit.
        few: KL of the training pairs on few tokens.
        blocks: sequences of the search text that count; None takes all.
        slopes: whether it knows the slopes at the best pair.
    """
    pairs = pool.prior + pool.train
    values = [pair.measurement.kl if blocks is None else kl_of(pair, blocks) for pair in pairs]
    own = None if few is None else [np.nan] * len(pool.prior) + list(few["train"])
    return AccuracyPredictor.fit(
        pool.space.layout,
        [pair.architecture for pair in pairs],
        values,
        few_tokens=own,
        expansions=[expansion_of(pool.space, each) for each in pool.slopes] if slopes else [],
        stream=stream_of(pool.stream),
        seed=seed,
    )


# Half of the search text, as much of either kind: about 2,000 tokens.
HALF = tuple(sequence for sequence in range(SEARCH) if sequence % (SEARCH // 2) < SEARCH // 4)


def kl_of(pair: Pair, sequences: Sequence[int]) -> float:
    """Return a pair's KL on some sequences of its text."""
    blocks = np.reshape(pair.measurement.kl_blocks, (SEARCH, -1))
    return max(float(blocks[list(sequences)].mean()), 0.0)


def tau(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Return Kendall's tau."""
    return float(kendalltau(predicted, measured).statistic)


def ranks(name: str, predicted: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    """Return Kendall's tau over all, and among the quarter that measured best."""
    best = measured <= np.quantile(measured, 0.25)
    return {name: tau(predicted, measured), f"{name}_best_quarter": tau(predicted[best], measured[best])}


def mean_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of each figure, and of a name all that occur."""
    first = rows[0]
    found: dict[str, Any] = {}
    for key, value in first.items():
        own = [row[key] for row in rows]
        if key == "cross_validation":
            continue
        if isinstance(value, dict):
            found[key] = mean_of(own)
        else:
            found[key] = sorted(set(own)) if isinstance(value, str) else round(float(np.mean(own)), 4)
    return found


def speed(pool: Pool) -> dict[str, Any]:
    """Return how many architectures are predicted in a second, on one core, and how long a single answer takes."""
    predictor = fitted(pool, 0)
    indices = sample(pool.space, 1000, np.random.default_rng(0))
    genes = pool.space.genes(np.tile(indices, (ASKED // len(indices), 1)))
    found: dict[str, int] = {}
    with threadpool_limits(1):
        for name, ask in (("values", predictor.damages), ("intervals", predictor.predict_genes)):
            ask(genes[:1000])
            started = time.perf_counter()
            ask(genes)
            found[name] = round(len(genes) / (time.perf_counter() - started))
        single = []
        for pair in pool.held_out[:50]:
            started = time.perf_counter()
            predictor.predict([pair.architecture])
            single.append(1000 * (time.perf_counter() - started))
    return {"architectures_per_second": found, "answer_milliseconds": round(float(np.median(single)), 2)}


def fit_seconds(count: int) -> float:
    """Return the time of a fit on so many pairs of a made-up model."""
    architectures = SINGLES + draw(count, 0)
    values = measure(architectures, 0)
    started = time.perf_counter()
    predictor = AccuracyPredictor.fit(SMOLLM2_135M, architectures, values)
    seconds = round(time.perf_counter() - started, 2)
    print(f"{count} pairs in {seconds} s: {predictor.quality}", flush=True)
    return seconds


if __name__ == "__main__":
    main()
