"""Refining the search space: per gene, the range that can still be in a good model.

Of every choice of every sub-block the predictor is asked how good an architecture with it can be, all else free to
adapt within the budget. What is worse than the best by more than a tenth and the predictor's error is cut away; the
error is that of the difference between the two, which for neighbours is far smaller than that of either.

Source: arXiv 2309.09507, whose search runs in the space that its predictor refined.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from predictor.accuracy import AccuracyPredictor
from predictor.dataset import FloatArray
from space import Indices, SearchSpace, land

_PARENTS = 24  # best known architectures that each choice is tried in
_GOOD = 0.1  # what is worse than the best by less is a good model: how the rest adapts to a choice is only tried
_ERRORS = 2.0  # standard errors that the difference from the best must exceed


@dataclass(frozen=True)
class Refinement:
    """What was kept and cut away of a space.

    Args:
        full: the space before.
        space: the space of what can still be in a good model.
        excess: by column, (choices,) the least found with the choice less the least of all, in the unit of what is
            learned (for KL of its logarithm: 0.01 is 1 %); infinite where the budget leaves no room for the choice.
    """

    full: SearchSpace
    space: SearchSpace
    excess: tuple[FloatArray, ...]

    @property
    def cut_log10(self) -> float:
        """Decimal logarithm of how many times fewer architectures the refined space has."""
        return self.full.size_log10 - self.space.size_log10

    @classmethod
    def together(cls, parts: Sequence[Self]) -> Self:
        """Return what any of the refinements of one space keeps, and all between; the least excess of any."""
        first, *others = parts
        if not others:
            return first
        ranges = zip(*(part.ranges() for part in parts), strict=True)
        ends = ((min(start for start, _ in own), max(stop for _, stop in own)) for own in ranges)
        choices = tuple(own[start : stop + 1] for own, (start, stop) in zip(first.full.choices, ends, strict=True))
        excess = tuple(np.min(own, axis=0) for own in zip(*(part.excess for part in parts), strict=True))
        return cls(first.full, replace(first.full, choices=choices), excess)

    def ranges(self) -> list[tuple[int, int]]:
        """Return, for each column, the first and the last choice of the full space that is kept."""
        found = []
        for own, kept in zip(self.full.choices, self.space.choices, strict=True):
            first = own.index(kept[0])
            found.append((first, first + len(kept) - 1))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: per column, what is kept as [least, most] and how many choices there were."""
        return {
            "cut_log10": round(self.cut_log10, 2),
            "columns": [
                {
                    "kept": [[choice.width, choice.sparsity] for choice in (kept[0], kept[-1])],
                    "choices": len(own),
                    "kept_choices": len(kept),
                }
                for own, kept in zip(self.full.choices, self.space.choices, strict=True)
            ],
        }


def refine(
    predictor: AccuracyPredictor,
    space: SearchSpace,
    good: Indices,
    inside: Indices,
    rng: np.random.Generator,
    errors: float = _ERRORS,
) -> Refinement:
    """Cut away the choices that cannot be in a good model.

    Args:
        predictor: what is asked.
        space: the full space, with its budgets.
        good: (n, columns) architectures of low predicted damage, best first, within the budgets.
        inside: (m, columns) what must stay in the refined space: the best measured.
        rng: of the steps by which the other sub-blocks adapt.
        errors: standard errors of the difference that a choice may be worse by; the more, the less is cut.
    """
    rows, columns, choices = _with_each_choice(space, good[:_PARENTS], rng)
    best = good[0]
    learned = predictor.target.learned(predictor.damages(space.genes(np.concatenate([best[None], rows]))))
    lowest, learned = float(learned.min()), learned[1:]
    # Of a logarithm a tenth is a tenth; what is learned as it is has a tenth of its own.
    scale = 1.0 if predictor.target.logarithmic else abs(lowest)
    found = [int(own[learned[own].argmin()]) for own in _groups(columns, choices)]
    errors_of = _errors_against(predictor, space.genes(np.concatenate([best[None], rows[found]])))
    excess = [np.full(len(options), np.inf) for options in space.choices]
    kept = [np.zeros(len(options), dtype=bool) for options in space.choices]
    for row, error in zip(found, errors_of, strict=True):
        column, choice = int(columns[row]), int(choices[row])
        excess[column][choice] = learned[row] - lowest
        kept[column][choice] = excess[column][choice] <= _GOOD * scale + errors * error
    ranges = []
    for unit in space.units:
        for column in unit:
            kept[column][[int(best[column]), *inside[:, column].tolist()]] = True
        together = np.any([kept[column] for column in unit], axis=0)
        for column in unit:
            kept[column] = together
    for column, options in enumerate(space.choices):
        places = np.flatnonzero(kept[column])
        ranges.append(options[places[0] : places[-1] + 1])
    return Refinement(space, replace(space, choices=tuple(ranges)), tuple(excess))


def _with_each_choice(
    space: SearchSpace, parents: Indices, rng: np.random.Generator
) -> tuple[Indices, NDArray[np.intp], NDArray[np.intp]]:
    """Return each parent with each choice of each column, all else adapted to the budgets, and which that was."""
    pairs = [(column, choice) for column, options in enumerate(space.choices) for choice in range(len(options))]
    columns, choices = (np.repeat(np.array(each, dtype=np.intp), len(parents)) for each in zip(*pairs, strict=True))
    rows = np.tile(parents, (len(pairs), 1))
    every = np.arange(len(rows))
    rows[every, columns] = choices
    held = np.zeros(rows.shape, dtype=bool)
    held[every, columns] = True
    rows = land(space, rows, rng, held)
    within = space.within(rows)
    return rows[within], columns[within], choices[within]


def _groups(columns: NDArray[np.intp], choices: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Return the rows of each column and choice."""
    keys = columns * (choices.max() + 1) + choices
    order = np.argsort(keys, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)


def _errors_against(predictor: AccuracyPredictor, genes: FloatArray) -> FloatArray:
    """Return the standard error of each prediction less that of the first, in the unit of what is learned."""
    _, covariance, _ = predictor.belief(genes)
    own = np.diag(covariance)
    return np.asarray(np.sqrt(np.maximum(own[0] + own - 2 * covariance[0], 0.0))[1:])
