"""Progress of long stages: what, how far, how fast, how long still."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

_LINE_SECONDS = 15.0  # where there is no terminal, a line this often
_PACE_SECONDS = 300.0  # that a rate is of: some steps take a look at held-out text, and as long as ten others


class Advance(Protocol):
    """Is told of each amount of work done, and of what there is to say about it."""

    def __call__(self, amount: int, note: str = "", /) -> None:
        """Add an amount."""


# Told of every stage and line of this process, also where nothing is shown: how a job tells the service that began it.
Listener = Callable[[dict[str, Any]], None]
_listeners: list[Listener] = []


def listen(listener: Listener) -> None:
    """Tell a function of all progress in this process from now on.

    Args:
        listener: gets `{"said": line}`, or `{"stage": title, "done": amount, "total": amount, "unit": word, "rate":
            amount a second or 0 where it is not known yet, "note": text}` at each step of a stage.
    """
    _listeners.append(listener)


def _tell(event: dict[str, Any]) -> None:
    for listener in _listeners:
        listener(event)


class _Pace:
    """How fast a stage goes now.

    What the first word tells is not counted, as in rich's: a stage that goes on after a kill begins with all that was
    done before.
    """

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()

    def at(self, done: int) -> float:
        """Return the units a second at the moment that so many are done; 0 where it is not known yet."""
        now = time.monotonic()
        if not self._marks:
            self._marks.append((now, done))
        while len(self._marks) > 1 and self._marks[1][0] < now - _PACE_SECONDS:
            self._marks.popleft()
        since, before = self._marks[0]
        if now - self._marks[-1][0] >= 1:
            self._marks.append((now, done))
        return (done - before) / (now - since) if now > since else 0.0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Return the rate of a stage in its own unit."""
        unit = task.fields.get("unit", "")
        return Text(f"{task.speed:,.1f} {unit}/s" if task.speed else "", style="cyan")


class Reporter:
    """Tells a person how a run is doing, on standard error so that standard output stays for results.

    Args:
        quiet: say nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._quiet = quiet

    def say(self, text: str) -> None:
        """Print one line."""
        _tell({"said": text})
        self._console.print(text, soft_wrap=True)

    @contextmanager
    def stage(self, title: str, total: int, unit: str) -> Iterator[Advance]:
        """Show a stage's progress while it lasts.

        Args:
            title: what is being done.
            total: units of work.
            unit: what is counted, in the plural.

        Yields:
            A function to be told of each amount of work done.
        """
        done, pace = 0, _Pace()
        told = {"stage": title, "total": total, "unit": unit}
        with self._shown(title, total, unit) as show:

            def advance(amount: int, note: str = "", /) -> None:
                nonlocal done
                done += amount
                event = {**told, "done": done, "rate": pace.at(done), "note": note}
                _tell(event)
                show(event)

            _tell({**told, "done": 0, "rate": 0.0, "note": ""})
            yield advance

    @contextmanager
    def _shown(self, title: str, total: int, unit: str) -> Iterator[Listener]:
        if self._quiet:
            yield lambda _: None
        elif self._console.is_terminal:
            columns = (
                TextColumn("{task.description:<34}"), BarColumn(24), MofNCompleteColumn(), _Rate(),
                TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
            )  # fmt: skip
            with Progress(*columns, console=self._console) as progress:
                task = progress.add_task(title, total=total, unit=unit, note="")
                yield lambda event: progress.update(task, completed=event["done"], note=event["note"])
        else:
            with self._lines(title, total, unit) as printed:
                yield printed

    @contextmanager
    def _lines(self, title: str, total: int, unit: str) -> Iterator[Listener]:
        started = last = time.monotonic()
        done = 0

        def show(event: dict[str, Any]) -> None:
            nonlocal done, last
            done, rate, now = event["done"], event["rate"], time.monotonic()
            if now - last >= _LINE_SECONDS and done < total:
                last = now
                speed = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
                left = f"{speed}/s, {(total - done) / rate:,.0f} s left" if rate else ""
                said = ", ".join(filter(None, (f"{title}: {done:,} of {total:,} {unit}", left, event["note"])))
                print(said, file=sys.stderr, flush=True)

        yield show
        seconds = time.monotonic() - started
        counted = f"{done:,} {unit} in " if total else ""  # what is read in one go has no count
        print(f"{title}: {counted}{seconds:,.1f} s", file=sys.stderr, flush=True)
