"""A new budget on an old run: an answer at once, from what the run's predictor knows, and a run that begins with it."""

import shutil
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import numpy as np

from predictor import AccuracyPredictor
from search.config import RunConfig, load_config
from search.folder import RunFolder, write_json
from search.proposals import evolve
from space import LatencyTable, SettingError

ANSWER_FILE = "answer.json"
EARLIER = "earlier"  # origin of the pairs that another run measured
_KEPT = (
    "model",
    "text",
    "criterion",
    "recovery",
    "tasks",
    "dtype",
    "device",
    "kernels",
    "seed",
)  # what a measurement depends on
_DRAWS = 31  # the stream of random numbers


def told_in_words(told: Mapping[str, Any]) -> str:
    """Return an answer as a sentence."""
    predicted = ", ".join(
        f"{name if name != 'kl' else 'KL'} {each['value']:.4g} ({each['lower']:.4g} to {each['upper']:.4g})"
        for name, each in told["predicted"].items()
    )
    return f"Nothing measured yet; for {', '.join(told['budgets'])} the predictor promises {predicted}"


def config_of(old: RunFolder, overrides: Mapping[str, Any]) -> RunConfig:
    """Return an old run's settings with others laid over them.

    Args:
        old: a run folder.
        overrides: as in `load_config`; the budget, and settings of the search and the space.

    Raises:
        SettingError: the new settings would measure otherwise, or have the old budget and the old costs.
    """
    before, now = old.config(), load_config(old.config_file, overrides)
    for name in _KEPT:
        if getattr(before, name) != getattr(now, name):
            raise SettingError(
                f"A run that resumes another must measure as that one did, but has another {name}; leave it out, or "
                "begin a run without --resume."
            )
    if (before.budget, before.search.against) == (now.budget, now.search.against):
        raise SettingError(
            f"A run that resumes another must have another budget, but both have {', '.join(now.budget)}; give one "
            "with --budget, other costs with --against, or go on with the command that began the run."
        )
    return now


def known_latency(old: RunFolder, new: RunFolder, config: RunConfig) -> LatencyTable | None:
    """Return the timings that a run has, or takes over from an old one; None where both have none of what is asked.

    Args:
        old: a run folder.
        new: where the run is or is to be.
        config: its settings.
    """
    for folder in (new, old):
        table = folder.latency()
        if table is not None:
            timed = table.conditions
            if (timed.phase, timed.batch, timed.sequence_length) == config.latency.conditions:
                return table
    return None


def answer(old: RunFolder, config: RunConfig, latency: LatencyTable | None = None) -> dict[str, Any]:
    """Return the best architecture under other settings by an old run's predictor; nothing is measured or loaded.

    Args:
        old: a run folder with a predictor.
        config: from `config_of`.
        latency: timings of the model's sub-blocks, which a budget on latency needs.

    Raises:
        BudgetError: no architecture meets the budget, or latency is limited and was not timed.
        PredictorError: there is no predictor, or it knows nothing of what the new space has.
    """
    space = config.search_space(old.layout(), latency)
    predictors = [AccuracyPredictor.load(path) for path in old.predictors()]
    first = predictors[0]
    best = evolve(space, lambda rows: first.damages(space.genes(rows)), np.random.default_rng([config.seed, _DRAWS]))
    [architecture] = space.decode(best[:1])
    predicted = {}
    for predictor in predictors:
        told = predictor.predict([architecture])
        predicted[predictor.target.title] = {
            "value": float(told.value[0]),
            "lower": float(told.lower[0]),
            "upper": float(told.upper[0]),
        }
    return {
        "budgets": list(config.budget),
        "fingerprint": architecture.fingerprint,
        "architecture": architecture.to_dict(),
        "cost": space.amounts(architecture),
        "predicted": predicted,
    }


def begin_from(
    old: RunFolder,
    new: RunFolder,
    config: RunConfig,
    told: Mapping[str, Any],
    latency: LatencyTable | None = None,
) -> None:
    """Make a run folder that knows what an old run measured; one that is there already is left as it is.

    Args:
        old: a run folder.
        new: where the run is to be.
        config: its settings.
        told: what was answered; kept with it.
        latency: timings of the model's sub-blocks; kept with it as well.

    Raises:
        RunFolderError: the folder holds something else.
    """
    new.check(config)
    if new.config_file.exists():
        return
    beside = RunFolder(new.path.with_name(f".{new.path.name}.partial"))
    _forget(beside)
    shutil.rmtree(beside.path, ignore_errors=True)
    beside.prepare(config)
    for file in (old.layout_file, old.texts_file):
        shutil.copyfile(file, beside.path / file.name)
    if old.prepared.exists():
        shutil.copytree(old.prepared, beside.prepared)
    _copy_pairs(old, beside)
    if latency is not None:
        beside.keep_latency(latency)
    write_json(beside.path / ANSWER_FILE, told)
    beside.path.replace(new.path)


def _forget(beside: RunFolder) -> None:
    """Take back the schema of a folder that was not finished, if it came to one."""
    if beside.database_file.exists():
        from search.database import forget_schema

        forget_schema(beside)


def _copy_pairs(old: RunFolder, new: RunFolder) -> None:
    """Copy the measurements; what is no single change is marked as another run's."""
    from search.database import open_store  # late: an answer needs no torch

    with closing(open_store(old)) as source, closing(open_store(new)) as copy:
        copy.take_over(source, {"prior": "prior"}, EARLIER)
