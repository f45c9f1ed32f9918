"""A run at work: what all its stages share, and what it has measured so far."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluator import Agreement, Evaluator, Pair, Slopes
from predictor import AccuracyPredictor, Refinement
from search import selection
from search.baselines import fixed_allocations
from search.config import RunConfig
from search.folder import RunFolder
from search.ladder import Ladder
from search.objective import Elsewhere, fit_pairs, stream_of
from search.progress import Reporter
from space import Architecture, SearchSpace

_HOPELESS = 2.0  # times the lowest KL, beyond which a pair tells a round nothing,
_FEWEST_NEAR = 30  # but so many pairs are kept


@dataclass(frozen=True, slots=True)
class Spent:
    """A measurement that a run paid for.

    Args:
        tokens: spent by the run up to and with it.
        pair: what was measured.
        split: on which text.
    """

    tokens: float
    pair: Pair
    split: str


@dataclass
class Run:
    """A run at work: its settings, its model and what it has measured so far."""

    config: RunConfig
    folder: RunFolder
    reporter: Reporter
    evaluator: Evaluator
    space: SearchSpace
    baselines: dict[str, Architecture]
    pairs: list[Pair]  # on the search text, in the order a run measures them
    slopes: list[Slopes]  # at the best of their time
    agreement: Agreement | None  # of the dense model with itself in float32, where it runs in less
    rounds: list[dict[str, Any]] = field(default_factory=list)  # what each reached
    alone: list[Pair] = field(default_factory=list)  # with one sub-block changed,
    alone_split: str = "search"  # and on which text: the search text or its beginning
    refinement: Refinement | None = None  # what the last round searched
    spent: float = 0.0  # tokens through the whole decoder, as if nothing had been measured before this run
    trace: list[Spent] = field(default_factory=list)  # what they were spent on, in order
    ladder: Ladder = field(init=False)  # the budgets that the search covers
    _paid: set[tuple[str, str]] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        self.ladder = self.config.ladder(self.space)

    def elsewhere(self) -> Elsewhere:
        """Return what to expect on other text, learned from the sub-blocks measured alone, if any were."""
        if not self.alone:
            return Elsewhere.alike(self.space)
        sequences = len(self.evaluator.texts.of(self.alone_split))
        return Elsewhere.from_pairs(self.space, self.alone, sequences, self.config.text.shift)

    def measure_alone(self, architectures: Sequence[Architecture]) -> None:
        """Measure sub-blocks alone, on as much of the search text as the settings say, for the additive prior."""
        singles, count = list(architectures), self.config.prior_sequences
        if count < len(self.evaluator.texts.tokens["search"]):
            self.alone_split = f"search:{count}"
            singles.append(Architecture.dense(self.space.layout))  # a perplexity tells nothing without the dense one's
        self.alone = self.measure("Measuring each sub-block alone", singles, "prior", self.alone_split)

    def measure(
        self, title: str, architectures: Sequence[Architecture], origin: str, split: str = "search"
    ) -> list[Pair]:
        """Measure architectures with progress; see `score`."""
        with self.reporter.stage(title, len(architectures), "architectures") as advance:
            return self.score(architectures, origin, split, advance)

    def score(
        self,
        architectures: Sequence[Architecture],
        origin: str,
        split: str = "search",
        progress: Callable[[int], None] = lambda _: None,
    ) -> list[Pair]:
        """Measure architectures, remembering those on the search text as pairs and what all of them cost.

        What another run or strategy has measured already is taken from the store, and paid for all the same.
        """
        found = self.evaluator.measure(architectures, split, origin, progress)
        new = [Pair(a, m, origin) for a, m in zip(architectures, found, strict=True)]
        for pair in new:
            if (key := (pair.architecture.fingerprint, split)) not in self._paid:
                self._paid.add(key)
                self.spent += self.evaluator.work(pair.architecture, split)
                self.trace.append(Spent(self.spent, pair, split))
        if split == "search":
            known = {pair.architecture for pair in self.pairs}
            self.pairs += [pair for pair in new if pair.architecture not in known]
        return new

    @contextmanager
    def spending(self, title: str, tokens: float) -> Iterator[Callable[[], None]]:
        """Show progress by the tokens that are spent of those allowed."""
        shown = self.spent
        with self.reporter.stage(title, max(0, round(tokens - shown)), "tokens") as advance:

            def tell() -> None:
                nonlocal shown
                reached = min(self.spent, tokens)
                advance(round(reached) - round(shown))
                shown = reached

            yield tell

    def slopes_at(self, architecture: Architecture) -> Slopes:
        """Return the slopes at a measured architecture, which cost three measurements where they were not taken yet."""
        for known in self.slopes:
            if known.architecture == architecture:
                return known
        sequences = len(self.evaluator.texts.tokens["search"])
        with self.reporter.stage("Slopes at the best", sequences, "sequences") as advance:
            self.slopes.append(self.evaluator.slopes(architecture, self.space.choices, advance))
        self.spent += self.evaluator.work_of_slopes()
        return self.slopes[-1]

    def fit(self) -> AccuracyPredictor:
        """Fit a predictor of KL on the pairs so far."""
        return self.fit_on(self.pairs, self.slopes)

    def fit_near(self) -> AccuracyPredictor:
        """Fit a predictor for the next round on the pairs that are not hopeless.

        A few that lost everything (KL of 7 beside 0.9, at 60 % of the parameters) make a process expect anything
        anywhere, and what is far from all that was measured then promises most.
        """
        if self.ladder.against:  # of which every rung has good ones of its own
            return self.fit()
        whole = [pair for pair in self.pairs if pair.origin != "prior"]
        lowest = sorted(pair.measurement.kl for pair in whole if self.space.allows(pair.architecture))
        most = max(_HOPELESS * lowest[0], lowest[:_FEWEST_NEAR][-1])
        hopeless = {pair.architecture for pair in whole if pair.measurement.kl > most}
        return self.fit_on([pair for pair in self.pairs if pair.architecture not in hopeless], self.slopes)

    def fit_on(self, pairs: Sequence[Pair], slopes: Sequence[Slopes]) -> AccuracyPredictor:
        """Fit a predictor of KL on some of the pairs and slopes, with all else as the run has it."""
        stream, alone = stream_of(self.evaluator.stream()), self.alone_elsewhere
        return fit_pairs(
            self.space, pairs, self.protocol, self.config.seed, slopes, stream, alone=alone, name=self.loss
        )

    @property
    def loss(self) -> str | None:
        """What is lost where the search aims at tasks; None at the divergence on a text."""
        return self.evaluator.students.aim.loss if self.evaluator.students.aim else None

    @property
    def alone_elsewhere(self) -> list[Pair]:
        """Sub-blocks measured alone, where that was on other text than the pairs."""
        return self.alone if self.alone_split != "search" else []

    def reference(self, split: str = "search") -> NDArray[np.float64]:
        """Return the point (objectives,) against which hypervolumes are taken, KL first, then costs.

        Its KL is that of the uniform architecture at the floor of all costs: what pruning that far is worth without a
        search.
        """
        cheapest, pattern = self.ladder.corners()[-1], self.config.criterion.criterion.group
        [pair] = self.score([fixed_allocations(cheapest, pattern)["uniform"]], "baseline", split)
        return np.array([pair.measurement.kl, *self.ladder.reference])

    def lowest(self) -> Pair:
        """Return the best pair within the budget."""
        [best] = selection.lowest(self.pairs, self.space, 1)
        return next(pair for pair in self.pairs if pair.architecture == best)

    @property
    def protocol(self) -> str:
        """Fingerprint of the protocol of the search text."""
        return self.evaluator.protocol("search").fingerprint
