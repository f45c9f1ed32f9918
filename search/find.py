"""All that a run measures, from the baselines to the report text, and the choice of the winner."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evaluator import Measurement
from predictor import AccuracyPredictor
from search import pareto_set, selection
from search.another_budget import EARLIER
from search.baselines import fixed_allocations, scored_allocations
from search.job import Run
from search.mixes import winner_under_each
from search.objective import predictor_score
from search.pareto_set import ParetoSet, set_record
from search.proposals import evolve
from search.strategies import search_by
from space import Architecture, BudgetError, PredictorError

# Shares of the cut at which the report shows what the predictor would choose under another budget.
_FRONTIER = (0.25, 0.5, 0.75, 1.25)


@dataclass(frozen=True, slots=True)
class Found:
    """All that a run measures.

    Args:
        winner: the architecture chosen.
        everyone: the baselines and, as `winner`, the winner.
        measured: by split, then by name in `everyone`.
        plain: baselines without the criterion's update, on the report text.
        predictor: the last one fitted; None where too little was measured for one.
        pareto: the Pareto set, see `search.pareto_set`; None where nothing was searched against.
        mixes: what the winner measures under each calibration mix, see `search.mixes`; empty where there was no choice.
    """

    winner: Architecture
    everyone: dict[str, Architecture]
    measured: dict[str, dict[str, Measurement]]
    plain: dict[str, tuple[Architecture, Measurement]]
    predictor: AccuracyPredictor | None
    pareto: dict[str, Any] | None
    mixes: dict[str, dict[str, Any]]


def find(run: Run) -> Found:
    """Measure all that is to be measured, and choose."""
    # What a run under another budget measured, where this one resumes it.
    run.pairs += run.evaluator.store.pairs(run.protocol, [EARLIER])
    run.measure("Measuring baselines", list(run.baselines.values()), "baseline")
    search_by(run)
    champion, pareto = _final(run)
    baselines = _compared(run, champion)
    if predictor := _fitted(run):
        _measure_frontier(run, predictor)
        predictor = run.fit()
    everyone = {**baselines, "winner": champion}
    measured = {split: _measure_all(run, everyone, split) for split in ("search", "validate", "report")}
    mixes = winner_under_each(run, champion) if run.config.calibration.mixes else {}
    return Found(champion, everyone, measured, _measure_plain(run, baselines), predictor, pareto, mixes)


def _fitted(run: Run) -> AccuracyPredictor | None:
    """Return a predictor of what was measured, or none where that is too little; a search by others needs none."""
    try:
        return run.fit()
    except PredictorError as error:
        run.reporter.say(f"This run has no predictor: {error}")
        return None


def _compared(run: Run, winner: Architecture) -> dict[str, Architecture]:
    """Return the baselines: within the budgets, or of the winner's costs where they had a part in its choice."""
    space, baselines = run.space, run.baselines
    if run.config.search.rule.needs_costs:
        space = run.ladder.rung(run.ladder.shares([winner])[0])
        with suppress(BudgetError):
            fixed = fixed_allocations(space, run.config.criterion.criterion.group)
            baselines = fixed | scored_allocations(space, run.evaluator.surgeon)
    random = [pair for pair in run.pairs if pair.origin == "random"]
    best = selection.lowest(random, space, 1)
    return baselines | ({"best_random": best[0]} if best else {})


def _final(run: Run) -> tuple[Architecture, dict[str, Any] | None]:
    """Return the winner, of the finalists and their means on text that no search has seen, and the Pareto set."""
    settings, expected = run.config.search, run.elsewhere().expect(run.pairs)
    chosen = selection.finalists(expected, run.space, settings.finalists)
    if run.ladder.against:
        chosen += pareto_set.finalists(run.ladder, expected, run.reference(), settings.finalists)
        chosen = list(dict.fromkeys(chosen))
    measured = run.measure("Measuring finalists on new text", chosen, "searched", "validate")
    origins = {pair.architecture: pair.origin for pair in run.pairs}
    measured = [replace(pair, origin=origins[pair.architecture]) for pair in measured]
    means = selection.consensus(measured, run.space, [run.config.seed, 5])
    run.measure("Measuring means of the best finalists", means, "averaged")
    again = run.measure("Measuring means of the best finalists on new text", means, "averaged", "validate")
    known = {pair.architecture for pair in measured}
    measured += [pair for pair in again if pair.architecture not in known]
    lowest = selection.winner(measured, run.space, run.config.text.shift)
    if not run.ladder.against:
        return lowest, None
    told = ParetoSet.of(run.ladder, measured, run.reference("validate"))
    searched = ParetoSet.of(run.ladder, run.pairs, run.reference())
    champion = told.winner(settings.rule) if settings.rule.needs_costs else lowest
    return champion, set_record(told, searched, run.pairs, settings.winner, champion)


def _measure_all(run: Run, everyone: dict[str, Architecture], split: str) -> dict[str, Measurement]:
    pairs = run.measure(f"Measuring on the {split} text", list(everyone.values()), "baseline", split)
    return {name: pair.measurement for name, pair in zip(everyone, pairs, strict=True)}


def _measure_plain(run: Run, baselines: Mapping[str, Architecture]) -> dict[str, tuple[Architecture, Measurement]]:
    """Measure what people have who only slice: the uniform baselines without the criterion's update."""
    criterion = run.config.criterion.criterion
    names = [name for name in ("uniform", "uniform_whole_ends") if name in baselines]
    if criterion.update == "none" or all(
        layer.kv_groups == run.space.layout.kv_groups and layer.mlp_width == run.space.layout.mlp_width
        for name in names
        for layer in baselines[name].layers
    ):
        return {}
    with run.evaluator.pruning_by(replace(criterion, update="none")):
        title = "Measuring baselines without the update"
        pairs = run.measure(title, [baselines[name] for name in names], "baseline", "report")
    return {f"{name}_no_update": (pair.architecture, pair.measurement) for name, pair in zip(names, pairs, strict=True)}


def _measure_frontier(run: Run, predictor: AccuracyPredictor) -> None:
    """Measure the predictor's choice under a few other budgets, so that the report can show what more or less costs."""
    if run.ladder.against:
        return  # the Pareto set shows it
    chosen = []
    for share in _FRONTIER:
        budgets = [
            replace(budget, amount=1 - share * (1 - budget.amount)) for budget in run.space.budgets if budget.amount < 1
        ]
        try:
            if len(budgets) < len(run.space.budgets):
                return  # absolute budgets have no scale
            other = replace(run.space, budgets=tuple(budgets))
        except BudgetError:
            continue
        rng = np.random.default_rng([run.config.seed, 3])
        best = evolve(other, predictor_score(other, predictor, run.elsewhere()), rng, generations=30)
        chosen += other.decode(best[:1])
    run.measure("Measuring other budgets", chosen, "frontier")
