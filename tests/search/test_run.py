"""The whole way on a real, small model: from its weights to an export, once and again."""

import json
import shutil
import sqlite3

import optuna
import pytest
import yaml

from evaluator import SPLITS, Evaluator, PairStore, load_texts
from predictor import AccuracyPredictor
from search.config import load_config
from search.folder import RunFolder
from search.objective import Elsewhere, fit_pairs
from search.run import run_search
from space import Architecture, cost_of

CONTRACT = (
    "config.yaml",
    "layout.json",
    "measurements.db",
    "predictor/predictor.json",
    "predictor/predictor.safetensors",
    "study.db",
    "best.json",
    "report.html",
    "export/config.json",
    "export/model.safetensors",
    "export/tokenizer.json",
    "export/README.md",
)


def pairs_of(folder):
    """Return what a run measured, without times."""
    with sqlite3.connect(folder / "measurements.db") as connection:
        return connection.execute("SELECT fingerprint, protocol, kl, nll, origin FROM pairs ORDER BY id").fetchall()


@pytest.fixture(scope="module")
def best(finished_folder):
    return json.loads((finished_folder / "best.json").read_text())


@pytest.fixture(scope="module")
def space(finished_folder):
    folder = RunFolder(finished_folder)
    return folder.config().search_space(folder.layout())


@pytest.mark.parametrize("name", CONTRACT)
def test_every_artefact_of_the_contract_is_there(name, finished_folder):
    assert (finished_folder / name).stat().st_size > 0


def test_nothing_half_written_is_left(finished_folder):
    found = [path.name for path in finished_folder.rglob("*") if "partial" in path.name or path.name.endswith(".old")]
    assert found == []


def test_best_json_has_its_papers(best):
    assert {"architecture", "cost", "predicted", "measured", "baselines", "environment", "seed", "texts"} <= set(best)
    told = best["predicted"]
    assert told["lower"] < told["value"] < told["upper"]
    assert told["protocol"] == best["measured"]["search"]["protocol"]
    assert told["standard_error"] > 0 < told["tokens"]
    assert {"dense", "uniform", "best_random"} <= set(best["baselines"])
    protocols = set()
    baselines = dict(best["baselines"])
    plain = {name: baselines.pop(name) for name in list(baselines) if name.endswith("_no_update")}
    for model in (best, *baselines.values()):
        assert set(model["measured"]) == {"search", "validate", "report"}
        for measured in model["measured"].values():
            assert measured["perplexity"] > 1
            assert measured["perplexity_standard_error"] > 0 < measured["tokens"]
            protocols.add(measured["protocol"])
    assert len(protocols) == 3  # one a split, the same for all models
    assert set(plain) == {"uniform_no_update", "uniform_whole_ends_no_update"}
    for name, model in plain.items():
        updated = baselines[name.removesuffix("_no_update")]
        assert model["architecture"] == updated["architecture"]
        assert model["measured"]["report"]["protocol"] not in protocols
        assert model["measured"]["report"]["kl"] > updated["measured"]["report"]["kl"]
    environment = best["environment"]
    assert environment["dtype"] == "float32"
    assert all(environment[name] for name in ("python", "torch", "transformers", "optuna", "threads"))


def test_the_winner_is_within_the_budget(best, space):
    winner = Architecture.from_dict(best["architecture"])
    assert space.allows(winner)
    assert best["cost"] == cost_of(space.layout, winner).to_dict()
    assert best["cost"]["parameters"] <= 0.7 * best["dense_cost"]["parameters"]
    assert best["fingerprint"] == winner.fingerprint


def test_the_search_is_at_least_as_good_as_random_sampling(best, finished_folder, space):
    store = PairStore(finished_folder / "measurements.db")
    pairs = store.pairs(best["predicted"]["protocol"])
    store.close()
    random = [pair.measurement.kl for pair in pairs if pair.origin == "random"]
    searched = [pair.measurement.kl for pair in pairs if pair.origin == "searched"]
    assert len(random) == 10
    assert len(searched) >= 2
    lowest = min(pair.measurement.kl for pair in pairs if space.allows(pair.architecture))
    assert min(random) >= lowest
    assert best["baselines"]["best_random"]["measured"]["search"]["kl"] == pytest.approx(min(random))
    assert best["measured"]["search"]["kl"] < min(random)


def test_the_winner_is_the_finalist_of_lowest_kl_to_expect_elsewhere(best, finished_folder, space):
    store = PairStore(finished_folder / "measurements.db")
    searched = store.pairs(best["predicted"]["protocol"])
    validated = store.pairs(best["measured"]["validate"]["protocol"], ["searched", "averaged"])
    store.close()
    assert [pair.origin for pair in validated].count("searched") == 3
    alone = [pair for pair in searched if pair.origin == "prior"]
    elsewhere = Elsewhere.from_pairs(space, alone, sequences=4, shift=0.0)
    expected = {pair.architecture.fingerprint: pair.measurement.kl for pair in elsewhere.expect(validated)}
    assert best["fingerprint"] == min(expected, key=lambda fingerprint: expected[fingerprint])
    factors = elsewhere.factor(space.genes(space.encode([pair.architecture for pair in validated])))
    assert (factors != 1).all()
    assert elsewhere.factor(space.genes(space.encode([Architecture.dense(space.layout)]))) == [1.0]


def test_the_dense_model_diverges_from_nothing(best):
    dense = best["baselines"]["dense"]["measured"]["report"]
    assert dense["kl"] < 1e-5
    assert dense["agreement"] == 1
    assert best["baselines"]["dense"]["cost"] == best["dense_cost"]


def test_no_text_of_one_split_is_in_another(finished_folder):
    texts = load_texts(finished_folder / "texts.safetensors")
    rows = [{tuple(row) for row in texts.tokens[split].tolist()} for split in SPLITS]
    assert [len(own) for own in rows] == [8, 4, 4, 6]
    assert len(set.union(*rows)) == 22


def test_optuna_opens_the_study(finished_folder, space):
    storage = f"sqlite:///{finished_folder / 'study.db'}"
    assert optuna.get_all_study_names(storage) == ["search"]
    study = optuna.load_study(study_name="search", storage=storage)
    assert {trial.user_attrs["round"] for trial in study.trials} == {0, 1, 2}
    assert len(study.best_params) == space.columns
    measured = {(fingerprint, kl) for fingerprint, _, kl, *_ in pairs_of(finished_folder)}
    assert {(trial.user_attrs["fingerprint"], trial.value) for trial in study.trials} <= measured


def test_the_winner_is_predicted_by_a_predictor_that_never_saw_it(finished_folder, best, space):
    predictor = AccuracyPredictor.load(finished_folder / "predictor")
    store = PairStore(finished_folder / "measurements.db")
    pairs, slopes = store.pairs(predictor.protocol), store.slopes(predictor.protocol)
    store.close()
    assert slopes
    winner = Architecture.from_dict(best["architecture"])
    others = [pair for pair in pairs if pair.architecture != winner]
    elsewhere = [each for each in slopes if each.architecture != winner]
    told = fit_pairs(space, others, predictor.protocol, predictor.seed, elsewhere, predictor.stream).predict([winner])
    assert best["predicted"]["value"] == pytest.approx(float(told.value[0]))
    assert best["predicted"]["lower"] == pytest.approx(float(told.lower[0]))
    again = fit_pairs(space, pairs, predictor.protocol, predictor.seed, slopes, predictor.stream)
    assert predictor.predict([winner]).value == again.predict([winner]).value


def test_running_again_changes_and_measures_nothing(finished_run, monkeypatch):
    before = {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}
    monkeypatch.setattr(Evaluator, "_measure", never)
    best = run_search(RunFolder(finished_run).config(), finished_run)
    assert best == json.loads((finished_run / "best.json").read_text())
    assert {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()} == before


def never(*_):
    raise AssertionError("measured again")


@pytest.mark.usefixtures("checked_here")
def test_a_run_without_its_last_file_is_finished_from_its_pairs(finished_run, best, monkeypatch):
    pairs = pairs_of(finished_run)
    for name in ("best.json", "report.html", "study.db"):
        (finished_run / name).unlink()
    shutil.rmtree(finished_run / "prepared")
    monkeypatch.setattr(Evaluator, "_measure", never)
    monkeypatch.setattr(PairStore, "seconds_measured", lambda _: 1000.0)
    again = run_search(RunFolder(finished_run).config(), finished_run)
    assert pairs_of(finished_run) == pairs
    assert again["wall_seconds"] >= 1000  # this process measured nothing, the run did
    unlike = {"wall_seconds", "environment"}
    assert {key: again[key] for key in again if key not in unlike} == {
        key: best[key] for key in best if key not in unlike
    }


def test_the_saved_settings_are_those_given(finished_folder, small_config):
    given, saved = (yaml.safe_load(path.read_text()) for path in (small_config, finished_folder / "config.yaml"))
    assert saved["search"] == given["search"]
    assert saved["text"].items() >= given["text"].items()
    assert RunFolder(finished_folder).config() == load_config(small_config, {})
