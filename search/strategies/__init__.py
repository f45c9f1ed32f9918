"""Strategies: ways to spend tokens on a search, all on the same footing.

Each is a function of a run at work and of the tokens that it may have spent in the end, `Run.spent`. It measures
whole architectures with `Run.score`; the best pair on the whole search text is what it found. A measurement that goes
on when the tokens are used up is finished. The same seed measures the same.

| strategy | what it is |
| --- | --- |
| `predictor` | ours: learns from what it measured, see `search.strategies.predicted` |
| `random` | samples on the budget, see `space.sampling` |
| `evolution` | 1 + lambda evolution on rising numbers of tokens, after EvoPress (arXiv 2410.14649) |
| `additive` | sub-blocks measured alone, an integer program over their sum, after Puzzle (arXiv 2411.19146) |
| `tpe`, `nsga2` | Optuna's samplers as they come, their proposals moved onto the budget |
"""

from collections.abc import Callable
from typing import get_args

from search.job import Run
from search.proposals import prior_architectures
from search.settings import StrategyName
from search.strategies.additive import additive
from search.strategies.evolution import evolution
from search.strategies.native import nsga2, tpe
from search.strategies.predicted import predicted
from search.strategies.random import random

__all__ = ["STRATEGIES", "Strategy", "additive", "evolution", "nsga2", "predicted", "random", "search_by", "tpe"]

Strategy = Callable[[Run, float], None]

STRATEGIES: dict[StrategyName, Strategy] = {
    "predictor": predicted,
    "random": random,
    "evolution": evolution,
    "additive": additive,
    "tpe": tpe,
    "nsga2": nsga2,
}
assert set(STRATEGIES) == set(get_args(StrategyName))


def search_by(run: Run) -> None:
    """Search by the strategy and the tokens of a run's settings."""
    settings = run.config.search
    tokens = settings.tokens if settings.tokens is not None else _planned(run)
    STRATEGIES[settings.strategy](run, tokens)


def _planned(run: Run) -> float:
    """Return the tokens that the predictor's plan takes; without end for the predictor itself."""
    settings = run.config.search
    if settings.strategy == "predictor":
        return float("inf")
    singles = sum(run.evaluator.work(each, "search") for each in prior_architectures(run.space))
    pairs = settings.random_pairs + settings.profile_pairs + settings.guided_pairs
    pairs += settings.rounds * (settings.picks + settings.averages)
    return run.spent + singles + pairs * run.evaluator.protocol("search").tokens
