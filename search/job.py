"""A run at work: what all its stages share, and what it has measured so far."""

from collections.abc import Sequence
from dataclasses import dataclass

from evaluator import Agreement, Evaluator, Pair, Slopes
from predictor import AccuracyPredictor
from search import selection
from search.config import RunConfig
from search.folder import RunFolder
from search.objective import Elsewhere, additive_prior, distance_to, fit_pairs
from search.progress import Reporter
from space import Architecture, SearchSpace

_CLOSE = 0.05  # of slopes taken elsewhere, in shares of the damage: they are as good here


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

    def elsewhere(self) -> Elsewhere:
        """Return what to expect on other text, learned from the sub-blocks measured alone."""
        sequences = len(self.evaluator.texts.tokens["search"])
        alone = [pair for pair in self.pairs if pair.origin == "prior"]
        return Elsewhere.from_pairs(self.space, alone, sequences, self.config.text.assumed_shift)

    def measure(
        self, title: str, architectures: Sequence[Architecture], origin: str, split: str = "search"
    ) -> list[Pair]:
        """Measure architectures with progress, remembering those on the search text as pairs."""
        with self.reporter.stage(title, len(architectures), "architectures") as advance:
            found = self.evaluator.measure(architectures, split, origin, advance)
        new = [Pair(a, m, origin) for a, m in zip(architectures, found, strict=True)]
        if split == "search":
            known = {pair.architecture.fingerprint for pair in self.pairs}
            self.pairs += [pair for pair in new if pair.architecture.fingerprint not in known]
        return new

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

    def fit(self) -> AccuracyPredictor:
        """Fit a predictor of KL on the pairs so far."""
        return fit_pairs(self.space, self.pairs, self.protocol, self.config.seed, self.slopes)

    def lowest(self) -> Pair:
        """Return the best pair within the budget."""
        [best] = selection.lowest(self.pairs, self.space, 1)
        return next(pair for pair in self.pairs if pair.architecture == best)

    @property
    def protocol(self) -> str:
        """Fingerprint of the protocol of the search text."""
        return self.evaluator.protocol("search").fingerprint
