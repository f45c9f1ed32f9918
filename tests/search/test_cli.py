"""Every command through its own door: what it prints for machines, and what it refuses in one sentence."""

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import BloomConfig

from predictor import AccuracyPredictor
from search.folder import RunFolder
from space import Architecture
from tests.pico import save_pico
from tests.search.command import ROOT, call, fingerprints, refusal
from tests.search.test_run import pairs_of

COMMANDS = (
    "run",
    "join",
    "sample",
    "measure",
    "fit",
    "predict",
    "latency",
    "report",
    "evaluate",
    "export",
    "bench",
    "generate",
    "recover",
    "merge",
    "draft",
    "calibrate",
)
GROUPS = {"study": ("calibration",)}
SERVERS = ("serve", "dashboard")  # which end by Ctrl-C and print no result


@pytest.fixture
def winner(finished_run, tmp_path):
    """The winner's JSON as a file, as a user would have it."""
    file = tmp_path / "winner.json"
    file.write_text(json.dumps(json.loads((finished_run / "best.json").read_text())["architecture"]))
    return file


def printed(capsys):
    """Return the one JSON object on standard output."""
    return json.loads(capsys.readouterr().out)


class TestJson:
    def test_sample(self, finished_run, capsys):
        assert call("sample", finished_run, "--count", 3, "--seed", 5, "--json") == 0
        found = printed(capsys)["architectures"]
        assert len(found) == 3
        assert set(found[0]) == {"fingerprint", "architecture", "cost"}
        space = RunFolder(finished_run).config().search_space(RunFolder(finished_run).layout())
        architectures = [Architecture.from_dict(each["architecture"]) for each in found]
        assert all(space.allows(architecture) for architecture in architectures)
        assert call("sample", finished_run, "--count", 3, "--seed", 5) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [Architecture.from_json(line) for line in lines] == architectures

    def test_predict(self, finished_run, winner, capsys):
        assert call("predict", finished_run, "--json") == 0
        [told] = printed(capsys)["results"]
        best = RunFolder(finished_run).best()
        assert told["fingerprint"] == best["fingerprint"]
        loaded = AccuracyPredictor.load(finished_run / "predictor")
        answer = loaded.predict([Architecture.from_dict(best["architecture"])])
        assert told["predicted"]["kl"]["value"] == pytest.approx(float(answer.value[0]))
        assert told["predicted"]["kl"]["lower"] < told["predicted"]["kl"]["value"] < told["predicted"]["kl"]["upper"]
        assert told["predicted"]["kl"]["protocol"] == best["predicted"]["protocol"]
        assert 1 < told["predicted"]["perplexity"]["lower"] < told["predicted"]["perplexity"]["value"]
        assert call("predict", finished_run, winner, "--set", "1.mlp_width=0", "--json") == 0
        [changed] = printed(capsys)["results"]
        assert changed["architecture"]["layers"][1]["mlp_width"] == 0

    def test_predict_for_people(self, finished_run, capsys):
        assert call("predict", finished_run) == 0
        assert "90 % interval" in capsys.readouterr().out

    def test_measure(self, finished_run, winner, capsys):
        best = RunFolder(finished_run).best()
        before = pairs_of(finished_run)
        assert call("measure", finished_run, winner, "--split", "report", "--json") == 0
        [told] = printed(capsys)["results"]
        assert told["measured"] == best["measured"]["report"]
        assert pairs_of(finished_run) == before
        other = Architecture.from_dict(best["architecture"]).replace(0, mlp_width=0)
        winner.write_text(other.to_json())
        assert call("measure", finished_run, winner, "--json") == 0
        assert printed(capsys)["results"][0]["measured"]["kl"] > 0
        [new] = pairs_of(finished_run)[len(before) :]
        assert (new[0], new[-1]) == (other.fingerprint, "user")

    def test_fit(self, finished_run, capsys):
        assert call("fit", finished_run, "--json") == 0
        quality = printed(capsys)["quality"]
        assert {"kendall_tau", "pairs"} <= set(quality)

    def test_report(self, finished_run, capsys):
        (finished_run / "report.html").unlink()
        assert call("report", finished_run, "--json") == 0
        told = printed(capsys)
        assert told["report"] == str(finished_run / "report.html")
        assert told["architecture"] == RunFolder(finished_run).best()["architecture"]
        assert (finished_run / "report.html").stat().st_size > 10_000

    def test_export_and_generate(self, finished_run, stories, tmp_path, capsys):
        assert call("export", finished_run, "--out", tmp_path / "mine", "--json") == 0
        told = printed(capsys)
        assert (told["export"], told["checked"]) == (str(tmp_path / "mine"), True)
        assert told["files"]["model.safetensors"]["bytes"] == (tmp_path / "mine" / "model.safetensors").stat().st_size
        same = [(path / "model.safetensors").read_bytes() for path in (tmp_path / "mine", finished_run / "export")]
        assert same[0] == same[1]
        said = ("Once upon a time", "--tokens", 8)
        assert call("generate", tmp_path / "mine", *said, "--json") == 0
        text = printed(capsys)["text"]
        assert text.startswith("Once upon a time")
        assert call("generate", stories, *said, "--beside", tmp_path / "mine", "--json") == 0
        both = printed(capsys)
        assert both["beside"] == text != both["text"]
        assert call("generate", stories, *said, "--beside", tmp_path / "mine") == 0
        assert capsys.readouterr().out == f"{stories}:\n{both['text']}\n\n{tmp_path / 'mine'}:\n{text}\n"
        texts = []
        for seed in (1, 1, 2):
            assert call("generate", tmp_path / "mine", "Once upon a time", "--tokens", 12, "--seed", seed) == 0
            texts.append(capsys.readouterr().out)
        assert texts[0] == texts[1] != texts[2]

    def test_run(self, finished_run, small_config, capsys):
        assert call("run", "--config", small_config, "--out", finished_run, "--json") == 0
        told = printed(capsys)
        assert told == {"run": str(finished_run), **RunFolder(finished_run).best()}

    def test_run_for_people(self, finished_run, small_config, capsys):
        assert call("run", "--config", small_config, "--out", finished_run) == 0
        out = capsys.readouterr().out
        assert "winner" in out
        assert "secateur generate" in out


@pytest.mark.parametrize("command", [*COMMANDS, *SERVERS])
def test_help_has_an_example(command, capsys):
    assert call(command, "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"Example: secateur {command} " in text
    assert ("--json" in text) == (command in COMMANDS)


def test_help_lists_every_command(capsys):
    assert call("--help") == 0
    out = capsys.readouterr().out
    listed = [
        line.split()[0] for line in out.split("Commands:")[1].splitlines() if line[:2] == "  " and line[2:3] != " "
    ]
    assert sorted(listed) == sorted((*COMMANDS, *GROUPS, *SERVERS))
    for group, commands in GROUPS.items():
        assert call(group, "--help") == 0
        told = capsys.readouterr().out
        for name in commands:
            assert f"\n  {name} " in told
            assert call(group, name, "--help") == 0
            text = " ".join(capsys.readouterr().out.split())
            assert f"Example: secateur {group} {name} " in text
            assert "--json" in text


def test_a_question_loads_no_torch(finished_run):
    code = (
        "import sys; from search.cli import _guarded, app; "
        "code = _guarded(lambda: app(['predict', sys.argv[1], '--json'])); "
        "print(code, sorted({'torch', 'transformers', 'evaluator', 'optuna'} & set(sys.modules)), file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(finished_run)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stderr.strip() == "0 []"
    assert json.loads(run.stdout)["results"]


# Refusals of a run. Each makes something wrong and returns the options that ask for it.


def missing_model(tmp_path):
    return ["--model", tmp_path / "nothing"]


def unknown_family(tmp_path):
    BloomConfig(n_layer=1, n_head=2, hidden_size=16).save_pretrained(tmp_path / "gpt2")
    return ["--model", tmp_path / "gpt2"]


def impossible_budget(_):
    return ["--budget", "weight_bytes=0.01"]


def unreadable_budget(_):
    return ["--budget", "size=3"]


def unknown_setting(_):
    return ["--set", "search.speed=11"]


def setting_without_value(_):
    return ["--set", "search.rounds"]


def short_text(tmp_path):
    (tmp_path / "short.txt").write_text("Once upon a time there was a small girl. " * 20)
    return ["--text", tmp_path / "short.txt"]


def missing_text(tmp_path):
    return ["--text", tmp_path / "nothing.txt"]


def long_sequences(_):
    return ["--set", "text.sequence_length=100000"]


RUN_REFUSALS = [
    (missing_model, "none of these; check the path"),
    (unknown_family, "but this model's is 'bloom'"),
    (impossible_budget, "raise the budget"),
    (unreadable_budget, "write for example parameters=0.8"),
    (unknown_setting, "but 'search.speed' is none of them; remove or rename it"),
    (setting_without_value, "must be KEY=VALUE, but is 'search.rounds'"),
    (short_text, "give a longer text, fewer sequences or a shorter sequence_length"),
    (missing_text, "must exist, but there is no"),
    (long_sequences, "tokens for this model, but is 100000; lower it"),
]


@pytest.mark.parametrize(("make", "message"), RUN_REFUSALS)
def test_a_refused_run_leaves_no_folder(make, message, small_config, tmp_path, capsys):
    folder = tmp_path / "run"
    assert call("run", "--config", small_config, *make(tmp_path), "--out", folder) == 2
    assert message in refusal(capsys.readouterr().err)
    assert not folder.exists()


@pytest.mark.parametrize(("make", "message"), [(make, "") for make, _ in RUN_REFUSALS])
def test_a_refused_run_leaves_earlier_results_alone(make, message, small_config, finished_run, tmp_path, capsys):
    before = fingerprints(finished_run)
    assert call("run", "--config", small_config, *make(tmp_path), "--out", finished_run) == 2
    assert message in refusal(capsys.readouterr().err)
    assert fingerprints(finished_run) == before


# Damage to a finished run: what is damaged, and a command that needs it.


def overwrite(name, content):
    def damage(folder):
        (folder / name).write_bytes(content)

    damage.__name__ = f"{name}={content[:8]!r}"
    return damage


def truncate(name):
    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    damage.__name__ = f"{name} cut in half"
    return damage


def remove(name):
    def damage(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    damage.__name__ = f"no {name}"
    return damage


def newer_store(folder):
    with sqlite3.connect(folder / "measurements.db") as connection:
        connection.execute("PRAGMA user_version = 99")


def other_weights(folder):
    values = json.loads((folder / "layout.json").read_text())
    (folder / "layout.json").write_text(json.dumps({**values, "weights_hash": "0123456789abcdef"}))


DAMAGES = [
    (overwrite("config.yaml", b"model: ["), ["predict", "measure", "export", "fit", "sample", "run"]),
    (overwrite("config.yaml", b"model: 3\n"), ["predict", "run"]),
    (remove("config.yaml"), ["predict", "measure", "export", "fit", "sample", "run"]),
    (overwrite("layout.json", b"{"), ["predict", "measure", "sample", "report"]),
    (overwrite("layout.json", b"{}"), ["predict", "measure", "sample", "report"]),
    (overwrite("best.json", b"{"), ["predict", "report", "export"]),
    (overwrite("best.json", b"{}"), ["predict", "report", "export"]),
    (remove("best.json"), ["predict", "report", "export"]),
    (truncate("texts.safetensors"), ["measure", "export"]),
    (truncate("prepared/statistics/layer-001.safetensors"), ["measure", "export"]),
    (remove("texts.safetensors"), ["measure", "export"]),
    (truncate("measurements.db"), ["measure", "fit", "report"]),
    (overwrite("measurements.db", b"no database at all" * 100), ["measure", "fit", "report"]),
    (newer_store, ["measure", "fit", "report", "export"]),
    (remove("measurements.db"), ["fit", "report"]),
    (overwrite("predictor/predictor.json", b"{"), ["predict"]),
    (truncate("predictor/predictor.safetensors"), ["predict"]),
    (remove("predictor"), ["predict"]),
    (other_weights, ["measure", "export"]),
]
CASES = [(damage, command) for damage, commands in DAMAGES for command in commands]


def arguments_of(command, folder, small_config, winner):
    return {
        "measure": ["measure", folder, winner],
        "run": ["run", "--config", small_config, "--out", folder],
    }.get(command, [command, folder])


@pytest.mark.parametrize(("damage", "command"), CASES, ids=[f"{damage.__name__}-{name}" for damage, name in CASES])
def test_a_damaged_run_folder_is_refused_and_left_alone(damage, command, finished_run, small_config, winner, capsys):
    damage(finished_run)
    before = fingerprints(finished_run)
    assert call(*arguments_of(command, finished_run, small_config, winner)) == 2
    assert len(refusal(capsys.readouterr().err)) > 60
    assert fingerprints(finished_run) == before


UNFINISHED = [
    overwrite("layout.json", b"{"),
    other_weights,
    truncate("texts.safetensors"),
    truncate("prepared/statistics/layer-001.safetensors"),
    truncate("measurements.db"),
    newer_store,
    overwrite("study.db", b"no database at all" * 100),
]


@pytest.mark.parametrize("damage", UNFINISHED, ids=[damage.__name__ for damage in UNFINISHED])
def test_a_damaged_unfinished_run_does_not_go_on(damage, finished_run, small_config, capsys):
    (finished_run / "best.json").unlink()
    damage(finished_run)
    before = fingerprints(finished_run)
    assert call("run", "--config", small_config, "--out", finished_run) == 2
    refusal(capsys.readouterr().err)
    assert fingerprints(finished_run) == before


def test_a_foreign_folder_is_refused(small_config, tmp_path, capsys):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    for arguments in (["run", "--config", small_config, "--out"], ["predict"], ["sample"], ["report"], ["export"]):
        assert call(*arguments, tmp_path / "home") == 2
        refusal(capsys.readouterr().err)
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("command", ["sample", "predict", "fit", "report", "export"])
def test_a_folder_that_does_not_exist_is_refused_and_not_made(command, tmp_path, capsys):
    assert call(command, tmp_path / "nothing") == 2
    refusal(capsys.readouterr().err)
    assert not (tmp_path / "nothing").exists()


def test_a_run_of_another_model_is_refused(finished_run, small_config, tmp_path, capsys):
    before = fingerprints(finished_run)
    other = save_pico(tmp_path / "pico")
    assert call("run", "--config", small_config, "--model", other, "--out", finished_run) == 2
    assert "choose another folder with --out" in refusal(capsys.readouterr().err)
    assert fingerprints(finished_run) == before
    # The name is the same, but the weights are another model's: begun, then the model was exchanged.
    values = yaml.safe_load((finished_run / "config.yaml").read_text())
    (finished_run / "config.yaml").write_text(yaml.safe_dump({**values, "model": str(other)}))
    (finished_run / "best.json").unlink()
    before = fingerprints(finished_run)
    assert call("run", "--config", small_config, "--model", other, "--out", finished_run) == 2
    assert "must go on with the model it began with" in refusal(capsys.readouterr().err)
    assert fingerprints(finished_run) == before


def missing_layer(values):
    del values["layers"][2]


def wrong_width(values):
    values["layers"][2]["mlp_width"] = 173


def off_step_width(values):
    values["layers"][2]["mlp_width"] = 17


def unknown_gene(values):
    values["layers"][2]["width"] = 16


def no_number(values):
    values["layers"][2]["kv_groups"] = "two"


def sparse(values):
    values["layers"][2].update(mlp_width=64, mlp_sparsity=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing_layer, "one entry for each of the model's 5 layers, but has 4; add or remove entries"),
        (wrong_width, "between 0 and 172 in layer 2, but is 173; the nearest is 172"),
        (off_step_width, "in layer 2, but is 17; the nearest are 0 and 16"),
        (unknown_gene, "layer 2 has width; remove them"),
        (no_number, "kv_groups must be a whole number in layer 2, but is 'two'; give one"),
        (sparse, "sparsity of the MLP in layer 2 must be one of 0, but is 0.5"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "measure"])
def test_architectures_that_do_not_fit(command, change, message, finished_run, winner, capsys):
    values = json.loads(winner.read_text())
    change(values)
    winner.write_text(json.dumps(values))
    before = fingerprints(finished_run)
    assert call(command, finished_run, winner) == 2
    sentence = refusal(capsys.readouterr().err)
    if change is off_step_width:
        assert "in layer 2, but is 17; the nearest are" in sentence
    else:
        assert message in sentence
    assert fingerprints(finished_run) == before


@pytest.mark.parametrize("content", [b"{", b"", b"[]", b"\xff\xfe", None])
def test_files_that_are_no_architecture(content, finished_run, winner, capsys):
    winner.unlink()
    if content is not None:
        winner.write_bytes(content)
    assert call("predict", finished_run, winner) == 2
    refusal(capsys.readouterr().err)


@pytest.mark.parametrize(
    "change", ["3", "x.mlp_width=0", "9.mlp_width=0", "1.width=3", "1.mlp_width=many", "-9.mlp_width=0"]
)
def test_changes_that_cannot_be_made(change, finished_run, capsys):
    assert call("predict", finished_run, f"--set={change}") == 2
    refusal(capsys.readouterr().err)


@pytest.mark.parametrize(
    "arguments",
    [
        ["measure", "RUN", "WINNER", "--split", "calibrate"],
        ["export", "RUN", "--format", "onnx"],
        ["generate", "NOTHING", "Hello"],
    ],
)
def test_other_refusals(arguments, finished_run, winner, tmp_path, capsys):
    places = {"RUN": finished_run, "WINNER": winner, "NOTHING": tmp_path}
    assert call(*[places.get(argument, argument) for argument in arguments]) == 2
    refusal(capsys.readouterr().err)


@pytest.mark.usefixtures("checked_here")
def test_a_full_disk_is_refused_and_the_run_goes_on_after(small_disk, small_config, finished_folder, capsys):
    place, grow = small_disk
    command = ("run", "--config", small_config, "--out", place / "run")
    came_to = []
    # Too small for the texts, the pairs, the study, the predictor, the export and the report in turn.
    for size in ("8k", "64k", "160k", "280k", "700k", "2m"):
        grow(size)
        assert call(*command) == 2, size
        sentence = refusal(capsys.readouterr().err)
        assert "disk, but it is full; free some space" in sentence
        came_to.append(sorted(path.name for path in (place / "run").iterdir()) if (place / "run").exists() else [])
        assert not (place / "run" / "best.json").exists()
    assert came_to[0] != came_to[-1]
    grow("30m")
    assert call(*command) == 0
    assert pairs_of(place / "run") == pairs_of(finished_folder)
    mine, other = (json.loads((path / "best.json").read_text()) for path in (place / "run", finished_folder))
    assert mine["architecture"] == other["architecture"]
    assert [path for path in Path(place).rglob("*") if "partial" in path.name] == []
