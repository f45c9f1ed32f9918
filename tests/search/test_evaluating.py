"""`secateur evaluate`, and runs that aim at tasks."""

import json
import time

import pytest

pytest.importorskip("lm_eval", reason="needs the package `lm-eval`: pip install 'secateur[accuracy]'")

from evaluator.harness import evaluation
from search.accuracy import evaluate
from search.accuracy_figure import accuracy_drawing, accuracy_notes
from search.accuracy_settings import AccuracySettings
from search.config import load_config
from search.folder import RunFolder, write_json
from search.run import run_search
from space import SettingError
from tests.search.command import call, fingerprints, refusal, start

pytestmark = pytest.mark.usefixtures("checked_here")


@pytest.fixture(scope="module")
def tasks(data):
    return data / "tasks"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What was answered in one test is not known in the next."""
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))


def test_a_run_is_compared_side_by_side_and_its_report_says_so(finished_run, tasks, capsys):
    assert call("evaluate", finished_run, "--limit", 12, "--task-data", tasks, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["models"]) == ["dense", "uniform", "winner"]
    assert found["compared"] == "winner"
    assert found["tasks"] == ["arc_easy", "piqa", "openbookqa", "winogrande", "boolq", "copa"]
    dense, winner = found["models"]["dense"], found["models"]["winner"]
    assert winner["less"] is None
    for name in ("dense", "uniform"):
        model = found["models"][name]
        for place, less in enumerate(model["less"]["tasks"]):
            value = model["scores"][place]["accuracy"] - winner["scores"][place]["accuracy"]
            assert less["value"] == pytest.approx(value)
        assert model["less"]["mean"]["value"] == pytest.approx(model["mean"]["value"] - winner["mean"]["value"])
    assert dense["flips"] is None
    flips = {name: found["models"][name]["flips"]["value"] for name in ("uniform", "winner")}
    lost = dense["mean"]["value"] - winner["mean"]["value"]
    assert abs(lost) <= flips["winner"] <= 1  # each point that is lost is a flip
    assert all(score["items"] == 12 and score["seed"] == 0 for score in dense["scores"])
    assert len({model["weights_hash"] for model in found["models"].values()}) == 3
    page = (finished_run / "report.html").read_text()
    assert page.count("commonsense; at most 12 items of a task, seed 0") == 1
    assert "mean of tasks" in page
    assert f"against dense, mean of tasks: uniform {100 * flips['uniform']:.1f} ±" in page
    assert f"winner {100 * flips['winner']:.1f} ±" in page
    assert call("evaluate", finished_run, "--task", "copa", "--task-data", tasks) == 0
    assert "copa, 100 items" in capsys.readouterr().out
    assert len(RunFolder(finished_run).accuracy()) == 2
    assert call("report", finished_run) == 0
    assert capsys.readouterr().out.count("mean of tasks") == 1
    assert "Accuracy: copa" in (finished_run / "report.html").read_text()


def test_an_export_is_compared_with_what_it_was_made_of_and_answers_as_it_did_in_memory(
    finished_run, stories, tasks, capsys, monkeypatch
):
    assert call("evaluate", finished_run, "--task", "piqa", "--limit", 20, "--task-data", tasks, "--json") == 0
    before = json.loads(capsys.readouterr().out)["models"]
    # Both are known by their weights, wherever they lie.
    monkeypatch.setattr(evaluation, "_ask", lambda *_: pytest.fail("asked again"))
    export = finished_run / "export"
    assert call("evaluate", export, "--task", "piqa", "--limit", 20, "--task-data", tasks, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["models"]) == [str(stories), str(export)]
    assert found["models"][str(export)]["weights_hash"] == before["winner"]["weights_hash"]
    assert found["models"][str(export)]["scores"] == before["winner"]["scores"]


def test_an_architecture_that_nobody_chose_is_asked_too(finished_run, tasks, tmp_path, capsys):
    best = RunFolder(finished_run).best()
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(best["baselines"]["global_threshold"]["architecture"]))
    arguments = ("--task", "copa", "--limit", 10, "--task-data", tasks, "--architecture", file, "--json")
    assert call("evaluate", finished_run, *arguments) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert best["baselines"]["global_threshold"]["fingerprint"] in models


def test_what_is_killed_goes_on(stories, tasks, tmp_path, capsys):
    arguments = ("evaluate", stories, "--preset", "commonsense", "--limit", 30, "--task-data", tasks, "--json")
    process = start(*arguments)
    answered = tmp_path / "cache" / "answers"
    while process.poll() is None and len(list(answered.glob("*/*.json"))) < 2:
        time.sleep(0.02)
    process.kill()
    process.wait()
    kept = fingerprints(answered)
    assert 2 <= len([name for name in kept if not name.endswith(".partial")]) < 6
    assert call(*arguments) == 0
    assert len(json.loads(capsys.readouterr().out)["models"][str(stories)]["scores"]) == 6
    assert {name: digest for name, digest in fingerprints(answered).items() if name in kept} == kept


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--preset", "easy"), "preset (commonsense, mmlu, openllm-v1)"),
        (("--task", "piqa@3"), "no examples to show"),
        (("--task-data", "/nowhere"), "--task-data must be a folder"),
        (("--architecture", "mine.json"), "an architecture file must be readable"),
    ],
)
def test_refusals(stories, tasks, arguments, words, capsys):
    given = arguments if "--task-data" in arguments else (*arguments, "--task-data", tasks)
    assert call("evaluate", stories, *given) == 2
    assert words.lower() in refusal(capsys.readouterr().err).lower()


def test_architectures_need_a_run(stories, finished_run, tasks, tmp_path, capsys):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(RunFolder(finished_run).best()["architecture"]))
    assert call("evaluate", stories, "--architecture", file, "--task-data", tasks) == 2
    assert "is of a run" in refusal(capsys.readouterr().err)


def test_without_lm_eval_one_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr("search.accuracy_settings.find_spec", lambda _: None)
    with pytest.raises(SettingError, match=r"pip install 'secateur\[accuracy\]'"):
        AccuracySettings(("commonsense",))


def model(values, less=None):
    scores = [
        {"accuracy": value, "standard_error": 0.02, "items": 100, "chance": 0.5, "shots": 0, "cut": 0}
        for value in values
    ]
    return {"scores": scores, "mean": {"value": sum(values) / 2, "standard_error": 0.014}, "less": less}


def test_words_tell_noise_from_what_is_more():
    small = {"value": 0.01, "standard_error": 0.01, "p": 0.3}
    large = {"value": -0.1, "standard_error": 0.01, "p": 1e-9}
    found = {
        "title": "two",
        "compared": "winner",
        "tasks": ["a", "b"],
        "models": {
            "dense": model([0.7, 0.52], {"tasks": [small, small], "mean": small}),
            "uniform": model([0.6, 0.5], {"tasks": [large, large], "mean": large}),
            "winner": {**model([0.7, 0.6]), "flips": {"value": 0.125, "standard_error": 0.01}},
        },
    }
    lines = list(accuracy_notes(found))
    assert (
        "dense against winner, mean of tasks: +1.0 ± 1.0 points, p 0.30; within noise: take the two as equal." in lines
    )
    assert "uniform against winner, mean of tasks: -10.0 ± 1.0 points, p < 0.001; more than noise." in lines
    assert "No better than guessing, within noise: b (dense, uniform)." in lines
    flips = [line for line in lines if "right to wrong" in line]
    assert len(flips) == 1
    assert "against dense, mean of tasks: winner 12.5 ± 1.0 %." in flips[0]
    drawing = accuracy_drawing(found)
    bars = [value for bar in drawing.figure.data for value in bar.y]
    assert bars == pytest.approx([0.7, 0.52, 0.61, 0.6, 0.5, 0.55, 0.7, 0.6, 0.65])
    assert len(drawing.figure.layout.shapes) == 2


AIMED = {
    "tasks.ask": ["piqa", "copa"],
    "tasks.search": 10,
    "tasks.validate": 12,
    "tasks.report": 20,
    "search.slopes": None,
    "search.rounds": 1,
    "search.prior_sequences": 1,
}


def test_a_run_may_aim_at_tasks(small_config, tasks, tmp_path, capsys):
    config = load_config(small_config, {**AIMED, "tasks.data": str(tasks)})
    folder = tmp_path / "run"
    best = run_search(config, folder)
    run = RunFolder(folder)
    seen = {name: set(places) for name, places in best["aim"].pop("seen").items()}
    assert {name: len(places) for name, places in seen.items()} == {"piqa": 22, "copa": 22}
    assert best["aim"] == {
        "ask": ["piqa", "copa"],
        "loss": "probability of right answers lost",
        "signal": "margin",
    }
    assert best["texts"]["search"].startswith("piqa, copa, 20 items, ")
    assert best["baselines"]["dense"]["measured"]["search"]["kl"] == 0
    assert best["measured"]["search"]["kl"] <= best["baselines"]["uniform"]["measured"]["search"]["kl"]
    # What is reported was not searched by.
    [found] = run.accuracy().values()
    assert [score["of"] for score in found["models"]["winner"]["scores"]] == [1838 - 22, 100 - 22]
    asked = (tmp_path / "cache" / "answers").glob("*/*.json")
    for file in asked:
        items = json.loads(file.read_text())["items"]
        assert len(items) == 20
        assert not {int(item.split(":")[1]) for item in items} & seen[items[0].split(":")[0]]
    page = run.report_file.read_text()
    assert "probability of right answers lost on the search items" in page
    assert "Accuracy: piqa, copa" in page
    # Nor when the export is asked, wherever it lies, or the run by other settings.
    moved = (folder / "export").rename(tmp_path / "moved")
    assert call("evaluate", moved, "--task", "copa", "--task-data", tasks, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [model["scores"][0]["items"] for model in told["models"].values()] == [100 - 22] * 2
    moved.rename(folder / "export")
    # What else was asked of the run does not stand for its own comparison.
    [title] = run.accuracy()
    write_json(run.accuracy_file, {"something else": found})
    best = run_search(config, folder)
    assert list(run.accuracy()) == ["something else", title]
    write_json(run.accuracy_file, {title: found})
    # Again: nothing is measured or asked, and the folder stays as it is.
    before = fingerprints(folder)
    assert run_search(config, folder) == best
    assert fingerprints(folder) == before
    # The predictor, the architecture's measurement and the export work as of any run.
    assert call("predict", folder, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert "probability of right answers lost" in json.dumps(told)
    assert call("fit", folder) == 0
    assert call("export", folder, "--out", tmp_path / "export") == 0


def test_items_are_the_same_each_time_and_no_split_takes_another_s(small_config, tasks, stories):
    from evaluator import open_model
    from search.aim import aim_of
    from search.progress import Reporter

    config = load_config(small_config, {**AIMED, "tasks.data": str(tasks), "tasks.search": 60})
    dense = open_model(str(stories), dtype="float32")
    one, other = (aim_of(config, dense, Reporter(quiet=True))() for _ in range(2))
    assert one.seen == other.seen
    for split in ("search", "validate"):
        assert one.items[split].fingerprint == other.items[split].fingerprint
    # Of COPA a quarter of what there is, and the twelve that were asked for; none is in both.
    assert (one.items["search"].tasks == 1).sum() == 25
    assert len(one.seen["copa"]) == 25 + 12


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"search.slopes": True}, "slopes"),
        ({"text.shift": 1.0}, "text.shift"),
        ({"search.against": ["weight_bytes"]}, "search.against"),
    ],
)
def test_what_does_not_go_with_tasks(small_config, more, words):
    with pytest.raises(SettingError, match=words):
        load_config(small_config, {**AIMED, **more})


def test_a_task_that_cannot_be_had_leaves_no_folder(small_config, tasks, tmp_path):
    config = load_config(small_config, {**AIMED, "tasks.data": str(tasks), "tasks.ask": ["hellaswag"]})
    with pytest.raises(SettingError, match="hellaswag"):
        run_search(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_evaluate_is_a_function_too(stories, tasks):
    found = evaluate([stories], AccuracySettings(("copa",), 10, 0, tasks))
    assert list(found["models"]) == [str(stories)]
    assert found["asked"]["data"] == "tasks"
