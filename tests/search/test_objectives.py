"""Searches with several objectives: a true Pareto set, the same after a kill, and a winner by the rule stated."""

import json

import numpy as np
import optuna
import pytest

from evaluator import PairStore, open_model
from search.another_budget import config_of
from search.commands.searching import folder_name
from search.comparison import notes
from search.config import load_config
from search.export.best import FORMATS, export_best
from search.export.card import card_of
from search.folder import RunFolder
from search.job import Run
from search.pareto import hypervolume, non_dominated
from search.pareto_set import ParetoSet
from search.progress import Reporter
from search.rules import Rule, chosen
from search.run import run_search
from search.set_figure import set_drawing
from search.strategies import STRATEGIES
from search.study import STUDY
from space import Architecture, SettingError, cost_of
from tests.checking import checking_here
from tests.conftest import SMALL_RUN
from tests.evaluator.pieces import make_evaluator

PARTS = ("model", "in_memory", "target", "record")  # of what an exporter is given
AGAINST = ["weight_bytes", "kv_cache_bytes_per_token"]
QUICK = {"slopes": False, "guided_pairs": 1, "random_pairs": 13, "profile_pairs": 10}
TOKENS = 124  # of the search text: 4 sequences of 31 predicted tokens


@pytest.fixture
def work(pico_folder, tmp_path):
    """Return what makes a run at work in a folder of its own."""

    def make(name, **settings):
        small = {f"search.{name}": value for name, value in {**SMALL_RUN["search"], **QUICK}.items()}
        values = {"model": str(pico_folder), "budget": "parameters=0.8", "search.against": AGAINST[:1]}
        config = load_config(None, {**small, **values, **settings})
        pico = open_model(str(pico_folder), dtype="float32")
        judge = make_evaluator(pico, tmp_path / name)
        space = config.search_space(pico.layout)
        return Run(config, RunFolder(tmp_path / name), Reporter(quiet=True), judge, space, {}, [], [], None)

    return make


def whole(run):
    return [pair for pair in run.pairs if pair.origin not in ("prior", "baseline")]


def test_a_search_ends_with_the_pareto_set_of_its_study_killed_or_not(work, monkeypatch):
    undisturbed = work("undisturbed")
    STRATEGIES["predictor"](undisturbed, np.inf)
    found = ParetoSet.of(undisturbed.ladder, undisturbed.pairs, undisturbed.reference())
    study = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{undisturbed.folder.study_file}")
    assert study.metric_names == ["measured KL", "weight_bytes, share of dense"]
    best = {trial.user_attrs["fingerprint"] for trial in study.best_trials}
    assert best == {each.fingerprint for each in found.architectures}
    assert len(best) >= 4
    assert all(undisturbed.space.allows(each) for each in found.architectures)
    # Every round adds to it, and its members lie all over the range.
    reached = [each["hypervolume"] for each in undisturbed.rounds]
    assert reached == sorted(reached)
    assert reached[-1] == found.hypervolume
    first = [tuple(trial.values) for trial in study.trials if trial.user_attrs["round"] == 0]
    assert hypervolume(first, undisturbed.reference()) < reached[0]
    shares = found.values[:, 1]
    assert np.ptp(shares) > 0.7 * float(undisturbed.ladder.top[0] - undisturbed.ladder.floor[0])

    killed = work("killed")
    score = killed.score

    def limited(*asked):
        if len(whole(killed)) >= len(whole(undisturbed)) - 3:  # in the last round
            raise KeyboardInterrupt
        return score(*asked)

    monkeypatch.setattr(killed, "score", limited)
    with pytest.raises(KeyboardInterrupt):
        STRATEGIES["predictor"](killed, np.inf)
    again = work("killed")
    STRATEGIES["predictor"](again, np.inf)
    assert [(p.architecture, p.origin) for p in again.pairs] == [(p.architecture, p.origin) for p in undisturbed.pairs]
    assert again.rounds == undisturbed.rounds


@pytest.mark.parametrize("name", ["random", "additive", "tpe", "nsga2"])
def test_other_strategies_cover_the_range_within_the_budgets(work, name):
    run = work(name, **{"search.against": AGAINST, "search.down_to": 0.5})
    STRATEGIES[name](run, 60 * TOKENS)
    tried = whole(run)
    assert all(run.space.allows(pair.architecture) for pair in tried)
    shares = run.ladder.shares([pair.architecture for pair in tried])
    assert (shares.min(axis=0) <= run.ladder.floor).all()
    assert (shares.max(axis=0) > (run.ladder.floor + run.ladder.top) / 2).all()


@pytest.fixture(scope="module")
def finished(small_config, tmp_path_factory):
    """A run by random search against two costs, whose winner is the knee."""
    folder = tmp_path_factory.mktemp("objectives") / "run"
    settings = {"search.strategy": "random", "search.tokens": 4_500, "search.finalists": 6, "search.winner": "knee"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search.run.export_installed", lambda *_: None)  # other runs are exported
        with checking_here():
            return folder, run_search(load_config(small_config, {"search.against": AGAINST, **settings}), folder)


def test_the_set_told_is_that_on_the_validation_text(finished):
    folder, best = finished
    config, layout = RunFolder(folder).config(), RunFolder(folder).layout()
    space, told = config.search_space(layout), best["pareto"]
    members = [Architecture.from_dict(each["architecture"]) for each in told["members"]]
    assert len({each.fingerprint for each in members}) == len(members) >= 3
    assert all(space.allows(each) for each in members)
    ladder = config.ladder(space)
    shares = [list(each["shares"].values()) for each in told["members"]]
    assert np.allclose(shares, ladder.shares(members))
    assert shares == sorted(shares)
    store = PairStore(folder / "measurements.db")
    validated = store.pairs(best["measured"]["validate"]["protocol"])
    store.close()
    inside = [pair for pair in validated if space.allows(pair.architecture)]
    values = np.column_stack(
        [[pair.measurement.kl for pair in inside], ladder.shares([pair.architecture for pair in inside])]
    )
    free = {inside[i].architecture for i in np.flatnonzero(non_dominated(values))}
    assert set(members) <= free
    point = list(told["reference"]["validate"].values())
    assert list(told["reference"]["validate"]) == ["kl", *AGAINST]
    mine = [[each["measured"]["validate"]["kl"], *own] for each, own in zip(told["members"], shares, strict=True)]
    assert told["hypervolume"]["validate"] == pytest.approx(hypervolume(mine, point))
    assert told["hypervolume"]["search"] > 0
    assert {each["cost"]["weight_bytes"] for each in told["members"]} == {
        cost_of(layout, each).weight_bytes for each in members
    }
    # The rule is kept, and why is said everywhere.
    assert told["rule"] == "knee"
    winner = told["members"][chosen(Rule("knee"), mine)]
    assert winner["fingerprint"] == best["fingerprint"]
    assert winner["measured"]["validate"] == best["measured"]["validate"]
    assert told["because"].startswith(f"It is the knee of the {len(members)} members of the Pareto set")
    assert f"Why this one won (knee): {told['because']}" in list(notes(best))


def test_a_cheaper_winner_is_compared_with_baselines_of_its_costs(finished):
    _, best = finished
    assert {"dense", "uniform", "best_random"} <= set(best["baselines"])
    for name, baseline in best["baselines"].items():
        if name != "dense":
            assert all(baseline["cost"][metric] <= best["cost"][metric] * (1 + 1e-9) for metric in AGAINST), name


def test_the_report_shows_the_set(finished):
    folder, best = finished
    page = (folder / "report.html").read_text()
    assert 'data-figure="set-data"' in page
    assert "--member ARCHITECTURE" in page
    assert all(f"<code>{each['fingerprint']}</code>" in page for each in best["pareto"]["members"])
    drawing = set_drawing(best, [])
    assert [axis.title.text for axis in drawing.figure.select_xaxes()] == [
        "weight bytes, share of dense",
        "KV cache bytes per token, share of dense",
    ]
    shown = [trace for trace in drawing.figure.data if trace.name == "Pareto set, on the validation text"]
    kl = [each["measured"]["validate"]["kl"] for each in best["pareto"]["members"]]
    assert [list(trace.y) for trace in shown] == [kl, kl]
    [first, _] = [trace for trace in drawing.figure.data if trace.name == "winner by knee"]
    assert (first.x[0], first.y[0]) in [(x, y) for x, y in zip(shown[0].x, shown[0].y, strict=True)]
    assert set_drawing({**best, "pareto": None}, []) is None


def test_another_member_is_exported_by_its_fingerprint(finished, monkeypatch):
    folder, best = finished
    written = {}
    monkeypatch.setitem(FORMATS, "huggingface", lambda *told: written.update(zip(PARTS, told, strict=True)))
    other = next(each for each in best["pareto"]["members"] if each["fingerprint"] != best["fingerprint"])
    target = export_best(folder, member=other["fingerprint"])
    assert target == folder / f"export-{other['fingerprint']}"
    assert written["record"]["architecture"] == other["architecture"]
    kept = Architecture.from_dict(other["architecture"]).layers
    widths = [each["mlp_width"] for each in written["model"].config.pruning["layers"]]
    assert widths == [each.mlp_width for each in kept]
    assert written["target"] == target
    assert written["record"]["cost"] == other["cost"]
    card = card_of(written["record"])
    assert f"{other['measured']['validate']['perplexity']:.2f}" in card
    assert best["texts"]["validate"] in card
    with pytest.raises(SettingError, match=f"but 'abc' is none: its members are .*{other['fingerprint']}"):
        export_best(folder, member="abc")


def test_a_run_without_costs_has_no_set(finished_run):
    assert json.loads((finished_run / "best.json").read_text())["pareto"] is None
    with pytest.raises(SettingError, match="the run has none; search with --against"):
        export_best(finished_run, member="abc")
    # What it measured serves a search against costs under the same budget.
    told = config_of(RunFolder(finished_run), {"search.against": AGAINST[:1]})
    assert told.search.against == ("weight_bytes",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"against": ["bytes"]}, "bytes is no metric of a budget; the metrics are parameters, .*weight_bytes"),
        ({"against": ["weight_bytes"] * 2}, "a metric counts once"),
        ({"winner": "knee"}, "winner and down_to need costs to weigh the loss against; give search.against"),
        ({"winner": "cheapest=5%"}, "give search.against"),
        ({"down_to": 0.5}, "give search.against"),
        ({"against": AGAINST, "winner": "best"}, "must be lowest_kl, knee or cheapest=SHARE"),
        ({"against": AGAINST, "down_to": 1.0}, "less than 1"),
        ({"against": "weight_bytes", "strategy": "evolution"}, "evolution improves one architecture under one budget"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    given = {f"search.{name}": value for name, value in settings.items()}
    with pytest.raises(SettingError, match=message):
        load_config(None, {"model": "pico", "budget": "parameters=0.8", **given})


def test_a_run_against_costs_has_a_folder_of_its_own():
    values = {"model": "models/pico.gguf", "budget": "parameters=0.8"}
    assert folder_name(load_config(None, values)) == "pico-parameters-0.8"
    config = load_config(None, {**values, "search.against": AGAINST[:1]})
    assert folder_name(config) == "pico-parameters-0.8-against-weight_bytes"


def test_a_floor_that_nothing_reaches_is_refused_before_a_folder_is_made(small_config, tmp_path):
    config = load_config(small_config, {"search.against": ["weight_bytes"], "search.down_to": 0.01})
    with pytest.raises(SettingError, match=r"search\.down_to must lie between the smallest weight_bytes"):
        run_search(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
