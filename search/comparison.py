"""The winner beside its baselines, in words and formatted numbers; terminal, page and model card all say the same."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from space import LATENCY, METRICS, Architecture, Budget, Indices, RunFolderError, SearchSpace, milliseconds

FORMAT = 3  # of best.json
DASH = "–"
COLUMNS = (
    ("Parameters", "share of the dense decoder's parameters, zeros included"),
    ("Non-zero", "share of the dense decoder's parameters that are not masked"),
    ("Weights, MB", "bytes of all weights in bf16, embeddings included, in millions"),
    ("KV, B/token", "bytes of key-value cache per token"),
    ("FLOPs", "share of the dense decoder's FLOPs per token"),
    ("Latency, ms", "milliseconds by the table of timings"),
    ("Perplexity", "on the report text, ± standard error"),
    ("KL", "divergence of the next-token distribution from the dense model's on the report text, nats per token"),
    ("Agreement", "share of tokens whose most likely next token is the dense model's"),
    ("Winner vs it", "change of perplexity from this model to the winner, ± standard error of the paired difference"),
)
METRIC_NAMES = {
    "parameters": "decoder parameters",
    "nonzero_parameters": "non-zero decoder parameters",
    "weight_bytes": "weight bytes",
    "kv_cache_bytes_per_token": "KV cache bytes per token",
    "flops_per_token": "decoder FLOPs per token",
    LATENCY: "latency",
}
BASELINES = {
    "dense": "dense",
    "uniform": "uniform",
    "uniform_whole_ends": "uniform, whole ends",
    "uniform_no_update": "uniform, sliced",
    "uniform_whole_ends_no_update": "whole ends, sliced",
    "global_threshold": "global threshold",
    "owl": "OWL",
    "block_influence": "whole blocks removed",
    "best_random": "best random",
}

_SEARCHED_ON = {
    "search": "on the text it was searched on",
    "validate": "on that of the finalists",
    "report": "on that of the report",
}


@dataclass(frozen=True, slots=True)
class PairRow:
    """One measured architecture, with what was predicted of it before or out of fold."""

    fingerprint: str
    architecture: Architecture
    kind: str  # why it was measured: the pair's origin, as `search.figures` draws it
    cost: Mapping[str, float]  # by metric
    kl: float  # nats per token, on the search text
    kl_standard_error: float
    perplexity: float
    predicted: float | None  # KL, as are the two ends of its interval
    lower: float | None
    upper: float | None


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One model of the comparison, formatted."""

    label: str
    cells: tuple[str, ...]  # in the order of COLUMNS
    winner: bool


def pareto_front(costs: Sequence[float], losses: Sequence[float]) -> list[int]:
    """Return the indices of the points that no other point beats in both cost and loss, cheapest first.

    Of points equal in both, the first counts.

    Args:
        costs: one a point, less is better.
        losses: one a point, less is better.

    Raises:
        ValueError: the two differ in length.
    """
    if len(costs) != len(losses):
        raise ValueError(f"Each point needs a cost and a loss, but there are {len(costs)} and {len(losses)}.")
    front: list[int] = []
    for index in np.lexsort((losses, costs)).tolist():
        if not front or losses[index] < losses[front[-1]]:
            front.append(index)
    return front


def headline(best: Mapping[str, Any]) -> str:
    """Say in one sentence what the search gained, on the report text and against uniform pruning."""
    budget = Budget.parse(best["budgets"][0]) if best["budgets"] else Budget("parameters", 1.0)
    share = best["cost"][budget.metric] / best["dense_cost"][budget.metric]
    owner = f"the decoder's {METRIC_NAMES[budget.metric].replace('decoder ', '')}"
    if not METRIC_NAMES[budget.metric].count("decoder"):
        owner = f"the dense model's {METRIC_NAMES[budget.metric]}"
    text = f"{100 * share:.3g} % of {owner}"
    mine, other = best["measured"].get("report"), _split(best, "uniform")
    if not mine:
        return f"{text}, not yet measured on the report text."
    text += f", perplexity {_with_error(mine, 'perplexity')}"
    if not other:
        return f"{text}."
    paired = best["baselines"]["uniform"]["winner_less_this"]["report"]
    text += f" against {_perplexity(other['perplexity'])} for uniform pruning ({_change(paired)})"
    if abs(paired["nll"]) < 2 * paired["nll_standard_error"]:
        text += "; they differ by less than twice the standard error, so take them as equal"
    return f"{text}."


def loss_name(best: Mapping[str, Any]) -> str:
    """Return what the search made small: a divergence, or what it lost of tasks."""
    aim = best.get("aim")
    return str(aim["loss"]) if aim else "KL"


def title_of(best: Mapping[str, Any]) -> str:
    return f"{best['model']} pruned to {', '.join(best['budgets']) or 'no budget'}"


def comparison(best: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[ComparisonRow]]:
    """Return the columns that are of use here, and the rows: dense, baselines, winner."""
    if best.get("format") != FORMAT:
        raise RunFolderError(
            f"best.json must be of format {FORMAT}, but is of {best.get('format')!r}; run the search again with this "
            "version, or open the run with the version that wrote it."
        )
    dense, baselines = best["dense_cost"], best["baselines"]
    order = [name for name in BASELINES if name in baselines] + [name for name in baselines if name not in BASELINES]
    models = [(BASELINES.get(name, name.replace("_", " ")), baselines[name]) for name in order]
    rows = []
    for label, model in (*models, ("winner", best)):
        cost, report = model["cost"], model["measured"].get("report")
        paired = model.get("winner_less_this", {}).get("report") if report else None
        cells = (
            _percent(cost["parameters"] / dense["parameters"]),
            _percent(cost["nonzero_parameters"] / dense["parameters"]),
            f"{cost['weight_bytes'] / 1e6:,.1f}",
            f"{cost['kv_cache_bytes_per_token']:,}",
            _percent(cost["flops_per_token"] / dense["flops_per_token"]),
            milliseconds(cost[LATENCY]).removesuffix(" ms") if LATENCY in cost else DASH,
            _with_error(report, "perplexity") if report else DASH,
            _with_error(report, "kl") if report else DASH,
            _percent(report["agreement"]) if report else DASH,
            _change(paired) if paired else DASH,
        )
        rows.append(ComparisonRow(label, cells, model is best))
    useless = set() if any(row.cells[0] != row.cells[1] for row in rows) else {"Non-zero"}
    useless |= set() if LATENCY in dense else {"Latency, ms"}
    kept = [place for place, (name, _) in enumerate(COLUMNS) if name not in useless]
    fewer = [ComparisonRow(row.label, tuple(row.cells[place] for place in kept), row.winner) for row in rows]
    return [COLUMNS[place] for place in kept], fewer


def _split(best: Mapping[str, Any], baseline: str) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = best["baselines"].get(baseline, {}).get("measured", {}).get("report")
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _change(paired: Mapping[str, Any]) -> str:
    change, error = 100 * paired["perplexity_change"], 100 * paired["perplexity_change_standard_error"]
    return f"{change:+.1f} ± {error:.1f} %" if abs(change) < 1000 else f"{change:+.1e} %"


def _perplexity(value: float) -> str:
    return f"{value:,.1f}" if value < 10_000 else f"{value:.2e}"


def _with_error(measured: Mapping[str, Any], name: str) -> str:
    value, error = measured[name], measured[f"{name}_standard_error"]
    if name == "perplexity":
        return f"{_perplexity(value)} ± {_perplexity(error)}"
    return f"{value:.3f} ± {error:.3f}"


def notes(best: Mapping[str, Any]) -> Iterator[str]:
    texts, report = best["texts"], best["measured"].get("report")
    if any(name.endswith("_no_update") for name in best["baselines"]):
        yield "All but the models called sliced have had the criterion's update: what stays makes up for what went."
    count = f"; {report['tokens']:,} tokens counted" if report else ""
    yield f"Perplexity, KL and agreement are of the report text: {texts.get('report', DASH)}{count}."
    yield (
        f"The search did not see it; it measured on {texts.get('search', DASH)}, chose on "
        f"{texts.get('validate', DASH)}, and ran {best['tokens_through_model']:,} tokens through the model in "
        f"{duration(best['wall_seconds'])} (seed {best['seed']})."
    )
    if recovery := best.get("recovery"):
        yield f"It chose by models after {recovery}; `secateur recover` does that to the winner, at more length."
    if aim := best.get("aim"):
        yield (
            f"It aimed at tasks ({', '.join(aim['ask'])}), at little {aim['loss']} of those that the dense model has; "
            "what is gained by guessing counts nothing."
        )
    if found := generalisation(best):
        yield found
    if latency := best.get("latency"):
        yield (
            f"Latency is of {latency['described']}: the winner {latency_in_words(latency['winner'])}, the dense model "
            f"{latency_in_words(latency['dense'])}."
        )
        if check := latency["check"]:
            mean, most = (f"{100 * check[name]:.1f} %" for name in ("mean_error", "largest_error"))
            yield (
                f"Of {len(check['models'])} whole models the table of timings was {mean} off in the mean, {most} at "
                f"most (Kendall tau {check['kendall_tau']:.2f})."
            )
    tau, predicted = best["quality"].get("kendall_tau"), best.get("predicted")
    line = f"The predictor's held-out Kendall tau is {DASH if tau is None else format(tau, '.2f')}"
    if predicted:
        line += (
            f"; for the winner it said a {loss_name(best)} of {predicted['value']:.3g} "
            f"({predicted['lower']:.3g} to {predicted['upper']:.3g})"
        )
        searched = best["measured"].get("search", {})
        if predicted["target"] in searched:
            line += f", measured {searched[predicted['target']]:.3g}"
    yield f"{line}."
    if pareto := best.get("pareto"):
        names = " and ".join(METRIC_NAMES.get(metric, metric) for metric in pareto["against"])
        yield (
            f"The Pareto set of KL against {names} has {len(pareto['members'])} members on the validation text, and a "
            f"hypervolume of {pareto['hypervolume']['validate']:.4g} against {_reference(pareto)}."
        )
        yield f"Why this one won ({pareto['rule']}): {pareto['because']}"


def _reference(pareto: Mapping[str, Any]) -> str:
    """Return the reference point of the validation text in words."""
    point = dict(pareto["reference"]["validate"])
    kl = point.pop("kl")
    shares = (f"{100 * share:.1f} % of the {METRIC_NAMES.get(metric, metric)}" for metric, share in point.items())
    return ", ".join([f"a KL of {kl:.3g}", *shares])


def generalisation(best: Mapping[str, Any]) -> str | None:
    """Say how much of what the search won on its own text is left on text that it did not see.

    Returns:
        A sentence; None where no allocation but the winner was measured on all texts, or the search aimed at tasks.
    """
    fixed = {
        name: each
        for name, each in best["baselines"].items()
        if name not in ("dense", "best_random") and set(_SEARCHED_ON) <= set(each["measured"])
    }
    if best.get("aim") or not fixed or not set(_SEARCHED_ON) <= set(best["measured"]):
        return None
    name, other = min(fixed.items(), key=lambda item: item[1]["measured"]["validate"]["kl"])
    told = []
    for split, text in _SEARCHED_ON.items():
        less, whole = other["winner_less_this"][split], other["measured"][split]["kl"]
        told.append(f"{100 * less['kl'] / whole:+.1f} ± {100 * less['kl_standard_error'] / whole:.1f} % {text}")
    return (
        f"Against {BASELINES.get(name, name)}, the best allocation that was not searched, the winner's KL is "
        f"{', '.join(told[:-1])} and {told[-1]}; what differs from the first was won on the search text alone."
    )


def latency_in_words(record: Mapping[str, float]) -> str:
    """Return a record of `search.latency` for people."""
    return (
        f"{milliseconds(1e6 * record['table_ms'])} by the table, {milliseconds(1e6 * record['measured_ms'])} ± "
        f"{milliseconds(1e6 * record['standard_error_ms'])} measured ({100 * record['table_error']:+.1f} %)"
    )


def duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s" if minutes else f"{left} s"


@dataclass(frozen=True, slots=True)
class Kept:
    """What an architecture keeps of the dense model in one metric, and whether that is within the budget on it."""

    metric: str
    share: float
    budget: Budget | None
    within: bool

    def __str__(self) -> str:
        text = f"{100 * self.share:.1f} % of the dense model's {METRIC_NAMES[self.metric]}"
        return f"{text}, {'within' if self.within else 'over'} the budget ({self.budget})" if self.budget else text


def kept_shares(space: SearchSpace, indices: Indices) -> list[Kept]:
    """Return what an encoded architecture (1, columns) keeps by each budget's metric; of parameters without a budget.

    Budgets alone are asked, since a space may refuse more than what is over a budget.
    """
    dense = space.amounts(Architecture.dense(space.layout))
    if not space.budgets:
        parameters = float(space.costs(indices)[0, METRICS.index("parameters")])
        return [Kept("parameters", parameters / dense["parameters"], None, True)]
    costs = space.budget_costs(indices)[0].tolist()
    return [
        Kept(budget.metric, cost / dense[budget.metric], budget, cost <= limit)
        for budget, cost, limit in zip(space.budgets, costs, space.limits.tolist(), strict=True)
    ]
