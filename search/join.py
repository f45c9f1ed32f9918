"""Measuring along with a run that another process works on."""

from pathlib import Path

from search.aim import aim_of
from search.database import copied_study, has_store, open_store
from search.find import find
from search.folder import RunFolder
from search.progress import Reporter
from search.run import at_work
from search.session import open_dense
from space import RunFolderError


def join_search(folder: str | Path, reporter: Reporter | None = None) -> int:
    """Measure along with a run that another process works on, until there is nothing left to measure.

    Both do the same in the same order, and each measures what the other has not begun. What is found is written by the
    process that the run belongs to.

    Args:
        folder: run folder of a run that has begun to measure.
        reporter: tells a person about the progress; None is quiet.

    Returns:
        How many architectures this process measured.

    Raises:
        RunFolderError: the folder holds no run, or one that is finished or has not begun to measure.
        SecateurError: the model cannot be opened any more.
    """
    reporter = reporter or Reporter(quiet=True)
    files = RunFolder(Path(folder))
    config = files.config()
    if files.best_file.exists():
        raise RunFolderError(
            f"A run to join must be at work, but {str(files.path)!r} is finished; see its report.html."
        )
    if not _has_begun(files):
        raise RunFolderError(
            f"A run to join must have begun to measure, but {str(files.path)!r} has not; wait until it is calibrated."
        )
    with reporter.stage(f"Opening {config.model}", 1, "models") as advance:
        dense = open_dense(config, files)
        advance(1)
    files.keep_layout(config.model, dense.weights_hash, dense.layout, dense.dtype)
    store = open_store(files)
    try:
        with copied_study(files) as own:
            aim = aim_of(config, dense, reporter)
            run = at_work(config, own, reporter, dense, files.texts(), store, files.search_space(), None, aim)
            find(run)
    finally:
        store.close()
    return run.evaluator.measured


def _has_begun(files: RunFolder) -> bool:
    if not has_store(files):
        return False
    store = open_store(files)
    try:
        return bool(store.protocols())
    finally:
        store.close()
