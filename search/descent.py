"""Steps down from a measured architecture: where its slopes lead, found exactly, as far as a damping lets them.

| symbol | meaning |
| --- | --- |
| a | the architecture at which slopes were taken |
| d_j(c), T_j(c) | slope of choice c of sub-block j at a, and its damage alone (`predictor.expansion`) |
| k | damping |

    minimise over b within the budgets: sum over j of d_j(b_j) + k abs(T_j(b_j) - T_j(a_j))

A sum over sub-blocks, so that its optimum is an integer program's. What it leaves out, sub-blocks that change together,
grows with the length of the step and always speaks against it, since the optimum is where the sum errs in its favour: a
larger k makes shorter steps, as in Levenberg's and Marquardt's method. One backward pass tells all slopes, so that a
step costs as much as a few measurements, whatever the number of sub-blocks.

Source: Marquardt, An algorithm for least-squares estimation of nonlinear parameters (1963), for the damping.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from predictor import AdditivePrior, Expansion
from search.exact import lowest_sums
from space import GENES, Architecture, SearchSpace, genes_of

FIRST_DAMPING = 1.5
_AROUND = (1.0, 1.4, 1 / 1.4)  # times the damping of the last step that was a success
_SHORTER = 2.25  # times the damping, where no step was one
_MOST_DAMPING = 20.0  # beyond which hardly a step is left


class Descent:
    """Steps down, with a damping that learns from those before.

    Args:
        space: the search space with its budgets.
        prior: of the damage that the slopes are of.
        damping: to begin with.
    """

    def __init__(self, space: SearchSpace, prior: AdditivePrior, damping: float = FIRST_DAMPING) -> None:
        self._space = space
        self._prior = prior
        self.damping = damping

    def steps(self, expansion: Expansion) -> dict[Architecture, float]:
        """Return where to go from an architecture, each with its damping; without end at none that differs from it.

        Args:
            expansion: of the architecture, from its slopes.
        """
        linear, second = self._scores(expansion)
        found: dict[Architecture, float] = {}
        for factor in _AROUND:
            damping = self.damping * factor
            scores = [one + damping * two for one, two in zip(linear, second, strict=True)]
            # The program takes scores from 0 on, and a choice is better than another by the same whatever is added.
            for row in islice(lowest_sums(self._space, [each - each.min() for each in scores]), 1):
                [best] = self._space.decode(row)
                if best != expansion.architecture:
                    found.setdefault(best, damping)
        return found

    def shorten(self) -> bool:
        """Make further steps shorter; return whether any are worth trying."""
        self.damping *= _SHORTER
        return self.damping <= _MOST_DAMPING

    def _scores(self, expansion: Expansion) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
        """Return by column what each choice changes to first order, and to second order without the damping."""
        linear: list[NDArray[np.float64]] = [np.zeros(len(own)) for own in self._space.choices]
        second = [np.zeros_like(own) for own in linear]
        for unit, genes in self._changed_alone(expansion.architecture):
            found = expansion.parts(self._prior, genes, self._prior.terms(genes))
            for column in unit:
                linear[column], second[column] = found[0][:, column], found[1][:, column]
        return linear, second

    def _changed_alone(self, start: Architecture) -> Iterator[tuple[Sequence[int], NDArray[np.float64]]]:
        """Yield each unit of columns with the genes (choices, layers, genes) of its choices, all else as it was."""
        space = self._space
        own = genes_of([start]).reshape(1, space.columns, len(GENES) // 2)
        for unit in space.units:
            genes = np.repeat(own, len(space.choices[unit[0]]), axis=0)
            for column in unit:
                genes[:, column] = [(choice.width, choice.sparsity) for choice in space.choices[column]]
            yield unit, genes.reshape(len(genes), space.layout.layers, len(GENES))
