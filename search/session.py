"""Working on with a run that exists: its evaluator, its predictor, its report."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluator import DenseModel, Evaluator, Pair, PairStore, open_model
from predictor import AccuracyPredictor
from search.config import RunConfig
from search.folder import RunFolder
from search.objective import fit_pairs
from search.report import write_report
from search.results import pair_rows
from space import RunFolderError


def open_dense(config: RunConfig) -> DenseModel:
    """Open a run's dense model, its layout being what the run's criterion makes of it.

    Raises:
        ModelError: the model cannot be opened.
    """
    dense = open_model(config.model, dtype=config.dtype, device=config.device)
    return replace(dense, layout=dense.layout.pruned_by(config.criterion.criterion))


@contextmanager
def open_evaluator(run: RunFolder) -> Iterator[Evaluator]:
    """Open a run's model, texts and store.

    Args:
        run: a run folder whose texts were made.

    Raises:
        RunFolderError: the folder is damaged or was written by another model.
        ModelError: the model cannot be opened any more.
    """
    config = run.config()
    texts = run.texts()
    store = PairStore(run.measurements_file)
    dense = open_dense(config)
    run.keep_layout(config.model, dense.weights_hash, dense.layout)
    try:
        yield Evaluator(
            dense, texts, store, criterion=config.criterion.criterion, folder=run.prepared, kernels=config.kernels
        )
    finally:
        store.close()


def refit(run: RunFolder, seed: int | None = None) -> dict[str, Any]:
    """Fit a run's predictor anew on all its pairs on the search text and save it.

    Args:
        run: a run folder with measured pairs.
        seed: of folds and trees; None takes the run's.

    Returns:
        Its held-out quality.

    Raises:
        RunFolderError: nothing was measured yet.
        PredictorError: the pairs cannot carry a predictor; the old one stays.
    """
    predictor, _ = _fitted(run, seed)
    predictor.save(run.predictor)
    return predictor.quality.to_dict()


def rewrite_report(run: RunFolder) -> Path:
    """Write a finished run's report.html anew from its artefacts and return it.

    Raises:
        RunFolderError: the run is not finished or is damaged.
        PredictorError: its pairs cannot carry a predictor.
    """
    predictor, pairs = _fitted(run, None)
    return write_report(run.path, run.best(), pair_rows(pairs, run.layout(), predictor))


def _fitted(run: RunFolder, seed: int | None) -> tuple[AccuracyPredictor, list[Pair]]:
    config = run.config()
    protocol, pairs = _search_pairs(run)
    space = config.search_space(run.layout())
    return fit_pairs(space, pairs, protocol, config.seed if seed is None else seed), pairs


def _search_pairs(run: RunFolder) -> tuple[str, list[Pair]]:
    """Return the protocol of the search text and its pairs."""
    if not run.measurements_file.exists():
        raise RunFolderError(
            f"A run must have measured pairs, but {str(run.path)!r} has none yet; go on with the command that began it."
        )
    store = PairStore(run.measurements_file)
    try:
        protocols = [key for key, protocol in store.protocols().items() if protocol.split == "search"]
        if len(protocols) != 1:
            raise RunFolderError(
                f"A run must have pairs of one search protocol, but {str(run.path)!r} has {len(protocols)}; "
                "go on with the command that began it."
            )
        return protocols[0], store.pairs(protocols[0])
    finally:
        store.close()
