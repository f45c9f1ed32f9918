"""Strategies: ways to spend tokens on a search, all on the same footing.

Each is a function of a run at work and of the tokens that it may have spent in the end, `Run.spent`. It measures
whole architectures with `Run.score`; the best pair on the whole search text is what it found. A measurement that goes
on when the tokens are used up is finished. The same seed measures the same.

| strategy | what it is |
| --- | --- |
| `random` | samples on the budget, see `space.sampling` |
| `evolution` | 1 + lambda evolution on rising numbers of tokens, after EvoPress (arXiv 2410.14649) |
| `additive` | sub-blocks measured alone, an integer program over their sum, after Puzzle (arXiv 2411.19146) |
| `tpe`, `nsga2` | Optuna's samplers as they come, their proposals moved onto the budget |
"""

from collections.abc import Callable

from search.job import Run
from search.strategies.additive import additive
from search.strategies.evolution import evolution
from search.strategies.native import nsga2, tpe
from search.strategies.random import random

__all__ = ["STRATEGIES", "Strategy", "additive", "evolution", "nsga2", "random", "tpe"]

Strategy = Callable[[Run, float], None]

STRATEGIES: dict[str, Strategy] = {
    "random": random,
    "evolution": evolution,
    "additive": additive,
    "tpe": tpe,
    "nsga2": nsga2,
}
