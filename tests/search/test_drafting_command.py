"""`secateur draft`: which prompts are continued, what is told of a draft, and what is refused."""

import itertools
import json
import shutil
import sys
from types import SimpleNamespace

import pytest

from evaluator import open_model
from evaluator.openings import OPENINGS
from evaluator.recovery.drafting import measure_drafting
from evaluator.recovery.examples import encode_prompt
from evaluator.recovery.student import open_student
from search.drafting import prompt_ids
from space import TextError
from tests.search.command import call, fingerprints, refusal
from tests.search.recoveries import QUESTIONS, jsonl

FEW = ("--count", 3, "--tokens", 12, "--draft-tokens", 4)
COUNTED = (
    "acceptance_rate",
    "acceptance_rate_standard_error",
    "mean_accepted_length",
    "mean_accepted_length_standard_error",
    "prompts",
    "tokens",
    "draft_tokens",
    "same_text",
)


@pytest.fixture
def dense(stories):
    return open_model(str(stories), dtype="float32")


def drafted(capsys, *arguments):
    """Call a measurement that has to succeed and return its JSON."""
    assert call("draft", *arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments):
    """Call a measurement that has to be refused and return the sentence."""
    assert call("draft", *arguments) == 2
    return refusal(capsys.readouterr().err)


def story(data, tmp_path, characters=3_000):
    file = tmp_path / "story.txt"
    file.write_text((data / "text" / "tinystories.txt").read_text()[:characters])
    return file


class TestDrafting:
    @pytest.fixture(params=["openings", "text", "examples"])
    def prompts(self, request, data, tmp_path):
        """Return what --prompts says."""
        files = {"text": lambda: story(data, tmp_path), "examples": lambda: jsonl(tmp_path, *QUESTIONS)}
        return str(files[request.param]()) if request.param in files else None

    def test_an_export_drafts_for_the_model_it_is_of(self, prompts, finished_folder, dense, capsys):
        before = fingerprints(finished_folder)
        export = finished_folder / "export"
        told = drafted(capsys, export, *FEW, *(("--prompts", prompts) if prompts else ()))
        assert fingerprints(finished_folder) == before
        assert (told["dense"], told["draft"]) == (dense.name, str(export))
        assert (told["prompts"], told["tokens"], told["draft_tokens"], told["same_text"]) == (3, 36, 4, 1)
        assert 0 < told["acceptance_rate"] < 1
        assert told["environment"]["dtype"] == "float32"
        # Counted as the same prompts are by hand; speed is of the moment.
        draft = open_student(export).model
        again = measure_drafting(dense, draft, prompt_ids(dense, prompts, 3, 0), 12, 4).to_dict()
        assert {name: told[name] for name in COUNTED} == {name: again[name] for name in COUNTED}

    def test_the_dense_model_itself_is_always_accepted(self, stories, capsys):
        told = drafted(capsys, stories, "--dense", stories, *FEW, "--tokens", 10)
        assert (told["acceptance_rate"], told["mean_accepted_length"]) == (1, 5)

    def test_what_people_read(self, stories, capsys):
        assert call("draft", stories, "--dense", stories, *FEW, "--tokens", 10) == 0
        captured = capsys.readouterr()
        lines = captured.out.splitlines()
        assert lines[0] == (
            "Accepted 100.0% ± 0.0% of the drafted tokens, 5.00 ± 0.00 tokens a pass of the dense model"
        )
        assert " tokens/s with the draft, " in lines[1]
        assert lines[1].endswith(" times as fast")
        assert len(lines) == 2
        assert "Writing with and without a draft: 3 prompts in" in captured.err

    def test_another_seed_takes_other_prompts(self, finished_folder, capsys):
        one, same, other = (drafted(capsys, finished_folder / "export", *FEW, "--seed", seed) for seed in (0, 0, 1))
        assert one["acceptance_rate"] == same["acceptance_rate"]
        assert {name: one[name] for name in COUNTED} != {name: other[name] for name in COUNTED}


class TestPrompts:
    def test_openings_begin_with_bos(self, dense):
        found = prompt_ids(dense, None, 20, 0)
        assert {ids[0] for ids in found} == {dense.tokenizer.bos_token_id}
        known = [dense.tokenizer(text, add_special_tokens=False)["input_ids"] for text in OPENINGS]
        assert all(ids[1:] in known for ids in found)
        assert len(set(map(tuple, found))) == 20
        assert prompt_ids(dense, None, 20, 0) == found != prompt_ids(dense, None, 20, 1)

    def test_beginnings_of_a_text(self, dense, data, tmp_path):
        file = story(data, tmp_path)
        whole = dense.tokenizer(file.read_text(), add_special_tokens=False)["input_ids"]
        pieces = [whole[first : first + 64] for first in range(0, len(whole) - 63, 64)]
        found = prompt_ids(dense, str(file), len(pieces), 0)  # to the last
        assert sorted(found) == sorted(pieces)
        assert found != pieces
        with pytest.raises(TextError, match=rf"{len(pieces) + 1} prompts .*story.txt gave {len(pieces)}; give more"):
            prompt_ids(dense, str(file), len(pieces) + 1, 0)

    def test_examples_are_asked_as_the_model_is_talked_to(self, dense, tmp_path):
        dense.tokenizer.chat_template = "{{ messages[0]['content'] }}{% if add_generation_prompt %} Answer:{% endif %}"
        file = jsonl(tmp_path, *QUESTIONS)
        asked = [encode_prompt(dense.tokenizer, each["question"]) for each in QUESTIONS]
        assert prompt_ids(dense, str(file), 4, 0) == asked
        assert all(dense.tokenizer.decode(ids).endswith("Answer:") for ids in asked)
        with pytest.raises(
            TextError, match=r"5 prompts to continue, but .*rows.jsonl gave 4; give more text, or lower"
        ):
            prompt_ids(dense, str(file), 5, 0)

    def test_there_are_only_so_many_openings(self, dense):
        with pytest.raises(TextError, match=f"1000 prompts to continue, but our own openings gave {len(OPENINGS)}"):
            prompt_ids(dense, None, 1000, 0)

    def test_the_hub_is_read_no_further_than_needed(self, dense, monkeypatch):
        rows = ({"text": f"Once upon a time there were {count} cats."} for count in itertools.count())
        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: rows))
        assert [len(ids) for ids in prompt_ids(dense, "c4", 5, 0)] == [64] * 5


class TestRefusals:
    def test_an_export_that_does_not_name_its_dense_model(self, finished_folder, tmp_path, capsys):
        export = shutil.copytree(finished_folder / "export", tmp_path / "export")
        record = json.loads((export / "secateur.json").read_text())
        del record["model"]
        (export / "secateur.json").write_text(json.dumps(record))
        assert f"but '{export}' names none; add --dense." in refused(capsys, export, *FEW)
        (export / "secateur.json").unlink()
        assert f"but '{export}' names none; add --dense." in refused(capsys, export, *FEW)

    def test_a_dense_model_of_another_tokenizer(self, finished_folder, pico_folder, capsys):
        export = finished_folder / "export"
        sentence = refused(capsys, export, "--dense", pico_folder, *FEW)
        assert "must have its dense model's vocabulary, but '" in sentence
        assert f" of {export} and " in sentence
        assert f" of {pico_folder} (words that differ: " in sentence

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--prompts", "missing.jsonl"], "there is no 'missing.jsonl'; check the path."),
            (["--prompts", "missing.txt"], "there is no 'missing.txt'; check the path."),
            (["--prompts", "FIELDS"], "must have the fields instruction + answer, "),
            (["--tokens", 600], "must fit into the model's 512 positions, but prompt 1 has "),
            (["--count", 1000], "There must be 1000 prompts to continue, but our own openings gave "),
            (["--dense", "nothing/at/all"], "'nothing/at/all' is none of these; check the path."),
        ],
    )
    def test_options(self, options, message, finished_folder, tmp_path, capsys):
        (tmp_path / "fields.jsonl").write_text('{"text": "x"}')
        given = [tmp_path / "fields.jsonl" if option == "FIELDS" else option for option in options]
        assert message in refused(capsys, finished_folder / "export", *FEW, *given)

    def test_a_folder_without_a_model(self, tmp_path, capsys):
        assert f"a config.json, but '{tmp_path}' holds none" in refused(capsys, tmp_path, *FEW)
