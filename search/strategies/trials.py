"""Measuring whole architectures as trials of a run's study."""

from collections.abc import Sequence

from search.job import Run
from search.study import ArchitectureStudy
from space import Architecture


def measure_trials(
    run: Run, study: ArchitectureStudy, number: int, title: str, planned: Sequence[Architecture], origin: str
) -> None:
    """Measure architectures with progress, each a trial.

    Args:
        run: the run at work.
        study: its study.
        number: of the round that the trials belong to.
        title: of the progress.
        planned: what to measure, none a trial of another round.
        origin: why.
    """

    def measure(architecture: Architecture, why: str) -> float:
        [pair] = run.score([architecture], why)
        return pair.measurement.kl

    with run.reporter.stage(title, len(planned), "architectures") as advance:
        # All, before the first is told: of a run that two processes work on each takes its share.
        run.evaluator.measure(planned, "search", origin, advance)
        study.measure(number, planned, origin, measure)
