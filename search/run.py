"""One run, top to bottom: a dense model and a budget in, a measured, searched, exported pruned model out.

    layout -> space -> baselines -> search by a strategy (ours: prior -> first pairs -> [ slopes -> fit -> refine
           -> plan -> measure ] x rounds) -> finalists on other text -> winner -> report on text never used -> export

Each stage takes the previous stage's value and leaves its artefact in the run folder. Nothing else is remembered: a
run that was killed is repeated from the start with every measurement it made found in the store, so it ends with the
pairs of an undisturbed run.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evaluator import Agreement, DenseModel, Engine, Evaluator, PairStore, Texts, agreement_with_float32
from evaluator.harness.items import Aim
from predictor import AccuracyPredictor, Prediction
from search.accuracy import evaluate
from search.accuracy_settings import settings_of
from search.aim import aim_of
from search.baselines import fixed_allocations, scored_allocations
from search.config import RunConfig
from search.database import check_database, forget_schema, open_store
from search.engine import open_engine
from search.environment import describe_environment
from search.export.best import export_installed
from search.find import Found, find
from search.folder import RunFolder, write_json
from search.job import Run
from search.latency import final_timings, timed_model
from search.learned import learned_record
from search.progress import Reporter
from search.report import write_report
from search.results import best_record, pair_rows
from search.session import open_dense, rewrite_report, save_predictors
from search.texts import texts_of
from space import Architecture, PredictorError, SearchSpace, SecateurError

_AGREEMENT_SEQUENCES = 2  # of calibration text, on which a reduced number format is compared with float32


def run_search(config: RunConfig, folder: str | Path, reporter: Reporter | None = None) -> dict[str, Any]:
    """Search the best pruned model within the budgets, measure it, report it and export it.

    Args:
        config: the settings.
        folder: run folder; a run found there goes on.
        reporter: tells a person about the progress; None is quiet.

    Returns:
        The content of best.json.

    Raises:
        SecateurError: settings, model, text or folder do not allow the run; earlier results are untouched.
    """
    reporter = reporter or Reporter(quiet=True)
    files = RunFolder(Path(folder))
    files.check(config)
    check_database(config)
    started = time.perf_counter()
    with reporter.stage(f"Opening {config.model}", 1, "models") as advance:
        dense = open_dense(config, files)
        advance(1)
    if files.best_file.exists():
        files.keep_layout(config.model, dense.weights_hash, dense.layout, dense.dtype)
        reporter.say(f"{files.path} is finished already; nothing to do")
        _ask(config, files, reporter)
        return files.best()
    with open_engine(config) as engine, files.locked():
        aim = aim_of(config, dense, reporter)
        space, texts = _begin(config, files, dense, reporter, aim)
        agreement = _check_dtype(dense, texts, reporter)
        store = open_store(files)
        started -= store.seconds_measured()  # by earlier processes: a run that was stopped took its time as well
        run = at_work(config, files, reporter, dense, texts, store, space, agreement, aim, engine)
        reporter.say(f"{dense.layout.layers} layers, 10^{space.size_log10:.0f} architectures, budget {config.budget}")
        best = _write(run, find(run), started)
        store.close()
        if engine is not None:
            engine.forget()
    _ask(config, files, reporter)
    return best


def at_work(
    config: RunConfig,
    files: RunFolder,
    reporter: Reporter,
    dense: DenseModel,
    texts: Texts,
    store: PairStore,
    space: SearchSpace,
    agreement: Agreement | None,
    aim: Callable[[], Aim] | None,
    engine: Engine | None = None,
) -> Run:
    """Calibrate, or take what is calibrated, and return the run that has measured nothing yet."""
    with reporter.stage("Calibrating", dense.layout.layers, "layers") as advance:
        judge = Evaluator(
            dense,
            texts,
            store,
            criterion=config.criterion.criterion,
            folder=files.prepared,
            progress=advance,
            kernels=config.kernels,
            recovery=config.recovery.recipe(config.seed),
            aim=aim,
            engine=engine,
        )
    baselines = fixed_allocations(space, config.criterion.criterion.group) | scored_allocations(space, judge.surgeon)
    return Run(config, files, reporter, judge, space, baselines, [], [], agreement)


def _begin(
    config: RunConfig,
    files: RunFolder,
    dense: DenseModel,
    reporter: Reporter,
    aim: Callable[[], Aim] | None,
) -> tuple[SearchSpace, Texts]:
    """Make or check the run folder, its space and its texts; a run that is refused leaves no folder behind."""
    fresh = not files.config_file.exists()
    files.prepare(config)
    try:
        files.keep_layout(config.model, dense.weights_hash, dense.layout, dense.dtype)
        space = config.search_space(dense.layout, timed_model(config, files, dense, reporter))
        # A budget that baselines cannot meet is refused here, and so are costs that cannot be traded.
        fixed_allocations(space, config.criterion.criterion.group)
        fixed_allocations(config.ladder(space).corners()[-1], config.criterion.criterion.group)
        if aim is not None:
            aim()  # refused here, where a task cannot be had
        return space, texts_of(config, files, dense, reporter)
    except SecateurError:
        if fresh:
            forget_schema(files)
            files.discard()
        raise


def _check_dtype(dense: DenseModel, texts: Texts, reporter: Reporter) -> Agreement | None:
    agreement = agreement_with_float32(dense, texts.tokens["calibrate"][:_AGREEMENT_SEQUENCES])
    if agreement and not agreement.good:
        reporter.say(
            f"In {dense.dtype} the dense model is {agreement.kl:.3f} nats a token from itself in float32, which is "
            "much to tell architectures apart by; dtype: float32 measures without"
        )
    return agreement


def _write(run: Run, found: Found, started: float) -> dict[str, Any]:
    """Write what was found into the run folder, export the winner, and return the content of best.json."""
    predictor = found.predictor
    if predictor:
        save_predictors(run.folder, run.space, run.pairs, predictor, run.alone_elsewhere)
    best = best_record(
        run.config,
        run.evaluator,
        run.space,
        found.everyone,
        found.measured,
        found.plain,
        predictor,
        _unseen(run, found.winner, predictor) if predictor else None,
        run.rounds,
        learned_record(predictor, run.pairs, found.winner, run.refinement) if predictor else {},
        found.pareto,
        found.mixes,
        _timed(run, found.winner),
        time.perf_counter() - started,
        describe_environment(run.evaluator.dense, run.agreement),
    )
    export_installed(run.evaluator, best, run.config, run.folder.export)
    write_report(run.folder.path, best, pair_rows(run.pairs, run.space, predictor))
    # Last, since its presence says that the run is finished.
    write_json(run.folder.best_file, best)
    return best


def _ask(config: RunConfig, files: RunFolder, reporter: Reporter) -> None:
    """Compare a finished run's models in the tasks that it aimed at, on items that its search has not seen."""
    if config.tasks.ask and (settings := settings_of(config)).title not in files.accuracy():
        evaluate([files.path], settings, reporter=reporter)
        rewrite_report(files)


def _timed(run: Run, winner: Architecture) -> dict[str, Any] | None:
    """Return what the winner and the dense model take for real, where a budget asked for it."""
    if run.space.latency is None or not run.config.needs_latency:
        return None
    return final_timings(run.evaluator, run.config, run.space.latency, winner, run.reporter)


def _unseen(run: Run, winner: Architecture, predictor: AccuracyPredictor) -> Prediction:
    """Predict the winner by a predictor that knows neither its measurement nor slopes taken at it."""
    others = [pair for pair in run.pairs if pair.architecture != winner]
    slopes = [each for each in run.slopes if each.architecture != winner]
    try:
        return run.fit_on(others, slopes).predict([winner])
    except PredictorError:  # without that one they are too few
        return predictor.predict([winner])
