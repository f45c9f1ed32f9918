"""Our own strategy: learn from measured pairs, search on the predictor, measure what it promises, by rounds.

    prior -> descent -> first pairs -> [ descent -> fit -> refine -> plan -> measure ] x rounds

where a descent is [ slopes at the best -> steps -> measure ] while that is better, see `search.descent`.

Rounds end by their number, by the tokens, or when what they are expected to gain cannot be told from nothing. A search
against costs does each of these on rungs between the budgets and the floor of the costs, see `search.ladder`; otherwise
there is one, the space.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from evaluator import Pair, difference
from predictor import FEWEST_PAIRS, AccuracyPredictor, Refinement, refine
from search import selection
from search.baselines import fixed_allocations
from search.database import study_place
from search.job import Run
from search.objective import Elsewhere, predictor_score, stream_of
from search.pareto_set import ParetoSet
from search.proposals import evolve, prior_architectures, rounding_architectures
from search.sampler import ArchitectureSampler, Knowledge
from search.settings import SearchConfig
from search.strategies.descending import descend, measure_sums, wander
from search.strategies.trials import measure_trials
from search.study import ArchitectureStudy
from space import Architecture, BudgetError, PredictorError, SearchSpace, SettingError

_KEPT_INSIDE = 8  # best measured that no refinement may cut away
_GENERATIONS = 30  # by which the architectures are found that refining asks about
_MOST_EXTRA_BATCHES = 3  # times that more pairs are measured for a predictor that fails its gate
_RUNG_SEEDS = 100  # between the seeds of two rungs
_CENTRES = 4  # best measured, around which first pairs are drawn
_RIVALS = 8  # best measured, whose distances from the very best tell the error of a comparison
_PATIENCE = 2  # rounds in a row that promise too little: one may have planned badly

_FIRST_PAIRS = {
    "random": "Measuring random samples",
    "profile": "Measuring smooth profiles",
    "allocated": "Measuring near the baselines",
    "guided": "Measuring near the prior's best",
}


def predicted(run: Run, tokens: float) -> None:
    """Measure what a predictor promises until its rounds are over, promise nothing more, or the tokens are used up.

    Args:
        run: the run at work; what each round reached is in its `rounds` in the end.
        tokens: that it may have spent in the end.
    """
    settings = run.config.search
    singles = prior_architectures(run.space)
    if run.evaluator.dense.dtype != "float32":
        singles += rounding_architectures(run.space)
    run.measure_alone(singles)
    if run.ladder.against:
        run.reference()  # now, so that its pair is where it was when a run that was stopped goes on
    sampler = ArchitectureSampler(
        run.space, run.config.seed, settings.candidates, settings.generations, settings.picks, run.ladder
    )
    study = ArchitectureStudy(study_place(run.folder), run.space, sampler, _made_from(run))
    try:
        _search(run, study, sampler, tokens)
    finally:
        study.close()


def _made_from(run: Run) -> str:
    """Return a fingerprint of what the study depends on beside the pairs."""
    content = f"{run.protocol} {run.config.seed} {run.config.search} {run.space.choices} {run.space.budgets}"
    if run.space.latency is not None:
        content += f" {run.space.latency}"
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _search(run: Run, study: ArchitectureStudy, sampler: ArchitectureSampler, tokens: float) -> None:
    measure_sums(run, study)
    descend(run, study, 0, tokens)
    _measure_first_pairs(run, study, run.config.seed)
    finished = study.records
    if finished:  # more than the first pairs, where a gate asked for them
        _replay(run, study, 0)
    for number in range(1, run.config.search.rounds + 1):
        if number > 1:
            wander(run, study, number, tokens)
        descend(run, study, number, tokens)
        if number <= len(finished):
            _replay(run, study, number)
            run.rounds.append(finished[number - 1])
        elif run.spent >= tokens:
            return
        else:
            predictor = run.fit_near() if number > 1 else _fit_past_gate(run, study)
            record = _round(run, study, sampler, number, predictor)
            run.rounds.append(record)
            study.finish_round(record)
        if _is_over(run):
            return


def _replay(run: Run, study: ArchitectureStudy, number: int) -> None:
    """Take up what a round measured before the run was stopped."""
    for architecture, origin in study.trials(number):
        run.score([architecture], origin)


def _measure_first_pairs(run: Run, study: ArchitectureStudy, seed: int) -> None:
    """Measure what the predictor learns from before it is asked: at random, smooth, and near the prior's best."""
    prior, stream = run.elsewhere().expected, stream_of(run.evaluator.stream())
    found: dict[str, list[Architecture]] = defaultdict(list)
    for index, rung in enumerate(run.ladder.rungs()):
        baselines = _uniform(run, rung) if index else run.baselines
        settings = _shared(run.config.search, len(run.ladder.rungs()), index)
        best = selection.lowest(run.pairs, rung, _CENTRES) if run.config.takes_slopes else []
        first = selection.first_pairs(rung, prior, baselines, settings, seed + _RUNG_SEEDS * index, stream, best)
        for origin, chosen in first.items():
            found[origin] += chosen
    for origin, chosen in found.items():
        measure_trials(run, study, 0, _FIRST_PAIRS[origin], list(dict.fromkeys(chosen)), origin)


def _uniform(run: Run, rung: SearchSpace) -> dict[str, Architecture]:
    with suppress(BudgetError):
        return fixed_allocations(rung, run.config.criterion.criterion.group)
    return {}


def _shared(settings: SearchConfig, rungs: int, index: int) -> SearchConfig:
    """Return one rung's share of the first pairs."""
    names = ("random_pairs", "profile_pairs", "guided_pairs")
    return settings.model_copy(update={name: (getattr(settings, name) + index) // rungs for name in names})


def _round(
    run: Run, study: ArchitectureStudy, sampler: ArchitectureSampler, number: int, predictor: AccuracyPredictor
) -> dict[str, Any]:
    """Plan a round and measure it; return what it reached."""
    settings, elsewhere = run.config.search, run.elsewhere()
    space = run.space
    if settings.refine:
        run.refinement = _refine(run, number, predictor, elsewhere)
        space = run.refinement.space
    rungs = run.ladder.rungs()
    # A gain is the mean over the range of costs, and what is measured on one rung improves about that one.
    error = float(np.median([_comparison_error(run, rung) for rung in rungs])) / len(rungs)
    with run.reporter.stage(f"Round {number}: searching", 1, "plans") as advance:
        sampler.learn(Knowledge(predictor, space, elsewhere))
        plan = study.plan(number)
        advance(1)
    picks = [architecture for architecture, _ in plan]
    expected = elsewhere.expect(run.pairs)
    averaged = [each for each in _averages(run, expected, number) if each not in picks]
    measure_trials(run, study, number, f"Round {number}: measuring the best", picks, "searched")
    measure_trials(run, study, number, f"Round {number}: measuring averages", averaged, "averaged")
    record = {
        "round": number,
        "pairs": predictor.quality.pairs,
        "kendall_tau": predictor.quality.kendall_tau,
        "regressor": predictor.quality.regressor,
        "space_log10": round(space.size_log10, 2),
        "expected_gain": float(sum(improvement for _, improvement in plan)),
        "comparison_error": error,
        "best_kl": run.lowest().measurement.kl,
    }
    if run.ladder.against:
        reached = ParetoSet.of(run.ladder, run.pairs, run.reference())
        record |= {"members": len(reached.members), "hypervolume": reached.hypervolume}
        run.reporter.say(f"Round {number}: {reached}")
    run.reporter.say(
        f"Round {number}: best {run.loss or 'KL'} {record['best_kl']:.4f} of 10^{space.size_log10:.0f} architectures, "
        f"held-out Kendall tau {record['kendall_tau']:.2f} on {record['pairs']} pairs; a gain of "
        f"{record['expected_gain']:.2%} was expected, a comparison errs by {error:.2%}"
    )
    return record


def _averages(run: Run, expected: Sequence[Pair], number: int) -> list[Architecture]:
    """Return averages of the best measured, on rungs by turns."""
    settings, seed = run.config.search, [run.config.seed, 4, number]
    rungs = run.ladder.rungs(rng=np.random.default_rng([run.config.seed, 9, number]))
    found = []
    for index, rung in enumerate(rungs):
        share = (settings.averages + (index + number * settings.averages) % len(rungs)) // len(rungs)
        found += selection.averages_of(expected, rung, share, seed if len(rungs) == 1 else [*seed, index])
    return list(dict.fromkeys(found))


def _comparison_error(run: Run, rung: SearchSpace) -> float:
    """Return the standard error of comparing good architectures on the search text, as a share of their KL."""
    best = selection.lowest(run.pairs, rung, 1 + _RIVALS)
    by_architecture = {pair.architecture: pair.measurement for pair in run.pairs}
    first, *others = (by_architecture[each] for each in best) if best else (None,)
    if first is None or not others or first.kl <= 0:
        return 0.0
    return float(np.median([difference(other, first).kl_standard_error for other in others]) / first.kl)


def _is_over(run: Run) -> bool:
    """Say whether the last rounds promised less than a comparison errs by, all that they measured taken together."""
    last = run.rounds[-_PATIENCE:]
    if len(last) < _PATIENCE or any(each["expected_gain"] > each["comparison_error"] for each in last):
        return False
    run.reporter.say(
        f"After {len(run.rounds)} rounds a further one is expected to gain less than a comparison of two architectures "
        "errs by: the search ends here"
    )
    return True


def _refine(run: Run, number: int, predictor: AccuracyPredictor, elsewhere: Elsewhere) -> Refinement:
    """Cut away what cannot be in a good model at either end of the range of costs; the best measured stay inside."""
    rng = np.random.default_rng([run.config.seed, 7, number])
    inside = ParetoSet.of(run.ladder, run.pairs, run.reference()).architectures if run.ladder.against else []
    parts = []
    for rung in run.ladder.corners():
        good = evolve(rung, predictor_score(rung, predictor, elsewhere), rng, generations=_GENERATIONS)
        best = selection.lowest(run.pairs, rung, _KEPT_INSIDE) + inside
        parts.append(refine(predictor, rung, good, rung.encode(best), rng))
    return Refinement.together(parts)


def _fit_past_gate(run: Run, study: ArchitectureStudy) -> AccuracyPredictor:
    """Fit, and measure more pairs while there are too few or the predictor ranks held-out ones below the gate."""
    gate = run.config.search.gate
    for extra in range(1, _MOST_EXTRA_BATCHES + 1):
        predictor = _try_fit(run)
        if predictor and predictor.quality.kendall_tau >= gate:
            return predictor
        tau = f"Held-out Kendall tau {predictor.quality.kendall_tau:.2f} is below {gate:.2f}" if predictor else None
        run.reporter.say(f"{tau or 'There are too few different pairs'}: measuring more pairs first")
        _measure_first_pairs(run, study, run.config.seed + 1000 * extra)
    if len(study.trials(0)) < FEWEST_PAIRS:
        raise SettingError(
            f"A search space must hold {FEWEST_PAIRS} or more architectures on the budget for a predictor to learn "
            f"from, but {len(study.trials(0))} were found; allow more (width_step, whole_blocks), or search with "
            "search.strategy=random, which measures them all."
        )
    predictor = run.fit_near()
    if predictor.quality.kendall_tau < gate:
        run.reporter.say(
            f"The predictor stays below its gate ({predictor.quality.kendall_tau:.2f}); its proposals are measured "
            "for real all the same"
        )
    return predictor


def _try_fit(run: Run) -> AccuracyPredictor | None:
    """Return a predictor, or none where a small space had few different pairs to draw."""
    try:
        return run.fit_near()
    except PredictorError:
        return None
