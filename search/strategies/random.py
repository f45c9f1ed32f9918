"""Random search: the baseline that any search must beat."""

import numpy as np

from search.job import Run
from search.selection import unique
from space import sample

_AT_ONCE = 16  # samples are stratified among so many
_MOST_REPEATS = 20  # times in a row that all of them were measured before: the space is used up


def random(run: Run, tokens: float) -> None:
    """Measure samples on the budget, or on all rungs of a range of costs, until the tokens are used up.

    Args:
        run: the run at work.
        tokens: that it may have spent in the end.
    """
    rng = np.random.default_rng([run.config.seed, 21])
    spent, repeats = run.spent, 0
    rungs = run.ladder.rungs()
    with run.spending("Random search", tokens) as advance:
        while run.spent < tokens and repeats < _MOST_REPEATS:
            repeats = repeats + 1 if run.spent == spent else 0
            spent = run.spent
            rows = np.concatenate([sample(rung, -(-_AT_ONCE // len(rungs)), rng) for rung in rungs])
            for architecture in unique(run.space, rows):
                if run.spent < tokens:
                    run.score([architecture], "random")
                    advance()
