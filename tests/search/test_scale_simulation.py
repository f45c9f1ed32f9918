"""The simulation behind docs/internet-scale.md, against closed forms and against what the code really does."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from evaluator import open_model
from evaluator.accuracy import make_reference
from evaluator.pruning import Levels, least_squares
from evaluator.pruning.least_squares import damped, resolve
from evaluator.pruning.statistics import gather_statistics
from evaluator.slopes import slopes
from space import FAMILIES, Architecture, Criterion, build_space
from tests.benchmarks.scale import LOADS, queued, simulated, told
from tests.benchmarks.scale_cluster import _REPAIR_SECONDS, CALM, Cluster, Weather, polling_wait
from tests.benchmarks.scale_costs import AS_IS, LLAMA_70B, Code, Costs
from tests.benchmarks.scale_events import Loop, Server, Signal
from tests.benchmarks.scale_plan import Habits, Stage, planned
from tests.benchmarks.scale_reality import repeated, run_one, stored
from tests.benchmarks.scale_trace import kept
from tests.evaluator.pieces import make_surgeon
from tests.pico import pico_llama, pico_tokens, save_pico
from tests.space.layouts import SMOLLM2_135M

PUSHED = Costs(code=Code(claims="pushed", store_seconds=0.0, forgotten=0.0))


def alone(costs, workers, stages, weather=CALM, seed=0):
    """Seconds of stages on workers that have opened the model."""
    return run_one(Cluster(costs, workers, weather, seed, joined=True), stages)


def test_processes_go_on_in_the_order_in_which_they_asked():
    loop, seen = Loop(), []
    signal = Signal(loop)

    def waiter(name):
        seen.append((name, (yield signal), loop.now))
        return name

    ended = [loop.start(waiter(name)) for name in "ab"]
    loop.after(3.0, signal.fire, "now")
    loop.run()
    assert seen == [("a", "now", 3.0), ("b", "now", 3.0)]
    assert all(each.fired for each in ended)


@pytest.mark.parametrize(("places", "load"), [(1, 0.7), (4, 0.8)])
def test_a_queue_waits_as_long_as_erlang_says(places, load):
    loop, rng = Loop(), np.random.default_rng(0)
    server = Server(loop, places)

    def customer(at, seconds):
        yield at
        yield from server.use(seconds)

    count = 20_000
    for at in np.cumsum(rng.exponential(1 / (load * places), count)):
        loop.start(customer(float(at), float(rng.exponential(1.0))))
    loop.run()
    offered = load * places
    last = offered**places / math.factorial(places) / (1 - load)
    waits = last / (sum(offered**k / math.factorial(k) for k in range(places)) + last)
    assert server.waited / count == pytest.approx(waits / (places * (1 - load)), rel=0.1)


def test_users_wait_more_the_more_they_are():
    waited = [queued([60.0], 4, load, 0.5, np.random.default_rng(0))["minutes_waited"] for load in LOADS]
    assert 0 <= waited[0] < waited[1] < waited[2]


def test_a_batch_ends_with_its_last_task():
    assert alone(PUSHED, 4, [Stage("measured", (10.0,) * 10, driver=5.0)]) == pytest.approx(5 + 30)
    assert alone(PUSHED, 20, [Stage("measured", (10.0,) * 10)] * 3) == pytest.approx(30)


def test_the_store_is_one_for_all():
    costs = replace(PUSHED, code=replace(PUSHED.code, store_seconds=2.0))
    assert alone(costs, 100, [Stage("measured", (0.0,) * 100)]) == pytest.approx(200)


def test_opening_the_model_takes_what_storage_gives():
    costs = Costs()
    size = costs.weights_bytes + costs.statistics_bytes
    workers = 50
    cluster = Cluster(costs, workers, CALM)
    cluster.opened.fire()
    ended = cluster.loop.run()
    gives = costs.machine.storage(workers * costs.group)
    read = costs.weights_bytes + (workers - 1) * size  # the first has its statistics from calibrating
    assert ended == pytest.approx(max(read / gives, size / costs.machine.files), rel=1e-6)
    assert cluster.storage.busy == pytest.approx(read / gives)


def test_what_fails_is_done_again():
    """A task that needs s without a failure, of rate r, with a repair R after each: (exp(r s) - 1) (1 / r + R)."""
    seconds, mean = 3600.0, 3600.0
    weather = Weather(0.0, 0.0, 1.0, failures_per_hour=3600 / mean / PUSHED.group)
    count = 1500
    took = alone(PUSHED, 1, [Stage("measured", (seconds,) * count)], weather)
    repair = _REPAIR_SECONDS + PUSHED.weights_bytes / PUSHED.machine.files
    assert took / count == pytest.approx(math.expm1(seconds / mean) * (mean + repair), rel=0.08)


def test_every_stage_is_gone_through_once():
    stages = planned(PUSHED, 4)
    cluster = Cluster(PUSHED, 4, joined=True)
    took = run_one(cluster, stages)
    assert cluster.busy == pytest.approx(sum(sum(stage.tasks) for stage in stages))
    assert took >= cluster.busy / 4 + sum(stage.driver for stage in stages)
    assert sum(cluster.spent.values()) == pytest.approx(took)


def test_chains_repeat_the_rounds_and_nothing_else():
    costs = replace(PUSHED, code=replace(PUSHED.code, chains=3))
    stages = planned(costs, 4)
    cluster = Cluster(costs, 4, joined=True)
    run_one(cluster, stages)
    rounds = sum(sum(stage.tasks) for stage in stages if stage.name.startswith("rounds"))
    assert cluster.busy == pytest.approx(sum(sum(stage.tasks) for stage in stages) + 2 * rounds)


def test_a_lost_claim_holds_the_batch_up():
    weather = Weather(0.0, 0.0, 1.0, failures_per_hour=1.0)
    slow, quick = (
        np.mean([alone(costs, 8, [Stage("measured", (60.0,) * 8)] * 4, weather, seed) for seed in range(20)])
        for costs in (replace(PUSHED, code=replace(PUSHED.code, forgotten=forgotten)) for forgotten in (600.0, 30.0))
    )
    assert slow > quick + 60


@pytest.mark.parametrize(("pollers", "pending"), [(20, 1), (60, 1), (60, 6), (120, 3)])
def test_looking_for_work_keeps_the_store_from_working(pollers, pending):
    look, poll = 0.01, 0.2
    loop = Loop()
    server, waits = Server(loop), []

    def poller():
        while loop.now < 60:
            for _ in range(pending):
                yield from server.use(look)
            yield poll

    def committer():
        yield 20.0
        while loop.now < 60:
            came = loop.now
            yield from server.use(0.0)
            waits.append(loop.now - came)
            yield 0.7

    for _ in range(pollers):
        loop.start(poller())
    loop.start(committer())
    loop.run()
    expected = polling_wait(pollers, pending, look, poll)
    assert np.mean(waits) == pytest.approx(expected, abs=max(0.02, 0.1 * expected))


def test_sizes_are_those_of_the_code():
    small, large = Costs(layout=SMOLLM2_135M), Costs()
    assert small.weights_bytes == 269_030_016  # benchmark `speed` read them from the model in memory
    assert small.singles == 247  # as run folders have them
    assert small.widths == len(build_space(SMOLLM2_135M).choices[1]) - 2 == 11
    assert large.widths == 223
    assert (large.weights_bytes, large.group) == (141_107_412_992, 8)


def test_statistics_are_as_large_as_said():
    model = pico_llama()
    layers = list(model.model.layers)
    text = torch.randint(3, 100, (2, 32), generator=torch.Generator().manual_seed(0))
    found = gather_statistics(model.model, layers, FAMILIES["llama"], [text], "structures")
    kept_bytes = sum(
        each.inputs[path].moments.nbytes for each in found for path in ("self_attn.o_proj", "mlp.down_proj")
    )
    sizes = {"model_type": "llama", **model.config.to_dict()}
    assert Costs(layout=type(LLAMA_70B).from_config(sizes)).statistics_bytes == kept_bytes


def test_one_factor_serves_all_widths():
    """What docs/internet-scale.md proposes: slopes of every width from one factorisation, as `resolve` has them."""
    generator = torch.Generator().manual_seed(0)
    channels, rows = 24, 10
    inputs = torch.randn(200, channels, generator=generator) @ torch.randn(channels, channels, generator=generator)
    weight, gradient = (torch.randn(rows, channels, generator=generator) for _ in range(2))
    moments, order = inputs.T @ inputs, torch.randperm(channels, generator=generator)  # the last ones go first
    damping = damped(moments)[order][:, order]
    factor = torch.linalg.cholesky(damping)
    outputs, wanted = (
        torch.linalg.solve_triangular(factor, right, upper=False)
        for right in (damping @ weight.double().T[order], gradient.double().T[order])
    )
    slopes = (outputs * wanted).sum(dim=1).cumsum(dim=0)
    for count in (1, 7, 16, 24):
        solved = resolve(weight, moments, order[:count])
        assert float(slopes[count - 1]) == pytest.approx(float((gradient[:, order[:count]] * solved).sum()), rel=1e-4)


def test_slopes_solve_for_every_width_again_where_levels_do_not_fit(tmp_path, monkeypatch):
    """What the page says saturates first: the code solves as often as `Costs` counts."""
    dense = open_model(str(save_pico(tmp_path / "model")), dtype="float32")
    criterion, space = Criterion(update="least_squares"), build_space(dense.layout)
    surgeon = make_surgeon(dense, criterion, Levels(memory_bytes=0))
    reference, solved = make_reference(dense, pico_tokens(2, 24, 2)), []
    monkeypatch.setattr(
        least_squares, "resolve", lambda weight, *others: solved.append(weight.shape) or resolve(weight, *others)
    )
    counts = []
    for width in space.layout.mlp_width // 2, space.layout.mlp_width // 3:
        architecture = Architecture.dense(space.layout).replace(1, mlp_width=width)
        slopes(dense, surgeon, reference, architecture, space.choices)
        counts.append(sum(shape[1] == space.layout.mlp_width for shape in solved))
        solved.clear()
    every = dense.layout.layers * Costs(layout=dense.layout).widths
    assert all(count >= every for count in counts), (counts, every)


def test_a_plan_spends_what_runs_spend():
    traces = kept()
    assert traces
    costs = Costs(layout=SMOLLM2_135M)
    for trace in traces:
        own = Habits.of([trace])
        spent = sum(stage.tokens for stage in planned(costs, 1, own)) + costs.calibrate * costs.sequence_length
        assert spent == pytest.approx(trace.tokens, rel=0.07)


def test_runs_take_about_what_the_simulation_says():
    found = repeated(kept(), AS_IS)
    assert found
    assert all(abs(row["error"]) < 0.25 for row in found.values())


def test_the_same_seed_the_same_search():
    first, second, other = (simulated(PUSHED, 4, seed)[0] for seed in (1, 1, 2))
    assert first == second != other


def test_each_part_of_a_store_is_timed():
    found = stored(60)  # pages are filled
    assert 0 < found["look_seconds"] < found["pair_seconds"]
    assert found["bytes_a_pair_70b"] > len(Architecture.dense(LLAMA_70B).to_json())


def test_a_search_is_told():
    row = told(PUSHED, 64, [0])
    assert row["workers"] == 8
    assert row["gpu_hours_held"] == pytest.approx(64 * row["minutes"] / 60, rel=0.01)
    assert 0 < row["gpu_hours_worked"] <= row["gpu_hours_held"]
    assert row["dollars"]["3"] == pytest.approx(3 * row["gpu_hours_held"], rel=0.01)
