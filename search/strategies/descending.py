"""Going down from the best architecture by its slopes, step after step, until no step is a success."""

from collections.abc import Sequence
from itertools import chain, islice

from evaluator import Pair
from search import selection
from search.descent import FIRST_DAMPING, Descent
from search.exact import column_scores, lowest_sums
from search.job import Run
from search.objective import additive_prior, expansion_of
from search.strategies.trials import measure_trials
from search.study import ArchitectureStudy
from space import Architecture, SearchSpace

_LONG = (0.5, 0.7)  # dampings of a step that leaves a valley, by turns
_MOST_STEPS = 4  # down into another one
_LEAST_GAIN = 0.002  # of the KL: below that, a comparison of two architectures errs by more than it tells


def measure_sums(run: Run, study: ArchitectureStudy) -> None:
    """Measure the exact optimum of the additive scores on each rung: what a search by them alone would find."""
    prior = run.elsewhere().expected
    rows = [islice(lowest_sums(rung, column_scores(rung, prior)), 1) for rung in run.ladder.rungs()]
    planned = _new(run, [each for row in chain(*rows) for each in run.space.decode(row)])
    measure_trials(run, study, 0, "Measuring the optimum of the sums", planned, "guided")


def descend(run: Run, study: ArchitectureStudy, number: int, tokens: float) -> None:
    """Take slopes at the best and measure where they lead, while that is better.

    Where costs are searched against, before the first round on each rung, and in a round on one, by turns.

    Args:
        run: the run at work.
        study: its study.
        number: of the round that the steps belong to; 0 are those before the first.
        tokens: that the run may have spent in the end.
    """
    if not run.config.takes_slopes:
        return
    rungs = run.ladder.rungs()
    for rung in rungs if number == 0 else [rungs[(number - 1) % len(rungs)]]:
        descent = Descent(rung, additive_prior(run.space, run.alone))
        # Of many rungs each is a little off the next, so that a step on one is one on its neighbours.
        most = None if len(rungs) == 1 else 1
        while run.spent < tokens and most != 0 and _step(run, study, number, rung, descent):
            most = None if most is None else most - 1


def _step(run: Run, study: ArchitectureStudy, number: int, rung: SearchSpace, descent: Descent) -> bool:
    """Measure steps from the best, shorter ones until one is a success; return whether one was."""
    before = _best(run, rung)
    if before is None:
        return False
    expansion = expansion_of(run.space, run.slopes_at(before.architecture))
    while True:
        steps = descent.steps(expansion)
        if planned := _new(run, list(steps)):
            measure_trials(run, study, number, "Descending from the best", planned, "searched")
            after = _best(run, rung)
            assert after is not None
            if after.architecture in steps:
                descent.damping = steps[after.architecture]
                return after.measurement.kl < (1 - _LEAST_GAIN) * before.measurement.kl
        if not descent.shorten():
            return False


def wander(run: Run, study: ArchitectureStudy, number: int, tokens: float) -> None:
    """Take a step from the best that is too long to be a success, and go down from there, maybe into another valley.

    Args:
        run: the run at work, with one budget.
        study: its study.
        number: of the round that the steps belong to.
        tokens: that the run may have spent in the end.
    """
    if not run.config.takes_slopes or run.ladder.against or (best := _best(run, run.space)) is None:
        return
    here, prior = best.architecture, additive_prior(run.space, run.alone)
    descent = Descent(run.space, prior, _LONG[number % len(_LONG)])
    for step in range(1 + _MOST_STEPS):
        if run.spent >= tokens:
            return
        steps = descent.steps(expansion_of(run.space, run.slopes_at(here)))
        planned = _new(run, list(steps))[:1] if step == 0 else _new(run, list(steps))
        if not planned:
            return
        measure_trials(run, study, number, "Descending from elsewhere", planned, "searched")
        found = {pair.architecture: pair.measurement.kl for pair in run.elsewhere().expect(run.pairs)}
        lowest = min(planned, key=lambda each: found[each])
        if step and found[lowest] >= found[here]:
            return
        here, descent.damping = lowest, steps[lowest] if step else FIRST_DAMPING


def _best(run: Run, rung: SearchSpace) -> Pair | None:
    """Return the pair of the lowest KL to expect on other text, with that KL."""
    expected = run.elsewhere().expect(run.pairs)
    found = selection.lowest(expected, rung, 1)
    return next((pair for pair in expected if pair.architecture in found), None)


def _new(run: Run, architectures: Sequence[Architecture]) -> list[Architecture]:
    """Return those that were not measured yet, once each."""
    known = {pair.architecture for pair in run.pairs}
    return [each for each in dict.fromkeys(architectures) if each not in known]
