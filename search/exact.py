"""The exact optimum of a score that is a sum over sub-blocks, under all budgets: an integer program.

    minimise sum over j, c of s[j, c] x[j, c]   subject to   sum over c of x[j, c] = 1 for every sub-block j,
    sum over j, c of cost[j, c, b] x[j, c] <= limit[b] for every budget b,   x in {0, 1}

Source: Puzzle (arXiv 2411.19146), section 4; solved by HiGHS through scipy.
"""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from predictor import AdditivePrior
from space import GENES, Architecture, Indices, SearchSpace, genes_of

_GAP = 1e-4  # of the optimum that may be left: what is measured errs by a hundred times that
_MISSED = 1.5e-6  # a little more than the share of a budget that the solver may miss it by
_SECONDS = 20.0  # for one solution; the best found until then is taken


def lowest_sums(space: SearchSpace, scores: Sequence[NDArray[np.float64]], apart: int = 1) -> Iterator[Indices]:
    """Yield the architectures (1, columns) of the lowest sums of scores within the budgets, best first, to the last.

    Args:
        space: the search space with its budgets.
        scores: by column, what each choice adds (choices,).
        apart: columns in which any two differ at least.
    """
    program = _Program(space, scores)
    while (row := program.solve()) is not None:
        # Where rounding has its way all the same.
        if fits := bool(space.within(row[None])[0]):
            yield row[None]
        program.keep_away(row, apart if fits else 1)


def column_scores(space: SearchSpace, prior: AdditivePrior) -> list[NDArray[np.float64]]:
    """Return what each choice of each column adds to the prior."""
    dense = genes_of([Architecture.dense(space.layout)]).reshape(1, space.columns, len(GENES) // 2)
    scores = []
    for column, options in enumerate(space.choices):
        genes = np.repeat(dense, len(options), axis=0)
        genes[:, column] = [(choice.width, choice.sparsity) for choice in options]
        scores.append(prior.terms(genes.reshape(len(options), space.layout.layers, len(GENES)))[:, column])
    return scores


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Let the process print nothing for a while: HiGHS has lines that no option turns off, and stdout may be JSON."""
    if "ipykernel" in sys.modules:  # which watches what is printed by a pipe of its own
        yield
        return
    library = ctypes.CDLL(None) if os.name == "posix" else ctypes.cdll.msvcrt
    sys.stdout.flush()
    library.fflush(None)
    try:
        own = os.dup(1)
    except OSError:  # closed, so that nothing can be printed
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        library.fflush(None)
        os.dup2(own, 1)
        os.close(own)


class _Program:
    """The integer program, to which solutions to keep away from are added."""

    def __init__(self, space: SearchSpace, scores: Sequence[NDArray[np.float64]]) -> None:
        sizes = space.sizes.astype(int)
        self._first = np.concatenate([[0], np.cumsum(sizes)])  # of each column's variables
        every = np.concatenate([np.asarray(own, dtype=np.float64) for own in scores])
        # HiGHS takes what is below 1e-6 for nothing.
        self._scores = every / max(float(np.abs(every).max()), np.finfo(np.float64).tiny)
        columns = np.repeat(np.arange(space.columns), sizes)
        one_each = coo_array((np.ones(len(columns)), (columns, np.arange(len(columns)))))
        self._constraints = [LinearConstraint(one_each, 1, 1)]
        # (budgets, variables)
        costs = np.concatenate([space.column_costs(column) for column in range(space.columns)]).T
        if len(costs):
            room = space.limits - space.fixed_budget_costs
            scale = np.maximum(np.abs(room), 1.0)  # parameters go into the hundred millions
            # Costs are whole numbers, so half of one more changes nothing, and keeps rounding from excluding the limit
            # itself; what the solver lets a budget be missed by it must not have.
            most = (np.floor(room) + 0.5) / scale - _MISSED
            self._constraints.append(LinearConstraint(costs / scale[:, None], -np.inf, most))
        if space.whole_blocks:
            self._constraints.append(self._tied(space))

    def _tied(self, space: SearchSpace) -> LinearConstraint:
        pairs = [
            (self._first[unit[0]] + choice, self._first[unit[1]] + choice)
            for unit in space.units
            for choice in range(len(space.choices[unit[0]]))
        ]
        rows = np.repeat(np.arange(len(pairs)), 2)
        signs = np.tile([1.0, -1.0], len(pairs))
        shape = (len(pairs), int(self._first[-1]))
        return LinearConstraint(coo_array((signs, (rows, np.array(pairs).reshape(-1))), shape=shape), 0, 0)

    def solve(self) -> NDArray[np.int16] | None:
        with _silent():
            found = milp(
                self._scores,
                constraints=self._constraints,
                bounds=Bounds(0, 1),
                integrality=np.ones(len(self._scores), dtype=np.int64),
                options={"mip_rel_gap": _GAP, "time_limit": _SECONDS},
            )
        if found.x is None:
            return None
        starts = zip(self._first[:-1], self._first[1:], strict=True)
        return np.array([int(found.x[first:end].argmax()) for first, end in starts], dtype=np.int16)

    def keep_away(self, row: NDArray[np.int16], apart: int) -> None:
        """Ask of further solutions to differ from one in as many columns."""
        chosen = np.zeros((1, int(self._first[-1])))
        chosen[0, self._first[:-1] + row] = 1.0
        self._constraints.append(LinearConstraint(chosen, -np.inf, len(row) - apart))
