"""One run, top to bottom: a dense model and a budget in, a measured, searched, exported pruned model out.

    layout -> space -> baselines -> search by a strategy (ours: prior -> first pairs -> [ slopes -> fit -> refine
           -> plan -> measure ] x rounds) -> finalists on other text -> winner -> report on text never used -> export

Each stage takes the previous stage's value and leaves its artefact in the run folder. Nothing else is remembered: a
run that was killed is repeated from the start with every measurement it made found in the store, so it ends with the
pairs of an undisturbed run.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluator import (
    SELF,
    Agreement,
    DenseModel,
    Evaluator,
    Measurement,
    PairStore,
    SplitSizes,
    Texts,
    agreement_with_float32,
    text_to_write,
)
from evaluator import prepare_texts as make_texts
from predictor import AccuracyPredictor, Prediction
from search import selection
from search.another_budget import EARLIER
from search.baselines import fixed_allocations, scored_allocations
from search.config import RunConfig
from search.environment import describe_environment
from search.export.best import export_installed
from search.folder import RunFolder, write_json
from search.job import Run
from search.latency import final_timings, timed_model
from search.learned import learned_record
from search.objective import fit_pairs, predictor_score
from search.progress import Reporter
from search.proposals import evolve
from search.report import write_report
from search.results import best_record, pair_rows
from search.session import open_dense, save_predictors
from search.strategies import search_by
from space import Architecture, BudgetError, PredictorError, SearchSpace, SecateurError

# Shares of the cut at which the report shows what the predictor would choose under another budget.
_FRONTIER = (0.25, 0.5, 0.75, 1.25)
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
    started = time.perf_counter()
    with reporter.stage(f"Opening {config.model}", 1, "models") as advance:
        dense = open_dense(config)
        advance(1)
    if files.best_file.exists():
        files.keep_layout(config.model, dense.weights_hash, dense.layout)
        reporter.say(f"{files.path} is finished already; nothing to do")
        return files.best()
    with files.locked():
        space, fixed, texts = _begin(config, files, dense, reporter)
        agreement = _check_dtype(dense, texts, reporter)
        store = PairStore(files.measurements_file)
        started -= store.seconds_measured()  # by earlier processes: a run that was stopped took its time as well
        with reporter.stage("Calibrating", dense.layout.layers, "layers") as advance:
            judge = Evaluator(
                dense,
                texts,
                store,
                criterion=config.criterion.criterion,
                folder=files.prepared,
                progress=advance,
                kernels=config.kernels,
            )
        baselines = fixed | scored_allocations(space, judge.surgeon)
        run = Run(config, files, reporter, judge, space, baselines, [], [], agreement)
        reporter.say(f"{dense.layout.layers} layers, 10^{space.size_log10:.0f} architectures, budget {config.budget}")
        best = _search(run, started)
        store.close()
    return best


def _begin(
    config: RunConfig, files: RunFolder, dense: DenseModel, reporter: Reporter
) -> tuple[SearchSpace, dict[str, Architecture], Texts]:
    """Make or check the run folder, its space and its texts; a run that is refused leaves no folder behind."""
    fresh = not files.config_file.exists()
    files.prepare(config)
    try:
        files.keep_layout(config.model, dense.weights_hash, dense.layout)
        space = config.search_space(dense.layout, timed_model(config, files, dense, reporter))
        # A budget that baselines cannot meet is refused here.
        fixed = fixed_allocations(space, config.criterion.criterion.group)
        return space, fixed, _texts(config, files, dense, reporter)
    except SecateurError:
        if fresh:
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


def _texts(config: RunConfig, files: RunFolder, dense: DenseModel, reporter: Reporter) -> Texts:
    if files.texts_file.exists():
        return files.texts()
    text = config.text
    sizes = SplitSizes(text.calibrate, text.search, text.validate_, text.report_sequences, text.sequence_length)
    title = "Writing text" if text.source == SELF else "Reading text"
    written = text_to_write(text.source, sizes, text.report)
    with reporter.stage(title, written, "tokens") as advance:
        texts = make_texts(dense, text.source, sizes, config.seed, files.generated, text.report, advance)
    texts.save(files.texts_file)
    return texts


def _search(run: Run, started: float) -> dict[str, Any]:
    # What a run under another budget measured, where this one resumes it.
    run.pairs += run.evaluator.store.pairs(run.protocol, [EARLIER])
    run.measure("Measuring baselines", list(run.baselines.values()), "baseline")
    search_by(run)
    baselines = run.baselines | _best_random(run)
    champion = _final(run)
    if predictor := _fitted(run):
        _measure_frontier(run, predictor)
        predictor = run.fit()
        save_predictors(run.folder, run.space, run.pairs, predictor)
    everyone = {**baselines, "winner": champion}
    measured = {split: _measure_all(run, everyone, split) for split in ("search", "validate", "report")}
    best = best_record(
        run.config,
        run.evaluator,
        run.space,
        everyone,
        measured,
        _measure_plain(run, baselines),
        predictor,
        _unseen(run, champion, predictor) if predictor else None,
        run.rounds,
        learned_record(predictor, run.pairs, champion, run.refinement) if predictor else {},
        _timed(run, champion),
        time.perf_counter() - started,
        describe_environment(run.evaluator.dense, run.agreement),
    )
    export_installed(run.evaluator, best, run.folder.export)
    write_report(run.folder.path, best, pair_rows(run.pairs, run.space, predictor))
    # Last, since its presence says that the run is finished.
    write_json(run.folder.best_file, best)
    return best


def _timed(run: Run, winner: Architecture) -> dict[str, Any] | None:
    """Return what the winner and the dense model take for real, where a budget asked for it."""
    if run.space.latency is None or not run.config.limits_latency:
        return None
    return final_timings(run.evaluator, run.config, run.space.latency, winner, run.reporter)


def _fitted(run: Run) -> AccuracyPredictor | None:
    """Return a predictor of what was measured, or none where that is too little; a search by others needs none."""
    try:
        return run.fit()
    except PredictorError as error:
        run.reporter.say(f"This run has no predictor: {error}")
        return None


def _unseen(run: Run, winner: Architecture, predictor: AccuracyPredictor) -> Prediction:
    """Predict the winner by a predictor that knows neither its measurement nor slopes taken at it."""
    others = [pair for pair in run.pairs if pair.architecture != winner]
    slopes = [each for each in run.slopes if each.architecture != winner]
    try:
        told = fit_pairs(run.space, others, run.protocol, run.config.seed, slopes, predictor.stream)
        return told.predict([winner])
    except PredictorError:  # without that one they are too few
        return predictor.predict([winner])


def _best_random(run: Run) -> dict[str, Architecture]:
    random = [pair for pair in run.pairs if pair.origin == "random"]
    best = selection.lowest(random, run.space, 1)
    return {"best_random": best[0]} if best else {}


def _final(run: Run) -> Architecture:
    """Return the winner: of the finalists and their means, by KL on text that no search has seen."""
    chosen = selection.finalists(run.elsewhere().expect(run.pairs), run.space, run.config.search.finalists)
    measured = run.measure("Measuring finalists on new text", chosen, "searched", "validate")
    origins = {pair.architecture: pair.origin for pair in run.pairs}
    measured = [replace(pair, origin=origins[pair.architecture]) for pair in measured]
    means = selection.consensus(measured, run.space, [run.config.seed, 5])
    run.measure("Measuring means of the best finalists", means, "averaged")
    again = run.measure("Measuring means of the best finalists on new text", means, "averaged", "validate")
    known = {pair.architecture for pair in measured}
    measured += [pair for pair in again if pair.architecture not in known]
    return selection.winner(measured, run.space, run.config.text.assumed_shift)


def _measure_all(run: Run, everyone: dict[str, Architecture], split: str) -> dict[str, Measurement]:
    pairs = run.measure(f"Measuring on the {split} text", list(everyone.values()), "baseline", split)
    return {name: pair.measurement for name, pair in zip(everyone, pairs, strict=True)}


def _measure_plain(run: Run, baselines: Mapping[str, Architecture]) -> dict[str, tuple[Architecture, Measurement]]:
    """Measure what people have who only slice: the uniform baselines without the criterion's update."""
    criterion = run.config.criterion.criterion
    names = [name for name in ("uniform", "uniform_whole_ends") if name in baselines]
    if criterion.update == "none" or all(
        layer.kv_groups == run.space.layout.kv_groups and layer.mlp_width == run.space.layout.mlp_width
        for name in names
        for layer in baselines[name].layers
    ):
        return {}
    with run.evaluator.pruning_by(replace(criterion, update="none")):
        title = "Measuring baselines without the update"
        pairs = run.measure(title, [baselines[name] for name in names], "baseline", "report")
    return {f"{name}_no_update": (pair.architecture, pair.measurement) for name, pair in zip(names, pairs, strict=True)}


def _measure_frontier(run: Run, predictor: AccuracyPredictor) -> None:
    """Measure the predictor's choice under a few other budgets, so that the report can show what more or less costs."""
    chosen = []
    for share in _FRONTIER:
        budgets = [
            replace(budget, amount=1 - share * (1 - budget.amount)) for budget in run.space.budgets if budget.amount < 1
        ]
        try:
            if len(budgets) < len(run.space.budgets):
                return  # absolute budgets have no scale
            other = replace(run.space, budgets=tuple(budgets))
        except BudgetError:
            continue
        rng = np.random.default_rng([run.config.seed, 3])
        best = evolve(other, predictor_score(other, predictor, run.elsewhere()), rng, generations=30)
        chosen += other.decode(best[:1])
    run.measure("Measuring other budgets", chosen, "frontier")
