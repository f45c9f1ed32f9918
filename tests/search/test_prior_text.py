"""Sub-blocks measured alone on the beginning of the search text make the prior of pairs measured on all of it."""

import json

import pytest

from evaluator import PairStore
from predictor import AccuracyPredictor
from search.another_budget import answer, config_of
from search.config import load_config
from search.folder import RunFolder
from search.job import Run
from search.objective import additive_prior
from search.progress import Reporter
from search.proposals import prior_architectures
from search.run import run_search
from search.session import refit, rewrite_report
from space import Architecture, cost_of
from tests.checking import checking_here
from tests.evaluator.pieces import make_evaluator


@pytest.fixture(scope="module")
def folder(small_config, tmp_path_factory):
    path = tmp_path_factory.mktemp("beginning") / "run"
    with checking_here():
        run_search(load_config(small_config, {"search.prior_sequences": None, "search.rounds": 1}), path)
    return RunFolder(path)


@pytest.fixture(scope="module")
def by_split(folder):
    store = PairStore(folder.measurements_file)
    found = {protocol.split: store.pairs(key) for key, protocol in store.protocols().items()}
    store.close()
    return found


def test_the_prior_is_of_the_beginning_and_all_else_of_the_whole(folder, by_split):
    assert {pair.origin for pair in by_split["search:1"]} == {"prior"}
    assert "prior" not in {pair.origin for pair in by_split["search"]}
    predictor = AccuracyPredictor.load(folder.predictor)
    assert predictor.prior == additive_prior(folder.config().search_space(folder.layout()), by_split["search:1"])
    assert predictor.quality.pairs > 20
    assert predictor.quality.kendall_tau > 0.3


def test_what_is_fitted_anew_is_what_the_run_fitted(folder):
    before = {path: AccuracyPredictor.load(path).quality for path in folder.predictors()}
    assert len(before) == 2  # of KL and of perplexity
    refit(folder)
    assert {path: AccuracyPredictor.load(path).quality for path in folder.predictors()} == before
    assert rewrite_report(folder).exists()


def test_it_answers_for_another_budget(folder):
    told = answer(folder, config_of(folder, {"budget": ["parameters=0.6"]}))
    found = cost_of(folder.layout(), Architecture.from_dict(told["architecture"]))
    assert found.parameters == told["cost"]["parameters"]
    assert told["predicted"]["kl"]["value"] > json.loads(folder.best_file.read_text())["measured"]["search"]["kl"]


@pytest.mark.parametrize(("settings", "split"), [({}, "search:1"), ({"text.shift": 1.0}, "search")])
def test_without_a_number_one_sequence_is_enough_unless_sequences_are_compared(
    pico, pico_folder, tmp_path, settings, split
):
    text = str(tmp_path / "mine.txt")  # given text, as far as the settings know
    values = {"model": str(pico_folder), "budget": "parameters=0.7", "text.source": text, **settings}
    config = load_config(None, values)
    space = config.search_space(pico.layout)
    judge = make_evaluator(pico, tmp_path)
    run = Run(config, RunFolder(tmp_path), Reporter(quiet=True), judge, space, {}, [], [], None)
    run.measure_alone(prior_architectures(space)[:3])
    assert run.alone_split == split
    assert [pair.architecture for pair in run.pairs] == ([] if split != "search" else prior_architectures(space)[:3])
    assert [pair.architecture for pair in run.alone[:3]] == prior_architectures(space)[:3]
