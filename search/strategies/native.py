"""Optuna's own samplers: a parameter for each sub-block, and what they propose moved onto the budget.

Where costs are searched against, one more parameter says onto which rung of the range.
"""

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection

from search.job import Run
from search.sampler import parameter_names
from space import SearchSpace, land

_MOST_REPEATS = 200  # proposals in a row that were measured before: the sampler has settled


def tpe(run: Run, tokens: float) -> None:
    """Search by the tree-structured Parzen estimator until the tokens are used up.

    Args:
        run: the run at work.
        tokens: that it may have spent in the end.
    """
    _search(run, tokens, "tpe", optuna.samplers.TPESampler(seed=run.config.seed))


def nsga2(run: Run, tokens: float) -> None:
    """Search by the genetic algorithm NSGA-II until the tokens are used up.

    Args:
        run: the run at work.
        tokens: that it may have spent in the end.
    """
    _search(run, tokens, "nsga2", optuna.samplers.NSGAIISampler(seed=run.config.seed, population_size=20))


def _search(run: Run, tokens: float, name: str, sampler: BaseSampler) -> None:
    """Ask, land, measure, tell. Independent draws of so many parameters never meet a budget by themselves."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    directions = [StudyDirection.MINIMIZE] * (1 + len(run.ladder.against))
    study = optuna.create_study(sampler=sampler, study_name=name, directions=directions)
    rungs = run.ladder.rungs()
    names = _parameters(run.space)
    repeats = 0
    with run.spending(name, tokens) as advance:
        while run.spent < tokens and repeats < _MOST_REPEATS:
            trial = study.ask()
            row = np.array([trial.suggest_int(each, 0, int(size) - 1) for each, size in names.items()], dtype=np.int16)
            row = np.repeat(row, 2) if run.space.whole_blocks else row
            rung = rungs[trial.suggest_int("rung", 0, len(rungs) - 1)] if len(rungs) > 1 else run.space
            landed = land(rung, row[None], np.random.default_rng([run.config.seed, 23, trial.number]))
            spent = run.spent
            [pair] = run.score(run.space.decode(landed), "searched")
            study.tell(trial, [pair.measurement.kl, *run.ladder.shares([pair.architecture])[0].tolist()])
            repeats = repeats + 1 if run.spent == spent else 0
            advance()


def _parameters(space: SearchSpace) -> dict[str, int]:
    """Return the number of choices of each parameter: one for each unit that changes by itself."""
    sizes = space.sizes
    return {name: int(sizes[unit[-1]]) for name, unit in zip(parameter_names(space), space.units, strict=True)}
