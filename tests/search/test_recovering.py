"""`secateur recover`: what it learns from, writes and prints, and that it goes on where it stopped."""

import json
import shutil

import pytest
import torch
from transformers import LlamaForCausalLM

from evaluator import open_model
from evaluator.accuracy import make_reference
from evaluator.recovery.finetune import _Training
from evaluator.recovery.student import measure_student, open_student
from search import progress, recovery
from search.folder import RunFolder
from tests.search.command import call, fingerprints
from tests.search.recoveries import QUESTIONS, SHORT, jsonl, nothing, recovered, refused, same, weights

pytestmark = pytest.mark.usefixtures("checked_here")

WELL = ("--steps", 20, "--step-tokens", 256, "--learning-rate", 2e-3)


@pytest.fixture
def plain(stories, tmp_path):
    """A pruned model's folder that is none of our exports: all MLPs have lost half of their channels."""
    dense = open_model(str(stories), dtype="float32").model
    state, half = dense.state_dict(), dense.config.intermediate_size // 2
    for name, tensor in state.items():
        if ".mlp." in name:
            state[name] = (tensor[:, :half] if "down_proj" in name else tensor[:half]).clone()
    config = type(dense.config)(**{**dense.config.to_dict(), "intermediate_size": half})
    pruned = LlamaForCausalLM(config)
    pruned.load_state_dict(state)
    pruned.save_pretrained(tmp_path / "plain")
    open_model(str(stories)).tokenizer.save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


class TestRun:
    def test_a_run_is_recovered_from_nothing_but_its_dense_model(self, finished_run, stories, capsys):
        before = fingerprints(finished_run)
        told = recovered(capsys, finished_run, *WELL)
        folder = finished_run / "recovered"
        assert told["folder"] == str(folder)
        after = fingerprints(finished_run)
        assert {name: after[name] for name in before} == before
        assert {name.split("/")[0] for name in set(after) - set(before)} == {"recovered"}

        record = json.loads((folder / "secateur.json").read_text())
        assert {"folder": str(folder), **record} == told
        export = json.loads((finished_run / "export" / "secateur.json").read_text())
        assert {name: record[name] for name in export if name not in ("environment", "files")} == {
            name: value for name, value in export.items() if name not in ("environment", "files")
        }
        found = record["recovery"]
        assert (found["recipe"]["steps"], found["recipe"]["distillation"], found["recipe"]["rank"]) == (20, 1, 16)
        assert (found["samples"], found["held_out_samples"]) == (21, 1)
        assert found["text"]["parts"][0]["source"] == "self"
        assert (found["steps"], len(found["losses"]), found["learned_tokens"]) == (20, 20, 20 * 255)
        assert found["looks"][-1][0] == found["best_step"] == 20
        assert found["losses"][-1] < found["losses"][0]
        self.check_measured(found["measured"], finished_run, folder, stories)

        card, own = ((place / "README.md").read_text() for place in (folder, finished_run / "export"))
        assert card.startswith(own[: own.index("## How to load it")])
        assert "Fine-tuned for 20 steps of about 256 tokens (low-rank additions of rank 16, learning rate 0.002" in card
        assert "What is measured above was measured before." in card
        values = [found["measured"][name]["perplexity"] for name in ("dense", "before", "after")]
        row = next(line for line in card.splitlines() if line.startswith("| | ") and " ± " in line)
        assert [cell.split()[0] for cell in row.strip("|").split("|")[1:]] == [f"{value:.2f}" for value in values]

    def check_measured(self, measured, run, folder, stories):
        """The numbers are those of the folder as it is opened again, and better than before."""
        assert measured["after"]["kl"] < measured["before"]["kl"] - 0.1
        assert measured["less"]["kl"] == pytest.approx(measured["after"]["kl"] - measured["before"]["kl"])
        best = json.loads((run / "best.json").read_text())["measured"]["report"]
        assert measured["before"]["kl"] == pytest.approx(best["kl"], rel=1e-4)
        texts = RunFolder(run).texts()
        reference = make_reference(open_model(str(stories), dtype="float32"), texts.of("report"))
        again = measure_student(open_student(folder), reference, texts.source("report"), "fine-tuned").to_dict()
        compared = {"kl", "nll", "agreement", "tokens"}
        assert {name: again[name] for name in compared} == {name: measured["after"][name] for name in compared}
        assert measured["dense"]["kl"] == pytest.approx(0, abs=1e-6)

    def test_what_people_read(self, finished_run, capsys, monkeypatch):
        told = []
        monkeypatch.setattr(progress, "_listeners", [told.append])
        assert call("recover", finished_run, *SHORT) == 0
        ends = {event["stage"]: event for event in told if "stage" in event}
        assert all(event["done"] == event["total"] for event in ends.values())
        captured = capsys.readouterr()
        for line in (
            "Writing text: 320 tokens in",
            "Measuring before, on tinystories.txt: 1,134 tokens in",
            "Measuring after, on tinystories.txt: 378 tokens in",
            "Fine-tuning: 4 steps",
        ):
            assert line in captured.err
        found = json.loads((finished_run / "recovered" / "secateur.json").read_text())["recovery"]["measured"]
        lines = captured.out.splitlines()
        assert lines[0].startswith("4 steps on 252 learned tokens in ")
        assert lines[0].endswith("; weights of step 4")
        assert lines[1].startswith(f"Perplexity on tinystories.txt: dense {found['dense']['perplexity']:.2f} ± ")
        assert f"after {found['after']['perplexity']:.2f} ± " in lines[1]
        assert lines[2].endswith(f"KL from the dense model {found['before']['kl']:.3f} to {found['after']['kl']:.3f}")
        assert lines[3:] == [str(finished_run / "recovered")]

    def test_again_it_replaces_its_own_folder_and_gives_the_same(self, finished_run, capsys):
        first = recovered(capsys, finished_run, *SHORT)
        before = weights(finished_run / "recovered")
        (finished_run / "recovered" / "left-over.txt").write_text("x")
        again = recovered(capsys, finished_run, *SHORT)
        assert again["recovery"]["losses"] == first["recovery"]["losses"]
        assert same(weights(finished_run / "recovered"), before)
        assert not (finished_run / "recovered" / "left-over.txt").exists()
        recovered(capsys, finished_run, *SHORT, "--seed", 1)
        assert not same(weights(finished_run / "recovered"), before)

    def test_additions_leave_words_as_they_are_and_rank_0_trains_all(self, finished_run, capsys):
        name = "model.embed_tokens.weight"
        words = weights(finished_run / "export")[name]
        recovered(capsys, finished_run, *SHORT)
        assert torch.equal(weights(finished_run / "recovered")[name], words)
        told = recovered(capsys, finished_run, *SHORT, "--rank", 0)
        assert told["recovery"]["recipe"]["learning_rate"] == 5e-5
        assert not torch.equal(weights(finished_run / "recovered")[name], words)
        assert "(all weights, learning rate 5e-05" in (finished_run / "recovered" / "README.md").read_text()

    def test_a_missing_export_is_made(self, finished_run, capsys):
        shutil.rmtree(finished_run / "export")
        recovered(capsys, finished_run, *SHORT)
        assert (finished_run / "export" / "config.json").is_file()


class TestFolder:
    def test_a_plain_folder_is_recovered_with_its_dense_model(self, plain, stories, data, capsys):
        report = plain.with_name("report.txt")
        report.write_text((data / "text" / "tinystories.txt").read_text()[:10_000])
        told = recovered(capsys, plain, "--dense", stories, *WELL, "--report", report)
        folder = plain.with_name("plain-recovered")
        assert told["folder"] == str(folder)
        assert "auto_map" not in json.loads((folder / "config.json").read_text())
        assert LlamaForCausalLM.from_pretrained(folder).config.intermediate_size == 86
        measured = told["recovery"]["measured"]
        assert measured["text"] == "report.txt"
        count = len(open_student(plain).tokenizer(report.read_text(), add_special_tokens=False)["input_ids"]) // 512
        assert measured["after"]["tokens"] == count * 511 > 0
        assert measured["after"]["kl"] < measured["before"]["kl"] - 0.1
        card = (folder / "README.md").read_text()
        assert "\n## Recovery\n" in card
        assert "measured above" not in card  # nothing is
        assert f"\n# {stories.name}\n" in card

    def test_without_a_dense_model_it_learns_what_is_given(self, plain, tmp_path, capsys):
        given = ("--data", jsonl(tmp_path, *QUESTIONS), "--answers", "given")
        told = recovered(capsys, plain, *given, *SHORT, "--out", tmp_path / "mine")
        assert told["folder"] == str(tmp_path / "mine")
        assert "measured" not in told["recovery"]
        assert "rewritten" not in told["recovery"]
        for options in ((), given[:2], (*given, "--distill", 0.5), (*given, "--text", "self")):
            sentence = refused(capsys, plain, *options, *SHORT)
            assert "must be known to learn from it, but" in sentence
            assert "add --dense MODEL" in sentence
        sentence = refused(capsys, plain, *given, *SHORT, "--report", given[1])
        assert "must be known to measure against it, but" in sentence

    def test_the_folder_one_is_in(self, plain, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(plain)
        given = ("--data", jsonl(tmp_path, *QUESTIONS), "--answers", "given")
        assert recovered(capsys, ".", *given, *SHORT)["folder"] == str(plain.with_name("plain-recovered"))

    @pytest.mark.parametrize("name", ["empty", "missing"])
    def test_a_folder_without_a_model_is_refused(self, name, tmp_path, capsys):
        (tmp_path / "empty").mkdir()
        assert f"a config.json, but '{tmp_path / name}' holds none" in refused(capsys, tmp_path / name)
        assert [path.name for path in tmp_path.iterdir()] == ["empty"]


class TestStopping:
    def test_ctrl_c_leaves_a_checkpoint_alone_and_it_goes_on_from_there(
        self, finished_run, tmp_path, monkeypatch, capsys
    ):
        command = ("--steps", 24, "--step-tokens", 64)
        whole = recovered(capsys, finished_run, *command, "--out", tmp_path / "whole")["recovery"]
        take, taken = _Training._step, []

        def step(training, number):
            if number == 22 and 22 not in taken:
                taken.append(number)
                raise KeyboardInterrupt
            taken.append(number)
            return take(training, number)

        monkeypatch.setattr(_Training, "_step", step)
        assert call("recover", finished_run, *command) == 130
        assert capsys.readouterr().err.endswith("Stopped; the same command goes on from here.\n")
        assert not (finished_run / "recovered").exists()
        assert len(list((finished_run / ".recovered.training").glob("*.safetensors"))) == 1
        taken[:-1] = []
        told = recovered(capsys, finished_run, *command)["recovery"]
        assert taken == [22, 20, 21, 22, 23]
        assert told["losses"] == pytest.approx(whole["losses"], abs=2e-5)
        own = weights(finished_run / "recovered")
        for name, tensor in weights(tmp_path / "whole").items():
            assert torch.allclose(own[name], tensor, rtol=1e-5, atol=1e-6), name
        assert not (finished_run / ".recovered.training").exists()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["finished", "whole"]

    def test_stopped_before_any_checkpoint_it_leaves_nothing(self, finished_run, monkeypatch):
        def step(_, number):
            raise KeyboardInterrupt

        before = fingerprints(finished_run)
        monkeypatch.setattr(_Training, "_step", step)
        assert call("recover", finished_run, *SHORT) == 130
        assert fingerprints(finished_run) == before
        assert not (finished_run / ".recovered.training").exists()

    def test_stopped_while_it_replaces_an_older_one_leaves_that(self, finished_run, monkeypatch, capsys):
        recovered(capsys, finished_run, *SHORT)
        before = fingerprints(finished_run)

        def stop(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(recovery.huggingface, "verify", stop)
        assert call("recover", finished_run, *SHORT, "--seed", 1) == 130
        after = fingerprints(finished_run)
        assert {name: after[name] for name in before} == before
        assert {name.split("/")[0] for name in set(after) - set(before)} == {".recovered.training"}

    def test_one_process_recovers_into_a_folder(self, finished_run, monkeypatch, capsys):
        monkeypatch.setattr(recovery, "open_model", nothing)
        with RunFolder(finished_run / ".recovered.training").locked():
            assert "by one process, but another one holds" in refused(capsys, finished_run, *SHORT)
            assert (finished_run / ".recovered.training" / ".lock").exists()
