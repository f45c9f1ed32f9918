"""Working on with a run that exists: its evaluator, its predictor, its report."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluator import DenseModel, Evaluator, Pair, Slopes, open_model
from evaluator.harness.items import LOSSES
from predictor import AccuracyPredictor, ResidualStream, Target, pairs_of_table, read_table
from search.aim import aim_of
from search.config import RunConfig
from search.database import has_store, open_store
from search.folder import RunFolder, write_json
from search.learned import curve_record
from search.objective import fit_pairs, stream_of
from search.progress import Reporter
from search.report import write_report
from search.results import pair_rows
from space import Architecture, PredictorError, RunFolderError, SearchSpace


def open_dense(config: RunConfig, run: RunFolder | None = None) -> DenseModel:
    """Open a run's dense model, its layout being what the run's criterion makes of it.

    Args:
        config: the settings.
        run: a run folder; what it began in, it goes on in, wherever `dtype: auto` would choose another by now.

    Raises:
        ModelError: the model cannot be opened.
    """
    dtype = config.dtype if run is None or config.dtype != "auto" else run.dtype()
    dense = open_model(config.model, dtype=dtype, device=config.device)
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
    store = open_store(run)
    dense = open_dense(config, run)
    run.keep_layout(config.model, dense.weights_hash, dense.layout, dense.dtype)
    try:
        yield Evaluator(
            dense,
            texts,
            store,
            criterion=config.criterion.criterion,
            folder=run.prepared,
            kernels=config.kernels,
            recovery=config.recovery.recipe(config.seed),
            aim=aim_of(config, dense, Reporter(quiet=True)),
        )
    finally:
        store.close()


def refit(run: RunFolder, seed: int | None = None, out: Path | None = None) -> dict[str, Any]:
    """Fit a run's predictors anew on all its pairs on the search text and save them.

    Args:
        run: a run folder with measured pairs.
        seed: of folds and models; None takes the run's.
        out: where to save that of KL; None replaces the run's own, and that of perplexity as well.

    Returns:
        Its held-out quality and its learning curve.

    Raises:
        RunFolderError: nothing was measured yet.
        PredictorError: the pairs cannot carry a predictor; the old one stays.
    """
    predictor, known = _fitted(run, seed)
    pairs = known.pairs
    if out is None:
        save_predictors(run, run.search_space(), pairs, predictor, known.alone)
    else:
        predictor.save(out)
    return _told(predictor, [pair.architecture for pair in pairs], [pair.measurement.kl for pair in pairs])


def save_predictors(
    run: RunFolder,
    space: SearchSpace,
    pairs: Sequence[Pair],
    predictor: AccuracyPredictor,
    alone: Sequence[Pair] = (),
) -> None:
    """Save a run's predictor of KL, and one of perplexity on the same pairs, where they can carry it.

    Args:
        run: the run folder.
        space: whose layout the pairs are of.
        pairs: what the predictor was fitted on.
        predictor: that of KL.
        alone: sub-blocks measured alone, where they are not among the pairs.
    """
    predictor.save(run.predictor)
    write_json(run.held_out_file, predictor.held_out)
    if predictor.target.name is not None:  # the run aims at tasks, and measured no perplexity to choose by
        return
    # Without the dense model among the pairs, or where noise makes pruned models no worse, there is none.
    with suppress(PredictorError):
        protocol, seed, stream = predictor.protocol, predictor.seed, predictor.stream
        other = fit_pairs(space, pairs, protocol, seed, stream=stream, target="perplexity", alone=alone)
        other.save(run.predictor_of(other.target.title))


def fit_table(
    run: RunFolder, file: Path, value: str, target: Target, seed: int = 0, out: Path | None = None
) -> dict[str, Any]:
    """Fit a predictor on pairs of a run's model that were measured elsewhere, and save it.

    Args:
        run: a run folder, for the model's layout.
        file: CSV or Parquet, see `predictor.tables`.
        value: its column of what was measured.
        target: what that is.
        seed: of folds and models.
        out: where to save it; None takes `predictor-VALUE` in the run folder.

    Returns:
        Its held-out quality and its learning curve.

    Raises:
        PredictorError: the table is damaged or cannot carry a predictor; nothing is saved.
    """
    layout = run.layout()
    architectures, values = pairs_of_table(read_table(file), layout, value)
    protocol = f"{file.name}: {value}"
    predictor = AccuracyPredictor.fit(layout, architectures, values, target=target, protocol=protocol, seed=seed)
    predictor.save(out or run.predictor_of(value))
    return _told(predictor, architectures, values)


def _told(
    predictor: AccuracyPredictor, architectures: Sequence[Architecture], values: Sequence[float]
) -> dict[str, Any]:
    return {"quality": predictor.quality.to_dict(), **curve_record(predictor, architectures, values)}


def rewrite_report(run: RunFolder) -> Path:
    """Write a finished run's report.html anew from its artefacts and return it.

    Raises:
        RunFolderError: the run is not finished or is damaged.
        PredictorError: its pairs cannot carry a predictor.
    """
    best = run.best()
    predictor, known = _fitted(run, None) if best["quality"] else (None, _known(run))
    if predictor:
        write_json(run.held_out_file, predictor.held_out)
    return write_report(run.path, best, pair_rows(known.pairs, run.search_space(), predictor), run.accuracy())


def _fitted(run: RunFolder, seed: int | None) -> tuple[AccuracyPredictor, "_Known"]:
    known, space, config = _known(run), run.search_space(), run.config()
    name = LOSSES[config.tasks.signal] if config.tasks.ask else None
    seed = config.seed if seed is None else seed
    told = known.pairs, known.protocol, seed, known.slopes, known.stream
    return fit_pairs(space, *told, alone=known.alone, name=name), known


@dataclass(frozen=True, slots=True)
class _Known:
    """What a run measured on its search text.

    Args:
        protocol: fingerprint of its protocol.
        pairs: measured on all of it.
        alone: sub-blocks measured alone on its beginning, where they were.
        slopes: at some of the pairs.
        stream: how the dense model's residual stream moves on it.
    """

    protocol: str
    pairs: list[Pair]
    alone: list[Pair]
    slopes: list[Slopes]
    stream: ResidualStream | None


def _known(run: RunFolder) -> _Known:
    if not has_store(run):
        raise RunFolderError(
            f"A run must have measured pairs, but {str(run.path)!r} has none yet; go on with the command that began it."
        )
    store = open_store(run)
    try:
        splits = {key: protocol.split for key, protocol in store.protocols().items()}
        protocols = [key for key, split in splits.items() if split == "search"]
        if len(protocols) != 1:
            raise RunFolderError(
                f"A run must have pairs of one search protocol, but {str(run.path)!r} has {len(protocols)}; "
                "go on with the command that began it."
            )
        stream = store.stream(protocols[0])
        beginning = f"search:{run.config().prior_sequences}"
        alone = [pair for key, split in splits.items() if split == beginning for pair in store.pairs(key, ["prior"])]
        return _Known(
            protocols[0],
            store.pairs(protocols[0]),
            alone,
            store.slopes(protocols[0]),
            None if stream is None else stream_of(stream),
        )
    finally:
        store.close()
