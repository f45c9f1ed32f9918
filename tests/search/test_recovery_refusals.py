"""`secateur recover`: what it refuses, with one sentence and without leaving anything."""

import json

import pytest

from evaluator import open_model
from search import recovery
from tests.search.command import fingerprints
from tests.search.recoveries import LONG, QUESTIONS, SHORT, nothing, refused

pytestmark = pytest.mark.usefixtures("checked_here")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--answers", "mine"], "--answers must be self or given, but is 'mine'; choose one."),
        (["--data", "missing.jsonl"], "there is no 'missing.jsonl'; check the path."),
        (["--data", "FIELDS"], "must have the fields instruction + answer, question + answer, "),
        (["--data", "FIELDS"], "but line 2 of 'FIELDS' has question, reply; rename or add them."),
        (["--data", "LONG", "--answers", "given"], "must fit 64 tokens, but none of the 1 does; allow more tokens"),
        (["--text", "missing.txt"], "there is no 'missing.txt'; check the path."),
        (["--text", "TINY"], "must hold 64 tokens, but 'TINY' holds "),
        (["--report", "missing.txt"], "there is no 'missing.txt'; check the path."),
        (["--report", "TINY"], "A text to report on must hold 512 tokens, but 'TINY' holds "),
        (["--report", "self"], "A text to report on must be a file or a data set of the hub, but is 'self'"),
        (["--text", "self", "--text", "self"], "counts a source once, but has self, self"),
        (["--learning-rate", 0], "learning_rate of a recovery must be above 0, but is 0.0"),
        (["--distill", 2], "distillation of a recovery must be within 0 and 1, but is 2.0"),
        (["--dense", "nothing/at/all"], "'nothing/at/all' is none of these; check the path."),
    ],
)
def test_what_cannot_be_learned_leaves_nothing(options, message, finished_run, tmp_path, monkeypatch, capsys):
    files = {"FIELDS": tmp_path / "fields.jsonl", "LONG": tmp_path / "long.jsonl", "TINY": tmp_path / "tiny.txt"}
    files["FIELDS"].write_text(f'{json.dumps(QUESTIONS[0])}\n{{"question": "x", "reply": "y"}}\n')
    files["LONG"].write_text(json.dumps(LONG))
    files["TINY"].write_text("Once upon a time.")
    monkeypatch.setattr(recovery, "fine_tune", nothing)
    before = fingerprints(finished_run)
    sentence = refused(capsys, finished_run, *SHORT, *(files.get(option, option) for option in options))
    for name, file in files.items():
        message = message.replace(name, str(file))
    assert message in sentence
    assert fingerprints(finished_run) == before
    assert not (finished_run / ".recovered.training").exists()


def test_a_dense_model_of_another_tokenizer_is_refused(finished_run, pico_folder, capsys):
    sentence = refused(capsys, finished_run, "--dense", pico_folder, *SHORT)
    assert "must have its dense model's vocabulary, but '" in sentence
    assert f" of {finished_run / 'export'} and " in sentence
    assert f" of {pico_folder} (words that differ: " in sentence


def test_a_dense_model_of_more_output_tokens_is_refused(finished_run, stories, tmp_path, capsys):
    dense = open_model(str(stories), dtype="float32")
    dense.model.resize_token_embeddings(520)
    dense.model.save_pretrained(tmp_path / "padded")
    dense.tokenizer.save_pretrained(tmp_path / "padded")
    sentence = refused(capsys, finished_run, "--dense", tmp_path / "padded", *SHORT)
    assert f"but {finished_run / 'export'} has 512 and {tmp_path / 'padded'} 520; take" in sentence


def test_an_unfinished_run_is_refused(finished_run, capsys):
    (finished_run / "best.json").unlink()
    assert f"must hold a best.json, but '{finished_run}' does not" in refused(capsys, finished_run)


def test_a_damaged_record_is_told(finished_run, capsys):
    (finished_run / "export" / "secateur.json").write_text("[1")
    assert "secateur.json of an export must be intact JSON" in refused(capsys, finished_run)


def test_other_work_in_the_target_is_refused_before_any(finished_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recovery, "open_student", nothing)
    target = tmp_path / "mine"
    target.mkdir()
    (target / "thesis.tex").write_text("x")
    sentence = refused(capsys, finished_run, "--out", target)
    assert f"but '{target}' holds something else; choose another with --out." in sentence
    assert [path.name for path in target.iterdir()] == ["thesis.tex"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["finished", "mine"]
