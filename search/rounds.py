"""The rounds of a run: measure, fit, cut the space down, search on the predictor, measure what it promises."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from predictor import AccuracyPredictor, Refinement, choose_batch, refine
from search import selection
from search.job import Run
from search.objective import Elsewhere, predictor_score
from search.proposals import evolve
from search.study import ArchitectureSampler, run_study
from space import Architecture, PredictorError, SearchSpace, genes_of

_KEPT_INSIDE = 8  # best measured that no refinement may cut away
_GENERATIONS = 30  # by which the architectures are found that refining asks about
_MOST_EXTRA_BATCHES = 3  # times that more pairs are measured for a predictor that fails its gate

_FIRST_PAIRS = {
    "random": "Measuring random samples",
    "profile": "Measuring smooth profiles",
    "allocated": "Measuring near the baselines",
    "guided": "Measuring near the prior's best",
}


def measure_first_pairs(run: Run, seed: int) -> None:
    """Measure what the predictor learns from before it is asked: at random, smooth, and near the prior's best."""
    prior = run.elsewhere().expected
    for origin, chosen in selection.first_pairs(run.space, prior, run.baselines, run.config.search, seed).items():
        run.measure(_FIRST_PAIRS[origin], chosen, origin)


def search_rounds(run: Run) -> tuple[list[dict[str, Any]], AccuracyPredictor, Refinement | None]:
    """Fit, search and measure by turns.

    Returns:
        What each round reached, the last predictor, and what the last round's space was refined to.
    """
    settings, elsewhere = run.config.search, run.elsewhere()
    history: list[dict[str, Any]] = []
    run.take_slopes()
    predictor, refinement = _fit_past_gate(run), None
    for number in range(1, settings.rounds + 1):
        if settings.refine:
            refinement = _refine(run, number, predictor, elsewhere)
        space = refinement.space if refinement else run.space
        expected = elsewhere.expect(run.pairs)
        averaged = selection.averages_of(expected, run.space, settings.averages, [run.config.seed, 4, number])
        picks = _propose(run, number, space, predictor, averaged)
        run.measure(f"Round {number}: measuring the best", picks, "searched")
        run.measure(f"Round {number}: measuring averages", averaged, "averaged")
        run.take_slopes()
        predictor = run.fit()
        history.append(
            {
                "round": number,
                "pairs": predictor.quality.pairs,
                "kendall_tau": predictor.quality.kendall_tau,
                "regressor": predictor.quality.regressor,
                "space_log10": round(space.size_log10, 2),
                "best_kl": run.lowest().measurement.kl,
            }
        )
        run.reporter.say(
            f"Round {number}: best KL {history[-1]['best_kl']:.4f} of 10^{space.size_log10:.0f} architectures, "
            f"held-out Kendall tau {predictor.quality.kendall_tau:.2f} on {predictor.quality.pairs} pairs"
        )
    return history, predictor, refinement


def _refine(run: Run, number: int, predictor: AccuracyPredictor, elsewhere: Elsewhere) -> Refinement:
    """Cut away what cannot be in a good model; the best measured stay inside."""
    rng = np.random.default_rng([run.config.seed, 7, number])
    good = evolve(run.space, predictor_score(run.space, predictor, elsewhere), rng, generations=_GENERATIONS)
    best = selection.lowest(run.pairs, run.space, _KEPT_INSIDE)
    return refine(predictor, run.space, good, run.space.encode(best), rng)


def _propose(
    run: Run, number: int, space: SearchSpace, predictor: AccuracyPredictor, others: Sequence[Architecture]
) -> list[Architecture]:
    """Return what to measure next: of what a study finds by the predictor, where most is to be gained.

    Args:
        run: the run.
        number: of the round.
        space: to search in.
        predictor: what the study asks.
        others: what is measured in this round anyway.
    """
    settings, elsewhere = run.config.search, run.elsewhere()
    expected = elsewhere.expect(run.pairs)
    score = predictor_score(space, predictor, elsewhere)
    sampler = ArchitectureSampler(
        space,
        score,
        starts=space.encode(selection.lowest(expected, space, len(run.pairs))),
        seen={each.fingerprint for each in [*(pair.architecture for pair in run.pairs), *others]},
        candidates=settings.candidates,
        seed=run.config.seed * 1000 + number,
    )
    with run.reporter.stage(f"Round {number}: searching", settings.trials, "trials") as advance:
        near, anywhere = run_study(
            run.folder.study_file, f"round-{number}", sampler, space, score, settings.trials, advance
        )
    found = list(dict.fromkeys([*near, *anywhere]))
    genes = genes_of(found)
    best = min(pair.measurement.kl for pair in expected if run.space.allows(pair.architecture))
    picks = choose_batch(predictor, genes, settings.picks, best, elsewhere.factor(genes))
    return [found[pick.index] for pick in picks]


def _fit_past_gate(run: Run) -> AccuracyPredictor:
    """Fit, and measure more pairs while there are too few or the predictor ranks held-out ones below the gate."""
    gate = run.config.search.gate
    for extra in range(1, _MOST_EXTRA_BATCHES + 1):
        predictor = _try_fit(run)
        if predictor and predictor.quality.kendall_tau >= gate:
            return predictor
        tau = f"Held-out Kendall tau {predictor.quality.kendall_tau:.2f} is below {gate:.2f}" if predictor else None
        run.reporter.say(f"{tau or 'There are too few different pairs'}: measuring more pairs first")
        measure_first_pairs(run, run.config.seed + 1000 * extra)
    predictor = run.fit()
    if predictor.quality.kendall_tau < gate:
        run.reporter.say(
            f"The predictor stays below its gate ({predictor.quality.kendall_tau:.2f}); its proposals are measured "
            "for real all the same"
        )
    return predictor


def _try_fit(run: Run) -> AccuracyPredictor | None:
    """Return a predictor, or none where a small space had few different pairs to draw."""
    try:
        return run.fit()
    except PredictorError:
        return None
