"""What a recovery learns from: examples as given or rewritten, plain text, and nothing that is measured on."""

import itertools
import json
import sys
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from evaluator import Calibration, gather_set, open_model
from evaluator.generation import MEASURING
from evaluator.recovery.examples import Example, read_examples
from evaluator.recovery.finetune import Recipe
from evaluator.recovery.selfdata import SelfData
from evaluator.splits import shared_passages
from search import recovery, recovery_data
from search.folder import RunFolder
from search.progress import Reporter
from search.recovery_data import RecoverySettings, gather_samples
from space import SettingError, TextError
from tests.search.command import call
from tests.search.recoveries import LONG, QUESTIONS, SHORT, jsonl, recovered


@pytest.fixture
def dense(stories):
    return open_model(str(stories), dtype="float32")


def gathered(dense, folder, report=None, steps=400, **settings):
    """Return what is learned from by sequences of 64 tokens, and its tokens."""
    wish = RecoverySettings(Recipe(steps=steps, step_tokens=64), **settings)
    found = gather_samples(dense, dense, wish, folder / "cache", Reporter(quiet=True), report)
    tokens = torch.tensor([sample.tokens for sample in (*found.samples, *found.held_out)])
    return found, tokens


def words_of(data, count):
    return (data / "text" / "tinystories.txt").read_text()[:count]


@pytest.mark.usefixtures("checked_here")
def test_given_answers(finished_run, tmp_path, capsys):
    file = jsonl(tmp_path, *QUESTIONS, LONG)
    told = recovered(capsys, finished_run, "--data", file, "--answers", "given", *SHORT)["recovery"]
    assert told["examples"] == {"rows.jsonl": {"learned": 4, "too_long": 1, "answers": "given"}}
    assert (told["samples"], told["held_out_samples"], told["recipe"]["distillation"]) == (4, 0, 0)
    assert told["looks"] == []
    assert told["losses"][-1] < told["losses"][0]
    assert "text" not in told
    told = recovered(
        capsys, finished_run, "--data", file, "--answers", "given", "--examples", 2, "--text", "self", *SHORT
    )["recovery"]
    assert sum(told["examples"]["rows.jsonl"][key] for key in ("learned", "too_long")) == 2
    assert told["samples"] == told["examples"]["rows.jsonl"]["learned"] + told["text"]["sequences"]


@pytest.mark.usefixtures("checked_here")
def test_the_dense_model_writes_answers_again(finished_run, tmp_path, capsys):
    file = jsonl(tmp_path, *QUESTIONS)
    assert call("recover", finished_run, "--data", file, *SHORT) == 0
    captured = capsys.readouterr()
    assert f"Rewriting answers: {4 * 256:,} tokens in" in captured.err
    told = json.loads((finished_run / "recovered" / "secateur.json").read_text())["recovery"]
    counts = told["rewritten"]["rows.jsonl"]
    assert 4 * counts["share_kept"] + sum(counts["not_kept"].values()) == 4
    assert f"{counts['share_kept']:.0%} of 4 rewritten answers passed the check" in captured.err
    assert told["examples"] == {"rows.jsonl": {"learned": 4, "too_long": 0, "answers": "self"}}


@pytest.mark.usefixtures("checked_here")
def test_what_passed_the_check_is_learned_in_its_place(finished_run, tmp_path, monkeypatch, capsys):
    file = jsonl(tmp_path, *QUESTIONS)
    given, learned, train = read_examples(str(file)), [], recovery.fine_tune
    made = [Example(given[0].instruction, "So he went home."), *given[1:]]

    def rewrite(dense, examples, check_working, **_):
        assert examples == given
        assert check_working
        return SelfData(tuple(made), (None, "echo", "echo", "unfinished"))

    def fine_tune(student, samples, *rest):
        learned.extend(student.tokenizer.decode(each.tokens[each.first : -1]).strip() for each in samples)
        return train(student, samples, *rest)

    monkeypatch.setattr(recovery_data, "rewrite", rewrite)
    monkeypatch.setattr(recovery, "fine_tune", fine_tune)
    told = recovered(capsys, finished_run, "--data", file, "--check-working", *SHORT)["recovery"]
    assert told["rewritten"]["rows.jsonl"] == {
        "share_kept": 0.25,
        "not_kept": {"echo": 2, "unfinished": 1},
        "check_working": True,
    }
    assert sorted(learned) == sorted(example.answer.strip() for example in made)


class Noting(Reporter):
    """Notes of each stage what it was to do and what it did."""

    def __init__(self):
        super().__init__(quiet=True)
        self.stages = []

    @contextmanager
    def stage(self, title, total, unit):
        done = []
        yield lambda amount, _note="": done.append(amount)
        self.stages.append((title, total, sum(done), unit))


def test_progress_ends_where_it_said(dense, tmp_path):
    wish = RecoverySettings(Recipe(steps=4, step_tokens=64), (str(jsonl(tmp_path, *QUESTIONS)),), text=("self",))
    for _ in range(2):  # written, and read
        reporter = Noting()
        gather_samples(dense, dense, wish, tmp_path / "cache", reporter)
        expected = [("Rewriting answers", 4 * 256, 4 * 256, "tokens"), ("Writing text", 5 * 64, 5 * 64, "tokens")]
        assert reporter.stages == expected


@pytest.mark.usefixtures("checked_here")
def test_a_run_is_kept_apart_from_its_report(finished_run, monkeypatch, capsys):
    gather, apart = recovery.gather_samples, []

    def gather_samples(*arguments):
        apart.append(arguments[-1])
        return gather(*arguments)

    monkeypatch.setattr(recovery, "gather_samples", gather_samples)
    recovered(capsys, finished_run, *SHORT)
    assert torch.equal(apart[0], RunFolder(finished_run).texts().of("report"))


def test_a_text_that_is_shorter_than_the_steps_is_learned_more_than_once(dense, data, tmp_path):
    (tmp_path / "one.txt").write_text(words_of(data, 5_000))
    (tmp_path / "two.txt").write_text(words_of(data, 40_000)[-3_000:])
    texts = [(tmp_path / name).read_text() for name in ("one.txt", "two.txt")]
    sizes = [len(dense.tokenizer(text, add_special_tokens=False)["input_ids"]) // 64 for text in texts]
    found, tokens = gathered(dense, tmp_path, text=(str(tmp_path / "one.txt"),))
    assert len(tokens) == sizes[0] < 400
    assert len(found.held_out) == found.told["held_out_samples"] == round(0.05 * sizes[0]) > 0
    assert len(found.samples) == found.told["samples"] == sizes[0] - len(found.held_out)
    both, _ = gathered(dense, tmp_path, text=(str(tmp_path / "one.txt"), str(tmp_path / "two.txt")))
    assert [part["sequences"] for part in both.told["text"]["parts"]] == [min(sizes)] * 2
    # As many as the steps take, where there are more.
    assert len(gathered(dense, tmp_path, steps=4, text=(str(tmp_path / "one.txt"),))[1]) == 5


def test_nothing_is_learned_that_is_measured_on(dense, data, tmp_path):
    (tmp_path / "one.txt").write_text(words_of(data, 5_000))
    text = (str(tmp_path / "one.txt"),)
    whole, tokens = gathered(dense, tmp_path, text=text)
    assert whole.told["text"]["left_out_of_the_report"] == 0
    stream = torch.tensor(dense.tokenizer(words_of(data, 5_000), add_special_tokens=False)["input_ids"])
    report = stream[100:260].view(1, -1)  # whole 64 tokens are in one sequence, and parts in two more
    found, rest = gathered(dense, tmp_path, report, text=text)
    assert found.told["text"]["left_out_of_the_report"] == len(tokens) - len(rest) == 2
    assert shared_passages(report, tokens) > shared_passages(report, rest) == 0
    with pytest.raises(TextError, match=rf"but all {len(tokens)} sequences have passages of that; give other text"):
        gathered(dense, tmp_path, tokens, text=text)


def test_what_the_dense_model_writes_is_not_a_runs_own_text(dense, tmp_path):
    found, tokens = gathered(dense, tmp_path, steps=20, text=("self",))
    assert len(tokens) == found.told["text"]["sequences"] == 22
    recipe = Calibration((("self", 1.0),), replace(MEASURING, document=64))
    runs = gather_set(dense, recipe, 22, 64, 0, tmp_path / "run").tokens
    assert shared_passages(runs, tokens) == 0


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(SettingError, match="from examples or text, but has neither; give --data or --text"):
        RecoverySettings()
    with pytest.raises(SettingError, match="must be a file or a data set of the hub, but is 'self'"):
        RecoverySettings(text=("self",), report="self")


def test_a_report_of_the_hub_is_read_no_further_than_needed(dense, tmp_path, monkeypatch):
    rows = ({"text": f"Once upon a time there were {count} cats."} for count in itertools.count())
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: rows))
    tokens, name = recovery._report_text(tmp_path, RecoverySettings(text=("self",), report="c4"), dense)
    assert (tokens.shape, name) == ((32, 512), "c4")
