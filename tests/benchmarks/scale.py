"""What a search of a 70B model costs, what saturates first on 1,000 GPUs, and what to change: a simulation.

    python -m tests.benchmarks.scale [--quick] [--seed N]

Nothing here needs a GPU. `scale_costs` has the arithmetic of each step at that size, `scale_plan` the stages of a
search, `scale_cluster` the workers, store and network, `scale_events` the clock. What is measured is (`scale_reality`)
the store's transactions, here and now; what finished runs did (`scale_trace`); and a real run that one and two real
processes work on, with measurements that sleep (`scale_joined`), which the simulation has to meet.
docs/internet-scale.md reads the figures.

| figure | meaning |
| --- | --- |
| `as_it_is` | hours, GPU-hours and dollars of one search by GPUs, as the code stands |
| `first_saturated` | seconds by stage on 1,000 GPUs |
| `changes` | the same with one change after another, on one worker, eight, and all of 1,000 GPUs |
| `sharing` | searches a day of many users on 1,000 GPUs, by workers a search |
| `validation` | what finished and joined runs took, and what the simulation says |
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

import numpy as np

from tests.benchmarks import scale_joined
from tests.benchmarks.record import arguments, finish
from tests.benchmarks.scale_cluster import CALM, Cluster, Weather
from tests.benchmarks.scale_costs import AS_IS, Code, Costs, Machine
from tests.benchmarks.scale_events import Loop, Process, Server
from tests.benchmarks.scale_plan import Habits, planned
from tests.benchmarks.scale_reality import joined, repeated, run_one, stored
from tests.benchmarks.scale_trace import kept

GPUS = (8, 16, 64, 256, 1000, 10_000)
# One after the other; each is what the code would do differently, see `scale_costs.Code`.
CHANGES: dict[str, dict[str, Any]] = {
    "widths 1,024 channels apart": {"width_step": 1024},
    "levels made once, by all": {"levels": "shared", "factors": "each_block"},
    "slopes and calibration shared out": {
        "slopes": "all_workers",
        "calibration": "all_workers",
        "statistics": "where_needed",
    },
    "tensor parallel": {"layout": "tensor_parallel"},
    "pushed tasks, leases of 30 s, broadcast": {
        "claims": "pushed",
        "forgotten": 30.0,
        "weights": "broadcast",
    },
}
CHAINS = (1, 4, 16, 64)
LOADS = (0.5, 0.8, 0.95)  # of what the cluster could serve, that users ask for
ASSUMED = ("efficiency", "solver_efficiency", "files", "network", "to_device", "storage_per_gpu")
H200 = Machine(memory_bytes=141e9, memory_bandwidth=4.8e12, dollars_per_hour=4.0)
TEAMS = (1, 2, 4, 8, 16, 32)  # workers of one search
DAYS = 20  # that users come
_MOST_SHARED = 80  # workers among whom anything is shared out: the layers
PRICES = (2.0, 3.0, 5.0)  # dollars per GPU-hour


def main() -> None:
    """Simulate and print the figures."""
    options = arguments(__doc__ or "")
    seeds = range(options.seed, options.seed + (1 if options.quick else 5))
    store = stored(30 if options.quick else 300)
    code = AS_IS  # whose store is as fast as it once was, not as now: the same seed, the same figures
    as_it_is = {gpus: told(Costs(code=code), gpus, seeds) for gpus in GPUS}
    changes, after = {}, code
    for name, change in CHANGES.items():
        after = replace(after, **change)
        changes[name] = changed(Costs(code=after), seeds)
        print(f"{name}: {changes[name]['1000 GPUs']['minutes']} minutes on 1,000 GPUs", flush=True)
    best = Costs(code=after)
    figures = {
        "as_it_is": as_it_is,
        "first_saturated": stages_of(Costs(code=code), 1000, options.seed),
        "saturated_after_changes": stages_of(best, 32, options.seed),
        "changes": changes,
        "other_ways": {
            "one factor a sub-block and nothing else": changed(Costs(code=replace(code, factors="each_block")), seeds),
            "all changes, widths 128 apart": changed(replace(best, code=replace(after, width_step=None)), seeds),
            "all changes, H200": changed(replace(best, machine=H200), seeds),
            "as it is, H200": changed(Costs(code=code, machine=H200), seeds),
        },
        "chains": {
            drivers: {chains: told(_chained(best, chains, drivers), 1000, seeds) for chains in CHAINS}
            for drivers in ("one", "each_chain")
        },
        "sensitivity": sensitivity(Costs(code=code), best, seeds),
        "weather": weathers(code, best.code, seeds),
        "sharing": {team: shared(best, team, options.seed, 2 if options.quick else DAYS) for team in TEAMS},
        "store": store,
        "validation": {
            "runs": repeated(kept(), code),
            "joined": joined(scale_joined.kept(), code),
        },
    }
    details = {
        "seed": options.seed,
        "protocol": {
            "machine": asdict(best.machine),
            "as_it_is": asdict(code),
            "changed": asdict(best.code),
            "weather": asdict(Weather()),
            "habits": asdict(Habits.of(kept())),
            "sizes": sizes(Costs(code=code)),
            "seeds": list(seeds),
            "loads": LOADS,
            "days": DAYS,
        },
    }
    finish("scale", figures, details, options.quick)


def simulated(costs: Costs, workers: int, seed: int, weather: Weather | None = None) -> tuple[float, Cluster]:
    """Return the seconds of one search, from opening the model, and the cluster that it was on."""
    cluster = Cluster(costs, workers, weather or Weather(), seed)
    return run_one(cluster, planned(costs, min(workers, _MOST_SHARED))), cluster


def told(costs: Costs, gpus: int, seeds: Sequence[int], weather: Weather | None = None) -> dict[str, Any]:
    """Return what one search takes on so many GPUs, mean over seeds."""
    workers = max(1, gpus // costs.group)
    found = [simulated(costs, workers, seed, weather) for seed in seeds]
    wall = fmean(seconds for seconds, _ in found)
    stages = planned(costs, min(workers, _MOST_SHARED))
    rounds = [stage for stage in stages if stage.name.startswith("rounds")] * (costs.code.chains - 1)
    pairs = sum(len(stage.tasks) for stage in [*stages, *rounds] if stage.tokens and "slopes" not in stage.name)
    held = workers * costs.group * wall / 3600
    return {
        "workers": workers,
        "gpus_a_worker": costs.group,
        "minutes": round(wall / 60, 1),
        "gpu_hours_held": round(held, 1),
        "gpu_hours_worked": round(fmean(cluster.busy for _, cluster in found) * costs.group / 3600, 1),
        "dollars": {f"{price:g}": round(held * price) for price in PRICES},
        "utilisation": round(fmean(cluster.busy / workers for _, cluster in found) / wall, 4),
        "pairs": pairs,
        "pairs_per_hour": round(pairs / wall * 3600, 1),
        "failures": round(fmean(cluster.failures for _, cluster in found), 2),
        "million_tokens": round(sum(stage.tokens for stage in [*stages, *rounds]) / 1e6, 2),
    }


def changed(costs: Costs, seeds: Sequence[int]) -> dict[str, Any]:
    """Return what one search takes on one worker, on eight, and on 1,000 GPUs."""
    rows = {"1 worker": costs.group, "8 workers": 8 * costs.group, "1000 GPUs": 1000}
    return {name: told(costs, gpus, seeds) for name, gpus in rows.items()}


def _chained(costs: Costs, chains: int, drivers: Any) -> Costs:
    return replace(costs, code=replace(costs.code, chains=chains, drivers=drivers))


def sensitivity(as_it_is: Costs, best: Costs, seeds: Sequence[int]) -> dict[str, Any]:
    """Return the minutes of a search on eight workers where an assumption is half or twice as large."""
    found: dict[str, Any] = {}
    for name in ASSUMED:
        for factor in (0.5, 2.0):
            row = found.setdefault(name, {}).setdefault(f"{factor:g}", {})
            for kind, costs in (("as it is", as_it_is), ("changed", best)):
                machine = replace(costs.machine, **{name: factor * getattr(costs.machine, name)})
                row[kind] = told(replace(costs, machine=machine), 8 * costs.group, seeds)["minutes"]
    return found


def stages_of(costs: Costs, gpus: int, seed: int) -> dict[str, float]:
    """Return the minutes of a search by stage, the longest first."""
    _, cluster = simulated(costs, gpus // costs.group, seed)
    return {name: round(seconds / 60, 2) for name, seconds in sorted(cluster.spent.items(), key=lambda item: -item[1])}


def weathers(as_it_is: Code, best: Code, seeds: Sequence[int]) -> dict[str, Any]:
    """Return how failures, stragglers and late workers change a search on 1,000 GPUs and on eight workers."""
    groups = {"as it is": Costs(code=as_it_is), "changed": Costs(code=best)}
    found: dict[str, Any] = {}
    for name, costs in groups.items():
        kinds = {
            "calm": CALM,
            "Llama 3's failures, 1 % slow": Weather(),
            "10 % slow": Weather(slow_workers=0.1),
            "workers taken every 6 hours": Weather(failures_per_hour=1 / (6 * costs.group)),
            "workers taken every hour": Weather(failures_per_hour=1 / costs.group),
            "workers come over 10 minutes": Weather(late=600.0),
        }
        for kind, weather in kinds.items():
            row = told(costs, 8 * costs.group, seeds, weather)
            found.setdefault(kind, {})[name] = {key: row[key] for key in ("minutes", "failures")}
    return found


def shared(costs: Costs, team: int, seed: int, days: float) -> dict[str, Any]:
    """Return what many users get of 1,000 GPUs where each search has a team of workers and waits for a free one.

    Searches come at random, `LOADS` of what the teams could do; all are of one model, which stays open.
    """
    teams = 1000 // costs.group // team
    rng = np.random.default_rng([seed, team])
    takes = [run_one(Cluster(costs, team, Weather(), each, joined=True), planned(costs, team)) for each in range(10)]
    held = team * costs.group * fmean(takes) / 3600
    return {
        "teams": teams,
        "minutes_a_search": round(fmean(takes) / 60, 1),
        "searches_a_day_at_most": round(teams * 86_400 / fmean(takes)),
        "gpu_hours_a_search": round(held, 1),
        "dollars_a_search": {f"{price:g}": round(held * price, 1) for price in PRICES},
        "by_load": {load: queued(takes, teams, load, days, rng) for load in LOADS},
    }


def queued(takes: Sequence[float], teams: int, load: float, days: float, rng: np.random.Generator) -> dict[str, float]:
    """Return how long users wait for a team, who come at random so often that teams would be busy a share of the time.

    Args:
        takes: seconds of a search, drawn from.
        teams: that work at the same time.
        load: the share.
        days: that users come.
        rng: of arrivals and draws.
    """
    loop = Loop()
    server = Server(loop, teams)
    rate = load * teams / fmean(takes)
    waits: list[float] = []

    def user(at: float, seconds: float) -> Process:
        yield at
        yield from server.use(seconds)
        waits.append(max(0.0, loop.now - at - seconds))

    for at in np.cumsum(rng.exponential(1 / rate, max(1, round(rate * days * 86_400)))):
        loop.start(user(float(at), takes[int(rng.integers(len(takes)))]))
    ended = loop.run()
    return {
        "minutes_waited": round(fmean(waits) / 60, 2),
        "minutes_waited_95": round(float(np.percentile(waits, 95)) / 60, 2),
        "utilisation": round(server.busy / teams / ended, 3),
    }


def sizes(costs: Costs) -> dict[str, float]:
    """Return what the arithmetic comes to, as the code stands."""
    return {
        "gigaflops_a_token": round(costs.flops_per_token / 1e9, 1),
        "weights_gigabytes": round(costs.weights_bytes / 1e9, 1),
        "statistics_gigabytes": round(costs.statistics_bytes / 1e9, 1),
        "level_megabytes": round(costs.level_bytes / 1e6),
        "widths": costs.widths,
        "all_levels_terabytes": round(costs.layout.layers * costs.widths * costs.level_bytes / 1e12, 2),
        "measuring_gigabytes": round(costs.measuring_bytes / 1e9),
        "slopes_gigabytes": round(costs.slopes_bytes / 1e9),
        "forward_seconds": round(costs.forward(4088), 2),
        "level_seconds": round(costs.level_seconds(), 2),
        "measurement_seconds": round(costs.measure(8, 0.44), 1),
        "slopes_hours": round(costs.slopes(1)[0][0] / 3600, 2),
        "slopes_solving_hours": round(costs.layout.layers * costs.all_widths_flops / 3600 / 33.5e12, 2),
    }


if __name__ == "__main__":
    main()
