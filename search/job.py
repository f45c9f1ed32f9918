"""A run at work: what all its stages share, and what it has measured so far."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from evaluator import Agreement, Evaluator, Pair, Slopes
from predictor import AccuracyPredictor, Refinement
from search import selection
from search.config import RunConfig
from search.folder import RunFolder
from search.objective import Elsewhere, additive_prior, distance_to, fit_pairs, stream_of
from search.progress import Reporter
from space import Architecture, SearchSpace

_CLOSE = 0.05  # of slopes taken elsewhere, in shares of the damage: they are as good here


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
    refinement: Refinement | None = None  # what the last round searched
    spent: float = 0.0  # tokens through the whole decoder, as if nothing had been measured before this run
    trace: list[Spent] = field(default_factory=list)  # what they were spent on, in order
    _paid: set[tuple[str, str]] = field(default_factory=set, repr=False)

    def elsewhere(self) -> Elsewhere:
        """Return what to expect on other text, learned from the sub-blocks measured alone, if any were."""
        sequences = len(self.evaluator.texts.tokens["search"])
        alone = [pair for pair in self.pairs if pair.origin == "prior"]
        if not alone:
            return Elsewhere.alike(self.space)
        return Elsewhere.from_pairs(self.space, alone, sequences, self.config.text.assumed_shift)

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

    def take_slopes(self) -> None:
        """Take slopes at the best architecture measured so far, unless some were taken close by."""
        if not self.config.search.slopes:
            return
        best = self.lowest().architecture
        prior = additive_prior(self.space, [pair for pair in self.pairs if pair.origin == "prior"])
        if self.slopes and distance_to(self.space, best, self.slopes, prior) < _CLOSE:
            return
        sequences = len(self.evaluator.texts.tokens["search"])
        with self.reporter.stage("Slopes at the best", sequences, "sequences") as advance:
            self.slopes.append(self.evaluator.slopes(best, self.space.choices, advance))
        self.spent += self.evaluator.work_of_slopes()

    def fit(self) -> AccuracyPredictor:
        """Fit a predictor of KL on the pairs so far."""
        stream = stream_of(self.evaluator.stream())
        return fit_pairs(self.space, self.pairs, self.protocol, self.config.seed, self.slopes, stream)

    def lowest(self) -> Pair:
        """Return the best pair within the budget."""
        [best] = selection.lowest(self.pairs, self.space, 1)
        return next(pair for pair in self.pairs if pair.architecture == best)

    @property
    def protocol(self) -> str:
        """Fingerprint of the protocol of the search text."""
        return self.evaluator.protocol("search").fingerprint
