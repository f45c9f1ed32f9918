"""Rules by which one architecture wins where there are several objectives; a person states one.

| rule | who wins |
| --- | --- |
| `lowest_kl` | the lowest KL within the budgets, or a smoother architecture that is not clearly worse |
| `knee` | the member of the Pareto set that gives up least of KL and costs together, see `knee_distances` |
| `cheapest=0.05` | of the members whose KL is within 5 % of the lowest, the one of the lowest first cost |
"""

from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from space import SettingError

RuleName = Literal["lowest_kl", "knee", "cheapest"]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule as it is stated.

    Args:
        name: which.
        share: by which the KL may be above the lowest, of `cheapest`.
    """

    name: RuleName
    share: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a rule such as `knee` or `cheapest=5%`.

        Raises:
            SettingError: it is none.
        """
        stated, equals, amount = text.replace(" ", "").partition("=")
        share = 0.0
        if equals:
            scale = 0.01 if amount.endswith("%") else 1.0
            try:
                share = float(amount.removesuffix("%")) * scale
            except ValueError:
                share = float("nan")
        name: RuleName | None = next((known for known in get_args(RuleName) if known == stated), None)
        if name is None or bool(equals) != (name == "cheapest") or not 0 <= share < float("inf"):
            raise SettingError(
                f"A rule must be lowest_kl, knee or cheapest=SHARE, a share of KL from 0 on, but is {text!r}; write "
                "for example cheapest=0.05."
            )
        return cls(name, share)

    @property
    def needs_costs(self) -> bool:
        """Whether the rule weighs KL against costs."""
        return self.name != "lowest_kl"


def knee_distances(values: ArrayLike) -> NDArray[np.float64]:
    """Return what each member of a Pareto set gives up of KL and costs together (members,), from 0 on.

    Each objective is scaled to 0 at its best in the set and 1 at its worst; KL counts half, and the costs, which mostly
    fall together, count half together. With one cost the lowest is farthest below the straight line between the ends
    of the set, which is what a knee is.

    Args:
        values: (members, objectives), KL first.

    Source: Das, On characterizing the knee of the Pareto curve based on normal-boundary intersection (1999).
    """
    points = np.asarray(values, dtype=np.float64)
    best, worst = points.min(axis=0), points.max(axis=0)
    scaled = np.divide(points - best, worst - best, out=np.zeros_like(points), where=worst > best)
    distances: NDArray[np.float64] = (scaled[:, 0] + scaled[:, 1:].mean(axis=1)) / 2
    return distances


def chosen(rule: Rule, values: ArrayLike) -> int:
    """Return which member of a Pareto set wins by a rule that needs costs; of equals that of the lower KL.

    Args:
        rule: `knee` or `cheapest`.
        values: (members, objectives), KL first.
    """
    points = np.asarray(values, dtype=np.float64)
    kl = points[:, 0]
    if rule.name == "knee":
        key = knee_distances(points)
    else:
        key = np.where(kl <= kl.min() * (1 + rule.share), points[:, 1], np.inf)
    return int(np.lexsort((kl, key))[0])
