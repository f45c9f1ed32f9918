"""Workers that take a search's tasks from a store of claims, fail, come late, and wait for each other.

Built on `scale_events`, of which one `Cluster` is a world with its own clock. Figures come in seconds.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tests.benchmarks.scale_costs import Costs
from tests.benchmarks.scale_events import Loop, Process, Server, Signal
from tests.benchmarks.scale_plan import Stage

POLL_SECONDS = 0.2  # `evaluator.evaluator`
_REPAIR_SECONDS = 300.0  # until a worker that failed has another machine


@dataclass(frozen=True)
class Weather:
    """What goes wrong.

    Args:
        spread: standard deviation of a task's time, by its mean.
        slow_workers: share of the workers that are slow,
        slowness: and how many times as long they take.
        failures_per_hour: of a GPU; None takes the machine's.
        late: seconds over which workers come, evenly.
    """

    spread: float = 0.06
    slow_workers: float = 0.01
    slowness: float = 1.5
    failures_per_hour: float | None = None
    late: float = 0.0


CALM = Weather(0.0, 0.0, 1.0, 0.0)


@dataclass
class _Task:
    seconds: float
    owner: object
    done: Signal


class Cluster:
    """Workers, their store and their network.

    Args:
        costs: of a search on one of them.
        workers: groups of GPUs that hold a model each.
        weather: what goes wrong.
        seed: of all that is drawn.
        joined: whether workers open the model in the beginning, or it is open already.
    """

    def __init__(
        self, costs: Costs, workers: int, weather: Weather = CALM, seed: int = 0, joined: bool = False
    ) -> None:
        self.loop = Loop()
        self.costs, self.code, self.weather = costs, costs.code, weather
        self.workers = workers
        self.store = Server(self.loop)
        self.storage = Server(self.loop)
        self.busy = 0.0  # seconds that workers spent on tasks, lost ones included
        self.lost = 0.0  # of them on tasks that were lost
        self.failures = 0
        self.spent: defaultdict[str, float] = defaultdict(float)  # seconds by stage, and `thinking`
        self.opened = Signal(self.loop)  # when workers may open the model
        self._rng = np.random.default_rng(seed)
        self._tasks: deque[_Task] = deque()
        self._idle: deque[Signal] = deque()
        self._running: Counter[object] = Counter()
        self._thinking: dict[object, Server] = {}
        rate = costs.machine.failures_per_hour if weather.failures_per_hour is None else weather.failures_per_hour
        self._between_failures = 3600 / (rate * costs.group) if rate else float("inf")
        if joined:
            self.opened.fire()
        slow = self._rng.random(workers) < weather.slow_workers
        for number in range(workers):
            self.loop.start(self._worker(number, weather.slowness if slow[number] else 1.0, joined))

    def search(self, stages: Sequence[Stage]) -> Process:
        """Go through the stages of a search; returns the seconds that it took."""
        began, owner = self.loop.now, object()
        setting_up = [stage for stage in stages if stage.before_joining]
        places = [place for place, stage in enumerate(stages) if stage.name.startswith("rounds")] or [len(stages)]
        rounds = stages[places[0] : places[-1] + 1]
        if self.code.calibration == "all_workers":
            self.opened.fire()
        for stage in setting_up:
            yield from self._stage(stage, owner)
        self.opened.fire()
        for stage in stages[len(setting_up) : places[0]]:
            yield from self._stage(stage, owner)
        if rounds:
            owners = [owner if self.code.drivers == "one" else object() for _ in range(self.code.chains)]
            chains = [self.loop.start(self._chain(rounds, each)) for each in owners]
            yield from self.loop.all_of(chains)
        for stage in stages[places[-1] + 1 :]:
            yield from self._stage(stage, owner)
        return self.loop.now - began

    def _chain(self, stages: Sequence[Stage], owner: object) -> Process:
        for stage in stages:
            yield from self._stage(stage, owner)

    def _stage(self, stage: Stage, owner: object) -> Process:
        began = self.loop.now
        if stage.driver:  # one thought after the other
            yield from self._thinking.setdefault(owner, Server(self.loop)).use(stage.driver)
        thought = self.loop.now
        told = [self._put(seconds, owner) for seconds in stage.tasks]
        yield from self.loop.all_of(told)
        if self.code.claims == "polled" and self.workers > 1 and told:
            yield POLL_SECONDS / 2  # until the search looks whether others are done
        self.spent["thinking"] += thought - began
        self.spent[stage.name] += self.loop.now - thought

    def _put(self, seconds: float, owner: object) -> Signal:
        task = _Task(seconds, owner, Signal(self.loop))
        self._offer(task)
        return task.done

    def _offer(self, task: _Task) -> None:
        if self._idle:
            self._idle.popleft().fire(task)
        else:
            self._tasks.append(task)

    def _worker(self, number: int, slowness: float, open_already: bool) -> Process:
        if number:  # the first is the one that the run belongs to
            yield self.opened
        if self.weather.late:
            yield self.weather.late * number / self.workers
        if not open_already:
            yield from self._open(number)
        while True:
            if self._tasks:
                task = self._tasks.popleft()
            else:
                turn = Signal(self.loop)
                self._idle.append(turn)
                task = yield turn
            yield from self._do(task, number, slowness)

    def _do(self, task: _Task, number: int, slowness: float) -> Process:
        seconds = task.seconds * slowness * self._unevenness()
        yield from self._commit(task, 0.5)
        lasts = self._rng.exponential(self._between_failures) if self._between_failures < float("inf") else seconds + 1
        self._running[task.owner] += 1
        yield min(seconds, lasts)
        self._running[task.owner] -= 1
        self.busy += min(seconds, lasts)
        if lasts < seconds:
            self.failures += 1
            self.lost += lasts
            self.loop.after(max(0.0, self.code.forgotten - lasts), self._offer, task)
            yield _REPAIR_SECONDS
            yield from self._open(number)
            return
        yield from self._commit(task, 0.5)
        task.done.fire()

    def _commit(self, task: _Task, share: float) -> Process:
        """Wait for the store behind all who look for work in vain, and for the transactions of others."""
        if self.code.claims == "polled" and (running := self._running[task.owner]):
            yield polling_wait(len(self._idle), running, self.code.look_seconds)
        yield from self.store.use(share * self.code.store_seconds)

    def _open(self, number: int) -> Process:
        """Read the weights, and the statistics where every worker reads them."""
        machine, code = self.costs.machine, self.code
        size = float(self.costs.weights_bytes)
        if code.weights == "broadcast" and number:
            yield size / machine.network  # from a neighbour that has just got them
            size = 0.0
        if number and code.statistics == "everywhere":
            size += self.costs.statistics_bytes
        gpus = self.workers * self.costs.group
        came = self.loop.now
        yield from self.storage.use(size / machine.storage(gpus))
        yield max(0.0, size / machine.files - (self.loop.now - came))

    def _unevenness(self) -> float:
        spread = self.weather.spread
        if not spread:
            return 1.0
        sigma = np.sqrt(np.log1p(spread**2))
        return float(self._rng.lognormal(-(sigma**2) / 2, sigma))


def polling_wait(pollers: int, pending: int, look_seconds: float, poll_seconds: float = POLL_SECONDS) -> float:
    """Return how long a transaction waits behind processes that look for work in vain, one look at a time being served.

    Each looks at all that is pending, then sleeps. In a closed queue that is saturated a share poll / (pollers' cycle)
    sleeps and the others stand in line (operational analysis: throughput is 1 / look_seconds); else nobody does.

    Args:
        pollers: processes that look.
        pending: architectures that others measure at the moment, each looked at in turn.
        look_seconds: of one look.
        poll_seconds: between two rounds of looking.
    """
    return max(0.0, pollers * look_seconds - poll_seconds / pending)
