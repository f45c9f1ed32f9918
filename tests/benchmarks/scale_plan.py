"""A search as stages: what must be over before the next begins, and what can be measured side by side meanwhile.

    generate -> calibrate -> levels -> baselines -> alone -> descent -> first pairs
             -> [ descents -> plan -> picks ] x rounds -> finalists -> report

as `search.run`, `search.find` and `search.strategies.predicted` go. How many slopes a descent takes is not known
before; a plan takes what finished runs took.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from evaluator.slopes import FORWARD_PASSES
from search.settings import SearchConfig
from tests.benchmarks.scale_costs import Costs
from tests.benchmarks.scale_trace import Trace, kept

_BASELINES, _MEANS, _FRONTIER, _EVERYONE, _PLAIN = 5, 3, 4, 6, 2  # of `search.find`
_STEPS = 3  # measured after slopes: as many dampings
_FIRST_SLOPES = 3  # before the first pairs


@dataclass(frozen=True)
class Stage:
    """A part of a search that is over when all its tasks are.

    Args:
        name: of the part.
        tasks: seconds of each, done by any worker.
        driver: seconds before, in which a search only thinks: fitting, planning, telling trials.
        tokens: of all tasks together, as a run counts them: a backward pass is two forward, and layers that are not
            run count as well.
        before_joining: whether other workers wait for it before they open the model.
    """

    name: str
    tasks: tuple[float, ...] = ()
    driver: float = 0.0
    tokens: float = 0.0
    before_joining: bool = False


@dataclass(frozen=True)
class Habits:
    """What searches took that settings do not say, from finished runs."""

    slopes_per_round: float
    driver_per_round: float  # seconds, on two cores for SmolLM2-135M
    sub_blocks: int  # there
    changed: dict[str, float]  # share of the MLPs that a measurement installs, by origin
    spread: float  # of the time of the same measurement

    @classmethod
    def of(cls, traces: Sequence[Trace]) -> "Habits":
        """Take the means of finished runs; the spread is that of the quietest."""
        origins = {part.origin for trace in traces for part in trace.parts if part.split == "search"}
        return cls(
            fmean((trace.slopes - _FIRST_SLOPES) / trace.rounds for trace in traces),
            min(trace.driver / (trace.rounds + 1) for trace in traces),
            60,
            {origin: fmean(trace.part(origin).changed for trace in traces) for origin in sorted(origins)},
            min(trace.spread for trace in traces),
        )


def planned(
    costs: Costs, workers: int, habits: Habits | None = None, settings: SearchConfig | None = None
) -> list[Stage]:
    """Return the stages of one search by the default settings.

    Args:
        costs: of its steps.
        workers: among whom what can be shared out is shared out.
        habits: of searches; None takes those of the runs that were kept.
        settings: how much is measured; None takes the defaults.
    """
    habits, settings = habits or Habits.of(kept()), settings or SearchConfig()
    layers = costs.layout.layers
    # Features, slopes and the integer program grow with the sub-blocks.
    thinking = habits.driver_per_round * 2 * layers / habits.sub_blocks

    def whole(name: str, count: int, origin: str, sequences: int = costs.search, driver: float = 0.0) -> Stage:
        tokens = count * sequences * (costs.sequence_length - 1.0)
        return Stage(name, (costs.measure(sequences, habits.changed[origin]),) * count, driver, tokens)

    def descent(name: str) -> list[Stage]:
        slopes = [Stage(f"{name}: slopes", tuple(tasks)) for tasks in costs.slopes(workers)]
        tokens = FORWARD_PASSES * costs.search * (costs.sequence_length - 1.0)
        slopes[0] = replace(slopes[0], tokens=tokens)
        return [*slopes, whole(f"{name}: steps", _STEPS, "searched")]

    stages = [
        Stage("generate", (costs.generating(),), before_joining=True),
        *(Stage("calibrate", tuple(tasks), before_joining=True) for tasks in costs.calibrating(workers)),
        Stage("levels", tuple(costs.levels_once())),
        whole("baselines", _BASELINES, "baseline"),
        _alone(costs),
        *(stage for _ in range(_FIRST_SLOPES) for stage in descent("first descent")),
        whole("first pairs", settings.guided_pairs, "guided"),
        whole("first pairs", settings.random_pairs, "random"),
        whole("first pairs", settings.profile_pairs, "profile"),
    ]
    for number in range(settings.rounds):
        own: list[Stage] = []
        slopes = round(habits.slopes_per_round * (number + 1)) - round(habits.slopes_per_round * number)
        for _ in range(slopes):
            own += descent("rounds")
        own.append(whole("rounds: picks", settings.picks, "searched", driver=thinking))
        own.append(whole("rounds: averages", settings.averages, "averaged"))
        stages += own
    return [
        *stages,
        whole("finalists", settings.finalists, "averaged", costs.validate),
        whole("finalists", _MEANS, "averaged"),
        whole("finalists", _MEANS, "averaged", costs.validate),
        whole("report", _FRONTIER, "frontier", driver=thinking),
        whole("report", _EVERYONE, "baseline", costs.validate),
        whole("report", _EVERYONE + _PLAIN, "baseline", costs.report),
    ]


def _alone(costs: Costs) -> Stage:
    """Return sub-blocks measured alone, one sequence each, from the first layer that changes."""
    layers = costs.layout.layers
    each = costs.singles / layers
    shares = [
        1 - layer / layers for layer in range(layers) for _ in range(round(each * (layer + 1)) - round(each * layer))
    ]
    # Of two sub-blocks at five levels, one of which is removal, four have an MLP narrowed.
    seconds = tuple(costs.measure(1, 0.4 / layers, share) for share in shares)
    return Stage("alone", seconds, tokens=len(shares) * (costs.sequence_length - 1.0))
