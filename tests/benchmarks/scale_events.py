"""A clock that jumps from event to event: what the simulation of benchmark `scale` runs on.

A process is a generator. What it yields, it waits for: a number of seconds, or a `Signal`. Nothing here knows what is
simulated; `tests/search/test_scale_simulation.py` holds it against closed forms.
"""

import heapq
from collections import deque
from collections.abc import Callable, Generator, Iterable
from itertools import count
from typing import Any

Process = Generator["float | Signal", Any, Any]


class Signal:
    """Something that happens once; processes wait for it by yielding it, and get its value."""

    def __init__(self, loop: "Loop") -> None:
        self.fired = False
        self._value: Any = None
        self._loop = loop
        self._waiting: list[Callable[[Any], None]] = []

    def fire(self, value: Any = None) -> None:
        """Let it happen now; whoever waits goes on at this time, in the order of waiting. Twice is once."""
        if self.fired:
            return
        self.fired, self._value = True, value
        for call in self._waiting:
            self._loop.after(0.0, call, value)
        self._waiting.clear()

    def then(self, call: Callable[[Any], None]) -> None:
        """Call with the value when it happens, or has happened."""
        if self.fired:
            self._loop.after(0.0, call, self._value)
        else:
            self._waiting.append(call)


class Loop:
    """The clock, in seconds, and what is still to happen."""

    def __init__(self) -> None:
        self.now = 0.0
        self._coming: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()  # events of the same time happen in the order in which they were asked for

    def after(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call so many seconds from now."""
        assert seconds >= 0, "nothing happens in the past"
        heapq.heappush(self._coming, (self.now + seconds, next(self._order), call, arguments))

    def start(self, process: Process) -> Signal:
        """Begin a process now; the signal fires with what it returns."""
        ended = Signal(self)
        self.after(0.0, self._go_on, process, ended, None)
        return ended

    def all_of(self, signals: Iterable[Signal]) -> Process:
        """Wait until all have fired; return their values."""
        found = []
        for signal in signals:
            found.append((yield signal))
        return found

    def run(self, until: float = float("inf")) -> float:
        """Let time pass until nothing is left to happen, or until a time; return the time."""
        while self._coming and self._coming[0][0] <= until:
            self.now, _, call, arguments = heapq.heappop(self._coming)
            call(*arguments)
        return self.now

    def _go_on(self, process: Process, ended: Signal, value: Any) -> None:
        try:
            wanted = process.send(value)
        except StopIteration as end:
            ended.fire(end.value)
            return
        if isinstance(wanted, Signal):
            wanted.then(lambda told: self._go_on(process, ended, told))
        else:
            self.after(wanted, self._go_on, process, ended, None)


class Server:
    """Serves so many at once, first come, first served: a scheduler, a store, a link.

    Args:
        loop: the clock.
        places: served at once.
    """

    def __init__(self, loop: Loop, places: int = 1) -> None:
        self._loop = loop
        self._free = places
        self._queue: deque[Signal] = deque()
        self.served = 0
        self.busy = 0.0  # seconds of all places together
        self.waited = 0.0  # seconds of all who were served together

    def use(self, seconds: float) -> Process:
        """Wait for a place and take it for so long."""
        came = self._loop.now
        if self._free:
            self._free -= 1
        else:
            turn = Signal(self._loop)
            self._queue.append(turn)
            yield turn
        self.waited += self._loop.now - came
        yield seconds
        self.served += 1
        self.busy += seconds
        if self._queue:
            self._queue.popleft().fire()  # who comes next has the place
        else:
            self._free += 1
