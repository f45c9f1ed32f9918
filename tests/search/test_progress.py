"""What a person is told while a stage lasts."""

import pytest

from search import progress
from search.progress import Reporter


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = _Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


@pytest.fixture
def told(monkeypatch):
    found = []
    monkeypatch.setattr(progress, "_listeners", [found.append])
    return found


def steps(clock, amounts, seconds):
    with Reporter().stage("Training", 400, "steps") as advance:
        for amount in amounts:
            clock.now += seconds
            advance(amount, "loss 1")


def test_what_was_done_before_a_kill_is_not_this_rate(clock, told, capsys):
    steps(clock, [220] + 10 * [1], 4.0)
    assert [event["rate"] for event in told] == [0.0, 0.0, *(10 * [0.25])]
    assert told[-1]["done"] == 230
    assert "Training: 223 of 400 steps, 0.25/s, 708 s left, loss 1" in capsys.readouterr().err


def test_a_rate_is_of_the_last_five_minutes(clock, told):
    steps(clock, 90 * [1] + 90 * [2], 4.0)
    assert told[90]["rate"] == pytest.approx(0.25)
    assert told[-1]["rate"] == pytest.approx(0.5)


def test_steps_of_minutes_have_a_rate_from_the_second_on(clock, told, capsys):
    steps(clock, [1, 1, 1], 300.0)
    assert [event["rate"] for event in told] == pytest.approx([0, 0, 1 / 300, 1 / 300])
    lines = capsys.readouterr().err
    assert "Training: 1 of 400 steps, loss 1\n" in lines
    assert "Training: 2 of 400 steps, 0.00333/s, 119,400 s left, loss 1\n" in lines


def test_fast_work_is_counted_whole(clock, told, capsys):
    steps(clock, 400 * [1], 0.05)
    assert [event["rate"] for event in told[2:]] == pytest.approx(399 * [20.0])
    assert "Training: 400 steps in 20.0 s" in capsys.readouterr().err


def test_what_is_read_in_one_go_has_no_count(clock, capsys):
    with Reporter().stage("Reading text", 0, "tokens"):
        clock.now += 2.0
    assert capsys.readouterr().err == "Reading text: 2.0 s\n"
