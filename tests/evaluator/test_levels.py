"""Prepared levels: made once, within bounds, and made again rather than trusted when damaged."""

import os
import time
from types import SimpleNamespace

import pytest
import torch

from evaluator.memory import levels_allowance
from evaluator.pruning import levels as levels_module
from evaluator.pruning.levels import Levels, disk_allowance, sweep
from space import Architecture, Criterion
from tests.evaluator.pieces import logits_of, make_surgeon, mixed


def maker(value, made, seconds=0.0):
    def make():
        made.append(value)
        time.sleep(seconds)
        return {"weight": torch.full((16,), float(value))}  # 64 bytes

    return make


def test_a_level_is_made_once():
    store, made = Levels(), []
    first = store.get("a", maker(1, made))
    assert store.get("a", maker(2, made)) is first
    assert made == [1]


def test_the_least_recently_used_leave_when_memory_is_full():
    store, made = Levels(memory_bytes=128), []
    for key in ("a", "b", "a", "c"):  # a is younger than b when c comes
        store.get(key, maker(key == "a", made))
    made.clear()
    for key in ("a", "c", "b"):
        store.get(key, maker(0, made))
    assert len(made) == 1
    store.get("large", lambda: {"weight": torch.zeros(1000)})
    made.clear()
    store.get("b", maker(0, made))
    assert made == []  # what does not fit pushes nothing out


@pytest.fixture
def slow(monkeypatch):
    monkeypatch.setattr(levels_module, "SLOW_SECONDS", 0.1)


def test_slow_levels_outlive_the_process(tmp_path, slow):
    made = []
    Levels(tmp_path).get("a", maker(1, made, 0.15))
    Levels(tmp_path).get("quick", maker(2, made))
    again = Levels(tmp_path)
    assert again.get("a", maker(3, made, 0.15))["weight"].tolist() == [1.0] * 16
    again.get("quick", maker(4, made))
    assert made == [1, 2, 4]
    assert not list(tmp_path.glob("*.partial"))


def test_beside_the_processor_levels_from_the_folder_are_kept_in_memory(tmp_path, slow, monkeypatch):
    made = []
    Levels(tmp_path).get("a", maker(1, made, 0.15))
    for elsewhere in (False, True):
        if elsewhere:  # what the processor is, for want of another device
            monkeypatch.setattr(levels_module, "_CPU", torch.device("meta"))
        again, reads = Levels(tmp_path), []
        read = again._read
        monkeypatch.setattr(again, "_read", lambda key, read=read, reads=reads: (reads.append(key), read(key))[1])
        for _ in range(3):
            assert again.get("a", maker(2, made), torch.device("cpu"))["weight"].tolist() == [1.0] * 16
        assert len(reads) == (1 if elsewhere else 3)
    assert made == [1]


def test_a_gpu_keeps_levels_in_a_share_of_what_it_has_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 * 2**30, 80 * 2**30))
    assert levels_allowance(torch.device("cuda"), 2**20) == 2 * 2**30
    assert levels_allowance(torch.device("cpu"), 2**20) == 2**25


def test_what_others_left_half_written_goes_once_it_is_old(tmp_path):
    young, old = tmp_path / "a.1.partial", tmp_path / "b.2.partial"
    for file in (young, old):
        file.write_text("half")
    os.utime(old, (0, 0))
    sweep(tmp_path)
    assert (young.exists(), old.exists()) == (True, False)
    sweep(tmp_path / "missing")


def test_the_folder_stays_within_its_bound(tmp_path, slow):
    made = []
    for process in range(2):
        store = Levels(tmp_path, disk_bytes=400)
        for key in range(4):
            store.get(f"{process} {key}", maker(1, made, 0.15))
    assert 0 < sum(file.stat().st_size for file in tmp_path.iterdir()) <= 400


def test_a_large_disk_may_be_used_more(tmp_path, monkeypatch):
    free = 0
    monkeypatch.setattr("evaluator.pruning.levels.shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    folder = tmp_path / "not" / "there"
    assert disk_allowance(folder) == 2**32
    free = 2**40
    assert disk_allowance(folder) == 2**37
    free -= 2**36  # which its own levels take by now
    assert disk_allowance(folder, 2**36) == 2**37


def test_a_damaged_level_is_made_again(tmp_path, slow):
    made = []
    Levels(tmp_path).get("a", maker(1, made, 0.15))
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-10])
    assert Levels(tmp_path).get("a", maker(2, made, 0.15))["weight"].tolist() == [2.0] * 16
    assert Levels(tmp_path).get("a", maker(3, made, 0.15))["weight"].tolist() == [2.0] * 16


@pytest.mark.parametrize("criterion", [Criterion(), Criterion(weights="sparsegpt")], ids=str)
def test_what_was_prepared_is_not_computed_again(pico, criterion, monkeypatch):
    surgeon = make_surgeon(pico, criterion)
    before, told = logits_of(pico.model), []
    surgeon.prepare([mixed(pico)], told.append)
    assert told == [1] * 6
    assert torch.equal(logits_of(pico.model), before)
    assert surgeon.installed == Architecture.dense(pico.layout)
    for name in ("narrow", "thin"):
        monkeypatch.setattr(f"evaluator.pruning.apply.{name}", lambda *_: pytest.fail("computed again"))
    surgeon.install(mixed(pico))
    surgeon.restore()
    assert torch.equal(logits_of(pico.model), before)
