"""Additive scores and an exact solver: sub-blocks measured alone, the lowest sum within the budget, after Puzzle."""

from itertools import islice, zip_longest

from search.exact import column_scores, lowest_sums
from search.job import Run
from search.objective import additive_prior
from search.proposals import prior_architectures, rounding_architectures

_APART = 2  # sub-blocks in which any two that are measured differ at least
_MOST = 64  # solutions: each is harder to find than the one before, and of a higher sum


def additive(run: Run, tokens: float) -> None:
    """Measure each sub-block alone, then the few architectures of the lowest sums, or until the tokens are used up.

    Args:
        run: the run at work.
        tokens: that it may have spent in the end.
    """
    singles = prior_architectures(run.space, sparsities=None)  # all that it goes by, with no slopes to come
    if run.evaluator.dense.dtype != "float32":
        singles += rounding_architectures(run.space)
    with run.spending("Additive search", tokens) as advance:
        for architecture in singles:
            run.alone += run.score([architecture], "prior")
            advance()
        scores = column_scores(run.space, additive_prior(run.space, run.alone))
        # Where costs are searched against, one solution of each rung by turns.
        turns = zip_longest(*(lowest_sums(rung, scores, _APART) for rung in run.ladder.rungs()))
        rows = (row for turn in turns for row in turn if row is not None)
        for row in islice(rows, _MOST):
            if run.spent >= tokens:
                return
            run.score(run.space.decode(row), "searched")
            advance()
