"""Evolution after EvoPress: one parent, offspring judged on rising numbers of tokens, the best of the last replaces it.

A generation mutates the parent by one to three moves, each taking some steps from one sub-block and giving as many to
another. All offspring are measured on the beginning of the search text, the best of them on more of it, and the best of
those on all of it, where they meet their parent.

EvoPress (arXiv 2410.14649, table 1 and section 4) has 64 offspring with 2k, 16k and 64k tokens, of which 8, 2 and 1 go
on, over 400 generations, on models fifty times as large; here offspring and tokens are fewer in the same spirit. It
draws fresh tokens for each generation; here all strategies have one search text.
"""

import numpy as np

from evaluator import Pair
from search.job import Run
from search.proposals import mutate
from search.selection import unique
from space import Architecture, Indices, sample

_OFFSPRING = 16
_SURVIVORS = (4, 1)  # of the first and second stage
_SHARES = (1 / 8, 1 / 2)  # of the search text in these
_SWAPS = 3
_FIRST = 16  # samples among which the first parent is chosen, besides the baselines
_MOST_DRAWS = 50  # generations without a new architecture: the space is used up


def evolution(run: Run, tokens: float) -> None:
    """Evolve the best of some samples and of the baselines until the tokens are used up.

    Args:
        run: the run at work; what it has measured within the space may be the first parent.
        tokens: that it may have spent in the end.
    """
    rng = np.random.default_rng([run.config.seed, 22])
    sequences = len(run.evaluator.texts.of("search"))
    stages = [f"search:{max(1, round(share * sequences))}" for share in _SHARES]
    empty = 0
    with run.spending("Evolution", tokens) as advance:
        first = unique(run.space, sample(run.space, _FIRST, rng))
        [chosen] = _lowest(run.score(first, "searched", stages[0]), 1)
        run.score([chosen], "searched")
        known = {pair.architecture for pair in run.pairs}
        while run.spent < tokens and empty < _MOST_DRAWS:
            parent = run.space.encode([run.lowest().architecture])
            children = [each for each in _offspring(run, parent, rng) if each not in known]
            empty = 0 if children else empty + 1
            for stage, count in zip(stages, _SURVIVORS, strict=True):
                children = _lowest(run.score(children, "searched", stage), count)
            run.score(children, "searched")
            known |= set(children)
            advance()


def _offspring(run: Run, parent: Indices, rng: np.random.Generator) -> list[Architecture]:
    children = mutate(run.space, np.repeat(parent, _OFFSPRING, axis=0), rng, _SWAPS)
    return unique(run.space, children[(children != parent).any(axis=1)])


def _lowest(pairs: list[Pair], count: int) -> list[Architecture]:
    ordered = sorted(pairs, key=lambda pair: (pair.measurement.kl, pair.architecture.fingerprint))
    return [pair.architecture for pair in ordered[:count]]
