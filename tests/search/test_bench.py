"""Exports are timed in their clients, dense and pruned in turns, each in a process of its own."""

import json
from io import StringIO

import pytest
from rich.console import Console

from evaluator.timing import Timing
from search import bench as timing
from search.bench import BenchSettings, Speed, bench, speed_table
from search.export import llamacpp
from search.progress import Reporter
from space import ModelError, SettingError
from tests.search.command import call, refusal

SHORT = ("--prompt", 16, "--tokens", 4, "--rounds", 3, "--threads", 1)
needs_llama_cpp = pytest.mark.skipif(not llamacpp.is_installed(), reason="needs xllamacpp (secateur[llamacpp])")


def timed(capsys, *arguments):
    """Call it with success and return the rows."""
    assert call("bench", *arguments, *SHORT, "--json") == 0
    return json.loads(capsys.readouterr().out)["models"]


def check(row, file):
    assert row["file_bytes"] == file.stat().st_size
    assert row["peak_bytes"] > 20e6
    assert row["prefill"]["seconds"] > 0 < row["decode"]["seconds"]
    assert row["prefill"]["standard_error"] >= 0


def test_an_export_alone_is_timed_against_its_dense_model(finished_folder, stories, capsys):
    """As a table for a person."""
    assert call("bench", finished_folder / "export", *SHORT) == 0
    told = capsys.readouterr()
    assert "a prompt of 16 tokens, 4 written behind it" in told.out
    assert told.out.index(stories.name) < told.out.index("export")
    assert told.out.count("transformers") == 2
    assert "×" in told.out
    assert "Timing: 6 visits" in told.err


@needs_llama_cpp
def test_a_gguf_file_alone_is_timed_against_a_file_of_its_dense_model(finished_run, stories, capsys):
    assert call("export", finished_run, "--format", "gguf", "--type", "q8_0") == 0
    capsys.readouterr()
    [file] = (finished_run / "export-gguf").glob("*.gguf")
    dense, pruned = timed(capsys, file)
    assert dense["model"].endswith("/stories260K-Q8_0.gguf")
    assert {dense["client"], pruned["client"]} == {"llama.cpp"}
    check(pruned, file)
    assert dense["file_bytes"] > pruned["file_bytes"]
    # Several are compared with the first, whatever their clients.
    rows = timed(capsys, stories, finished_run / "export", file)
    assert [row["client"] for row in rows] == ["transformers", "transformers", "llama.cpp"]
    assert [row["prefill_speedup"] is None for row in rows] == [True, False, False]


def test_the_turns_are_interleaved_and_repeatable(monkeypatch):
    visits = []

    class Worker:
        def __init__(self, name):
            self.name = name
            self.stdin = self

        def write(self, _):
            visits.append(self.name)

        def flush(self):
            pass

    monkeypatch.setattr(timing, "_answer", lambda worker, _: {"prefill": 1.0, "decode": 1.0, "peak_bytes": 1})
    workers = [Worker(name) for name in "abc"]
    for _ in range(2):
        timing._rounds(workers, "abc", BenchSettings(rounds=4), Reporter(quiet=True))
    assert visits[:12] == visits[12:]
    assert all(set(visits[start : start + 3]) == set("abc") for start in range(0, 12, 3))
    assert len({tuple(visits[start : start + 3]) for start in range(0, 12, 3)}) > 1


def test_a_ratio_is_of_times_of_one_round():
    slow = [{"prefill": seconds, "decode": 1.0} for seconds in (1.0, 2.0, 4.0)]
    fast = [{"prefill": own["prefill"] / 2, "decode": 1.0} for own in slow]
    assert timing._ratio(slow, fast, "prefill") == (2.0, 0.0)


class TestRefusals:
    def test_a_model_that_does_not_say_what_it_was_made_of(self, stories, capsys):
        assert call("bench", stories) == 2
        sentence = refusal(capsys.readouterr().err)
        assert f"but {str(stories)!r} does not; give the dense model before it." in sentence

    def test_no_such_file(self, tmp_path, monkeypatch):
        monkeypatch.setattr(llamacpp, "is_installed", lambda: True)
        with pytest.raises(ModelError, match=r"must be there to be timed, but .* is not; check the path"):
            bench([tmp_path / "x.gguf"], BenchSettings())

    def test_no_llama_cpp(self, tmp_path, monkeypatch):
        monkeypatch.setattr(llamacpp, "is_installed", lambda: False)
        with pytest.raises(SettingError, match=r"package xllamacpp is not installed; pip install"):
            bench([tmp_path / "x.gguf"], BenchSettings())

    def test_a_damaged_model_says_what_its_client_said(self, finished_run, capsys):
        (finished_run / "export" / "model.safetensors").write_bytes(b"junk")
        assert call("bench", finished_run / "export", finished_run / "export", *SHORT) == 2
        assert "must run in its client to be timed" in refusal(capsys.readouterr().err)

    def test_too_few_rounds(self):
        with pytest.raises(SettingError, match="--rounds must be at least 2, but is 1; give more"):
            BenchSettings(rounds=1)
        with pytest.raises(SettingError, match=r"--dtype must be one of auto, .*, but is 'int8'; choose one"):
            BenchSettings(dtype="int8")


def test_the_table_fits_a_terminal():
    once, none = Timing(1.0, 0.01), (1.0, 0.0)
    speed = Speed("/a/smollm2-135m-pruned-Q4_K_M.gguf", "llama.cpp", 1, 2, once, Timing(0.01, 0.0), none, none)
    console = Console(width=80, file=StringIO())
    console.print(speed_table([speed], BenchSettings()))
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert any("512 ± 5" in line and "100 ± 0" in line for line in lines)
