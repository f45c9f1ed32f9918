"""`secateur calibrate` and `secateur study calibration`: what they write, print, go on with and refuse."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from evaluator import CalibrationSet, generation, open_model
from evaluator.calibration_set import fingerprint
from evaluator.generation import CALIBRATION
from search import calibration_study
from search.calibration_files import tokenizer_of
from search.folder import RunFolder
from tests.search.command import call, fingerprints, refusal

SMALL = ("--sequences", 4, "--sequence-length", 32)
SETTINGS = ("wanda:0.6", "wanda:parameters=0.8")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in an empty folder, where default files go."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "160")
    return place


@pytest.fixture
def texts(data, tmp_path):
    """Three texts that differ: two short ones and one of the real ones."""
    stories = (data / "text" / "tinystories.txt").read_text()
    for name, first in (("one.txt", 0), ("two.txt", 20_000)):
        (tmp_path / name).write_text(stories[first : first + 10_000])
    return tmp_path / "one.txt", tmp_path / "two.txt", data / "text" / "wikitext2.test.txt"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def answer(capsys, *arguments):
    """Call a command that has to succeed and return its JSON."""
    assert call(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


class TestMaking:
    def test_a_set_is_saved_with_its_record(self, stories, texts, here, capsys):
        one, *_ = texts
        mix = ("--source", "self", "--source", f"{one}=3", "--drop-perplexity", 0.2, "--temperature", 0.8, "--top-k", 9)
        told = answer(capsys, "calibrate", "--model", stories, *mix, *SMALL, "--seed", 3, "--samples", 2)
        assert names(here) == ["calibration-stories260K-self-one.safetensors"]  # nothing of what was written on the way
        found = CalibrationSet.load(here / told["file"])
        assert found.tokens.shape == (4, 32)
        assert found.losses is not None
        assert {name: told[name] for name in found.record} == found.record
        assert told["made"]
        assert [(part["source"], part["sequences"]) for part in told["parts"]] == [("self", 1), ("one.txt", 3)]
        assert [part["dropped"]["perplexity"] for part in told["parts"]] == [1, 1]
        assert told["recipe"]["writing"]["temperatures"] == [0.8]
        assert told["recipe"]["writing"]["top_k"] == 9
        assert sum(told["statistics"]["perplexity"]["histogram"]["counts"]) == 4
        tokenizer = open_model(str(stories)).tokenizer
        assert told["samples"] == [tokenizer.decode(row)[:200] for row in found.tokens[:2]]

    def test_what_people_read(self, stories, capsys):
        assert call("calibrate", "--model", stories, *SMALL, "--samples", 1) == 0
        captured = capsys.readouterr()
        assert "Writing text: 128 tokens" in captured.err
        lines = captured.out.splitlines()
        record = CalibrationSet.load(_file("self")).record
        assert lines[0] == "Made: calibration-stories260K-self.safetensors"
        assert record["hash"] in lines[1]
        assert "4 sequences x 32 tokens" in lines[2]
        assert f"mean {record['statistics']['perplexity']['mean']:.2f}; quantiles 5 % " in lines[3]
        bars = [line for line in lines if " to " in line and "█" in line]
        assert [int(line.split()[-1]) for line in bars] == [
            count for count in record["statistics"]["perplexity"]["histogram"]["counts"] if count
        ]
        assert len([line for line in lines if line.startswith(("1. ", "2. "))]) == 1

    def test_the_same_command_again_makes_nothing(self, stories, texts, here, monkeypatch, capsys):
        command = ("calibrate", "--model", stories, "--source", "self", "--source", texts[0], *SMALL)
        first = answer(capsys, *command)
        before = fingerprints(here)
        monkeypatch.setattr("search.calibration_files.gather_set", _nothing)
        again = answer(capsys, *command)
        assert again == {**first, "made": False}
        assert call(*command) == 0
        assert capsys.readouterr().out.startswith("Already there: ")
        assert fingerprints(here) == before

    def test_a_set_goes_on_where_it_was_stopped(self, stories, here, monkeypatch, capsys):
        command = ("calibrate", "--model", stories, "--temperature", 1, "--temperature", 0.8, *SMALL)
        whole = answer(capsys, *command)
        _file("self").unlink()
        written, generate = [], generation.decode

        def stop(*arguments):
            if len(written) == 1:
                raise KeyboardInterrupt
            written.append(len(arguments[1]))
            return generate(*arguments)

        monkeypatch.setattr(generation, "decode", stop)
        assert call(*command) == 130
        assert names(here) == [".calibration-stories260K-self-generated"]
        left = []
        monkeypatch.setattr(generation, "decode", lambda *given: left.append(len(given[1])) or generate(*given))
        assert answer(capsys, *command) == whole
        assert (written, left) == ([2], [2])  # documents of either temperature
        assert names(here) == ["calibration-stories260K-self.safetensors"]

    def test_another_set_in_the_file_is_left_alone_unless_it_may_go(self, stories, texts, here, capsys):
        one, two, _ = texts
        command = ("calibrate", "--model", stories, "--out", "mine.safetensors", *SMALL)
        assert call(*command, "--source", one) == 0
        before = fingerprints(here)
        for other in (("--source", one, "--seed", 1), ("--source", two), ("--source", one, "--shortest", 3)):
            assert call(*command, *other) == 2
            sentence = refusal(capsys.readouterr().err)
            assert "holds another set (4 x 32 of one.txt, seed 0, for " in sentence
            assert sentence.endswith("choose another file with --out, or add --overwrite.")
        changed = one.read_text()
        one.write_text(changed[5_000:])  # the same name holds another text
        assert call(*command, "--source", one) == 2
        assert fingerprints(here) == before
        assert call(*command, "--source", two, "--overwrite") == 0
        assert CalibrationSet.load(here / "mine.safetensors").record["parts"][0]["source"] == "two.txt"

    def test_what_is_no_set_is_left_alone(self, stories, texts, here, capsys):
        (here / "thesis.safetensors").write_text("x")
        assert call("calibrate", "--model", stories, "--source", texts[0], "--out", "thesis.safetensors", *SMALL) == 2
        assert "holds something else" in refusal(capsys.readouterr().err)
        assert (here / "thesis.safetensors").read_text() == "x"

    def test_one_process_makes_a_file(self, stories, here, capsys):
        with RunFolder(here / ".calibration-stories260K-self-generated").locked():
            assert call("calibrate", "--model", stories, *SMALL) == 2
        assert "another one holds" in refusal(capsys.readouterr().err)


def _file(sources):
    return Path(f"calibration-stories260K-{sources}.safetensors")


def _nothing(*_, **__):
    raise AssertionError("nothing is to be made or measured")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "self=much"], "is 'self=much'; write for example c4=0.5"),
        (["--source", "self=0"], "must be above 0, but self has 0.0"),
        (["--source", "self", "--source", "self"], "self, self"),
        (["--source", "nothing.txt"], "there is no 'nothing.txt'"),
        (["--source", "picture.png"], "but is 'picture.png'"),
        (["--source", "ONE", "--sequences", 999], "'ONE' holds "),
        (["--source", "ONE", "--prefix-tokens", 3], "--prefix-tokens is about text that the model writes"),
        (["--source", "ONE", "--temperature", 3], "--temperature is about text that the model writes"),
        (["--prefix", "nothing.txt"], "there is no 'nothing.txt'"),
        (["--temperature", 0], "temperatures must be above 0"),
        (["--drop-perplexity", 1], "A share of 0 to below 1"),
        (["--near-duplicates", 2], "near must be a Jaccard similarity"),
        (["--sequence-length", 1024], "--sequence-length must be at most 512 tokens for this model, but is 1024"),
        (["--out", "set.bin"], "must be kept in a .safetensors file, but 'set.bin' is called otherwise"),
        (["--model", "nothing/at/all"], "none of these; check the path"),
    ],
)
def test_a_refused_set_leaves_nothing(options, message, stories, texts, here, capsys):
    given = [texts[0] if option == "ONE" else option for option in options]
    assert call("calibrate", "--model", stories, *SMALL, *given) == 2
    assert message.replace("ONE", str(texts[0])) in refusal(capsys.readouterr().err)
    assert names(here) == []


def test_a_set_needs_a_model(capsys):
    assert call("calibrate") == 2
    assert "--model must say which model" in refusal(capsys.readouterr().err)


class TestInspecting:
    @pytest.fixture
    def made(self, stories, capsys):
        return answer(capsys, "calibrate", "--model", stories, *SMALL, "--out", "mine.safetensors")

    def test_a_set_is_shown_without_a_model(self, made, here, capsys):
        before = fingerprints(here)
        told = answer(capsys, "calibrate", "--inspect", "mine.safetensors")
        assert told == {**made, "made": False, "samples": []}
        assert call("calibrate", "--inspect", "mine.safetensors") == 0
        out = capsys.readouterr().out
        assert out.startswith("Calibration set: mine.safetensors\n")
        assert made["hash"] in out
        assert out.endswith("add --model to see them.\n")
        assert call("calibrate", "--inspect", "mine.safetensors", "--samples", 0) == 0
        assert "--model" not in capsys.readouterr().out
        assert fingerprints(here) == before

    def test_a_tokenizer_is_enough_for_samples(self, made, stories, tmp_path, capsys):
        shutil.copytree(stories, tmp_path / "other", ignore=shutil.ignore_patterns("*.safetensors"))
        told = answer(capsys, "calibrate", "--inspect", "mine.safetensors", "--model", tmp_path / "other")
        assert told["samples"] == made["samples"]
        assert len(told["samples"]) == 3
        assert call("calibrate", "--inspect", "mine.safetensors", "--model", tmp_path / "other") == 0
        assert "was made for" in capsys.readouterr().out  # the model's name is another
        assert call("calibrate", "--inspect", "mine.safetensors", "--model", stories) == 0
        assert "was made for" not in capsys.readouterr().out

    def test_what_a_terminal_would_obey_is_written_out(self, made, here, stories, capsys):
        written = "Once\n\x1b[31m"
        tokenizer = tokenizer_of(str(stories))
        tokens = torch.tensor([tokenizer(written, add_special_tokens=False)["input_ids"]])
        record = {**CalibrationSet.load(here / "mine.safetensors").record, "hash": fingerprint(tokens)}
        CalibrationSet(tokens, record).save(here / "lines.safetensors")
        command = ("calibrate", "--inspect", "lines.safetensors", "--model", stories)
        assert call(*command) == 0
        assert capsys.readouterr().out.endswith("\n1. Once\\n\\x1b[31m\n")
        assert answer(capsys, *command)["samples"] == [written]

    def test_options_about_making_are_refused(self, made, capsys):
        assert call("calibrate", "--inspect", "mine.safetensors", "--drop-perplexity", 0.1) == 2
        assert "--drop-perplexity is about making one" in refusal(capsys.readouterr().err)

    def test_other_files_are_refused(self, here, capsys):
        (here / "x.safetensors").write_text("x")
        for file in ("x.safetensors", "nothing.safetensors"):
            assert call("calibrate", "--inspect", file) == 2
            assert "that `secateur calibrate` wrote" in refusal(capsys.readouterr().err)


class TestStudy:
    @pytest.fixture
    def command(self, stories, texts):
        """Two sources, two settings, two draws."""
        one, two, test = texts
        return (
            "study", "calibration", "--model", stories, "--source", "self", "--source", f"mix=self+{one}",
            "--text", two, "--text", test, "--draws", 2, *SMALL, "--report-sequences", 2, *_all("--setting", SETTINGS),
        )  # fmt: skip

    def test_a_study_measures_once_and_tells_all(self, command, here, monkeypatch, capsys):
        told = answer(capsys, *command)
        folder = here / "studies" / "calibration-stories260K"
        kept = json.loads((folder / "study.json").read_text())
        assert told == {"study": _under("study.json"), "figure": _under("study.html"), **kept}
        cells = {(row["source"], row["setting"], row["draw"]) for row in told["rows"]}
        assert cells == {
            (source, setting, draw) for source in ("self", "mix") for setting in SETTINGS for draw in (0, 1)
        }
        assert set(told["texts"]) == {"two.txt", "wikitext2.test.txt"}
        assert told["winners"] == {
            setting: min(own, key=lambda source, own=own: own[source]["perplexity"]["all"])
            for setting, own in told["summary"].items()
        }
        monkeypatch.setattr(calibration_study, "gather_set", _nothing)
        assert answer(capsys, *command) == told

        assert call(*command) == 0
        head, _, *rows = capsys.readouterr().out.splitlines()[: 2 + 2]
        assert head.split() == ["Calibrated", "on", *SETTINGS]
        for row, source in zip(rows, ("self", "mix"), strict=True):
            cells = [f"{told['summary'][setting][source]['perplexity']['all']:,.2f} ± " for setting in SETTINGS]
            assert row.split()[0] == source
            assert all(cell in row for cell in cells)
            assert row.count("★") == list(told["winners"].values()).count(source)

    def test_the_page_fetches_nothing(self, command, here, capsys):
        told = answer(capsys, *command)
        page = (here / told["figure"]).read_text()
        assert "default-src 'none'" in page
        assert "<script src" not in page
        assert "<link" not in page
        assert "What to calibrate stories260K on" in page

    def test_more_draws_and_sources_measure_those_alone(self, command, texts, monkeypatch, capsys):
        answer(capsys, *command)
        made, gather = [], calibration_study.gather_set
        monkeypatch.setattr(
            calibration_study, "gather_set", lambda *given, **more: made.append(given[4]) or gather(*given, **more)
        )
        told = answer(capsys, *command, "--source", texts[0], "--draws", 3)
        assert len(told["rows"]) == 3 * 2 * 3
        assert made == [2, 2, 0, 1, 2]  # the seeds of the new draws

    def test_self_filtered_leaves_out_a_fifth(self, stories, texts, capsys):
        _, two, _ = texts
        told = answer(
            capsys, "study", "calibration", "--model", stories, "--text", two, "--draws", 1, *SMALL,
            "--report-sequences", 2, "--setting", "magnitude:0.5",
        )  # fmt: skip
        filters = {source: recipe["filters"]["perplexity"] for source, recipe in told["sources"].items()}
        assert filters == {"self": 0.0, "self-filtered": 0.2}
        assert [row["parts"][0]["dropped"]["perplexity"] for row in told["rows"]] == [0, 1]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--setting", "wanda"], "must be CRITERION:LEVEL, but is 'wanda'"),
            (["--setting", "guess:0.6"], "but is 'guess'; choose one"),
            (["--setting", "wanda:much"], "write for example 0.6"),
            (["--text", "ONE"], "'ONE' is a source; give another as --text"),
            (["--text", "self"], "'self' is a source"),
            (["--source", "nothing.txt"], "there is no 'nothing.txt'"),
            (["--source", "mix=ONE"], "two are called 'mix'; write NAME=SOURCE"),
            (["--source", "self-filtered+ONE"], "is in a mix"),
            (["--source", "self-filtered", "--drop-perplexity", 0.2], "to be filtered again"),
            (["--sequences", 9999], "sequences of 32 tokens to calibrate on, but 'ONE' holds "),
            (["--report-sequences", 9999], "9999 sequences of 32 tokens to measure on"),
            (["--sequence-length", 1024], "--sequence-length must be at most 512"),
        ],
    )
    def test_a_refused_study_leaves_no_folder(self, options, message, command, texts, here, capsys):
        told = message.replace("ONE", str(texts[0]))
        given = [str(option).replace("ONE", str(texts[0])) for option in options]
        assert call(*command, *given) == 2
        assert told in refusal(capsys.readouterr().err)
        assert names(here) == []

    def test_a_study_needs_a_model_and_a_text(self, stories, capsys):
        assert call("study", "calibration", "--text", "x.txt") == 2
        assert "--model must say" in refusal(capsys.readouterr().err)
        assert call("study", "calibration", "--model", stories) == 2
        assert "--text must say" in refusal(capsys.readouterr().err)

    def test_a_foreign_folder_is_refused(self, command, here, capsys):
        (here / "thesis").mkdir()
        (here / "thesis" / "chapter.tex").write_text("x")
        (here / "run").mkdir()
        for file in ("config.yaml", "layout.json"):  # as a run has them
            (here / "run" / file).write_text("{}")
        for folder in (here / "thesis", here / "run"):
            before = fingerprints(folder)
            assert call(*command, "--out", folder) == 2
            assert "must be new or hold a study" in refusal(capsys.readouterr().err)
            assert fingerprints(folder) == before


def _all(option, values):
    return [each for value in values for each in (option, value)]


def _under(name):
    return f"studies/calibration-stories260K/{name}"


@pytest.mark.parametrize("command", [("calibrate",), ("study", "calibration")])
def test_help_has_an_example(command, capsys):
    assert call(*command, "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"Example: secateur {' '.join(command)} " in text
    assert "--json" in text


def test_help_tells_the_defaults_of_writing(capsys):
    assert call("calibrate", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for told in (
        f"{CALIBRATION.prefix} (default)",
        f"default {CALIBRATION.document}.",
        f"by turns; default {CALIBRATION.temperatures[0]:.0f}.",
        f"to draw from; default {CALIBRATION.top_p:.0f}.",
        f"default {CALIBRATION.top_k}, all.",
        f"default {CALIBRATION.repetition_penalty:.0f}, none.",
    ):
        assert told in text
