"""The Pareto set of a search with several objectives: who is in it, what it reaches, who wins, what best.json says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from evaluator import Pair
from search.comparison import METRIC_NAMES
from search.ladder import Ladder
from search.pareto import hypervolume, non_dominated, widest
from search.rules import Rule, chosen, knee_distances
from search.selection import lowest
from space import Architecture


@dataclass(frozen=True)
class ParetoSet:
    """What no other measured architecture within the budgets beats in KL and in every cost.

    Args:
        ladder: the costs.
        members: measured on one text, cheapest in the first cost first.
        reference: (objectives,) of the hypervolume, KL first.
    """

    ladder: Ladder
    members: tuple[Pair, ...]
    reference: NDArray[np.float64]

    @classmethod
    def of(cls, ladder: Ladder, pairs: Sequence[Pair], reference: NDArray[np.float64]) -> Self:
        """Return the set of what was measured.

        Args:
            ladder: the costs.
            pairs: measured on one text, those over the budgets included.
            reference: (objectives,), see `search.job.Run.reference`.
        """
        by_architecture = {pair.architecture: pair for pair in pairs}
        inside = [pair for pair in by_architecture.values() if ladder.space.allows(pair.architecture)]
        values = _values(ladder, inside)
        kept = np.flatnonzero(non_dominated(values))
        ordered = sorted(kept, key=lambda i: (*values[i, 1:], values[i, 0], inside[i].architecture.fingerprint))
        return cls(ladder, tuple(inside[i] for i in ordered), reference)

    @property
    def values(self) -> NDArray[np.float64]:
        """The objectives (members, 1 + metrics): KL, and costs as shares of the dense model's."""
        return _values(self.ladder, self.members)

    @property
    def architectures(self) -> list[Architecture]:
        """The members."""
        return [pair.architecture for pair in self.members]

    @property
    def hypervolume(self) -> float:
        """What the set reaches, in nats and shares of the dense model's costs multiplied."""
        return hypervolume(self.values, self.reference)

    def __str__(self) -> str:
        return f"{_count(self)}, hypervolume {self.hypervolume:.4f}"

    def widest(self, count: int) -> list[Architecture]:
        """Return the few members that together reach most of the hypervolume."""
        return [self.members[index].architecture for index in widest(self.values, self.reference, count)]

    def winner(self, rule: Rule) -> Architecture:
        """Return the member that wins by a rule that weighs KL against costs."""
        return self.members[chosen(rule, self.values)].architecture


def _values(ladder: Ladder, pairs: Sequence[Pair]) -> NDArray[np.float64]:
    kl = np.array([[pair.measurement.kl] for pair in pairs]).reshape(-1, 1)
    return np.concatenate([kl, ladder.shares([pair.architecture for pair in pairs])], axis=1)


def _count(told: ParetoSet) -> str:
    return f"{len(told.members)} {'member' if len(told.members) == 1 else 'members'} of the Pareto set"


def because(told: ParetoSet, rule: Rule, winner: Architecture) -> str:
    """Say in one sentence why an architecture won.

    Args:
        told: the set on the validation text.
        rule: by which it won.
        winner: a member, or with `lowest_kl` a smoother architecture.
    """
    values, metric = told.values, told.ladder.against[0]
    kl = values[:, 0]
    if rule.name == "knee":
        distances = np.sort(knee_distances(values))
        others = f" (the next {distances[1]:.3f})" if len(distances) > 1 else ""
        return (
            f"It is the knee of the {_count(told)}: with KL and costs scaled to 0 at their best in the set and 1 at "
            f"their worst, the mean of the two is lowest, {distances[0]:.3f}{others}."
        )
    if rule.name == "cheapest":
        close = int((kl <= kl.min() * (1 + rule.share)).sum())
        return (
            f"Of the {_count(told)}, {close} {'has' if close == 1 else 'have'} a KL within {100 * rule.share:g} % of "
            f"the lowest, {kl.min():.4g}; of these it is the cheapest in {METRIC_NAMES.get(metric, metric)}."
        )
    if winner == told.architectures[int(kl.argmin())]:
        return f"It has the lowest KL of the {_count(told)}, {kl.min():.4g}."
    return f"Its KL is within an error of the lowest, {kl.min():.4g}, and it is smoother over depth."


def set_record(
    told: ParetoSet, searched: ParetoSet, search_pairs: Sequence[Pair], rule: str, winner: Architecture
) -> dict[str, Any]:
    """Return what best.json says of a Pareto set.

    Args:
        told: on the validation text.
        searched: on the search text.
        search_pairs: measured on the search text, the members of `told` among them.
        rule: as it was stated.
        winner: who won by it.
    """
    space, against = told.ladder.space, told.ladder.against
    on_search = {pair.architecture: pair.measurement for pair in search_pairs}
    members = [
        {
            "fingerprint": pair.architecture.fingerprint,
            "architecture": pair.architecture.to_dict(),
            "cost": space.amounts(pair.architecture),
            "shares": dict(zip(against, shares.tolist(), strict=True)),
            "measured": {
                "search": on_search[pair.architecture].to_dict(),
                "validate": pair.measurement.to_dict(),
            },
        }
        for pair, shares in zip(told.members, told.values[:, 1:], strict=True)
    ]
    return {
        "against": list(against),
        "rule": rule,
        "because": because(told, Rule.parse(rule), winner),
        "members": members,
        # In nats times shares of the dense model's costs, of what is better than the reference.
        "hypervolume": {"search": searched.hypervolume, "validate": told.hypervolume},
        "reference": {"search": _point(searched), "validate": _point(told)},
    }


def _point(told: ParetoSet) -> Mapping[str, float]:
    return dict(zip(("kl", *told.ladder.against), told.reference.tolist(), strict=True))


def finalists(ladder: Ladder, pairs: Sequence[Pair], reference: NDArray[np.float64], count: int) -> list[Architecture]:
    """Return what of a set is measured on new text: the lowest KL, and those that together reach most, half of them
    averages, which owe their place less to the search text.

    Args:
        ladder: the costs.
        pairs: measured on the search text.
        reference: of the hypervolume on it.
        count: how many to return.
    """
    averaged = [pair for pair in pairs if pair.origin == "averaged"]
    found = lowest(pairs, ladder.space, 1)
    for among, most in ((averaged, count // 2), (pairs, count)):
        found += ParetoSet.of(ladder, among, reference).widest(most)
    return list(dict.fromkeys(found))[:count]
