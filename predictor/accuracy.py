"""The accuracy predictor: fitted on pairs, asked about architectures, kept in a folder."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
from scipy.stats import norm

from predictor import fitting
from predictor import folder as files
from predictor.boosting import XGBoost
from predictor.dataset import FloatArray, Pairs, blocks_alone, changed, checked_genes, singles
from predictor.expansion import Expansion, Surroundings
from predictor.features import aggregate_names, feature_names
from predictor.gaussian import GaussianProcess
from predictor.given import few_damages, one_protocol, seen
from predictor.intervals import Intervals, Prediction, interval_around
from predictor.prior import AdditivePrior
from predictor.quality import COVERAGE, CurvePoint, Quality, learning_curve
from predictor.regressors import REGRESSORS, Regressor
from predictor.stream import ResidualStream
from predictor.targets import Target
from predictor.threads import one_thread
from space import Architecture, Layout, PredictorError

_ROWS = 2048  # architectures predicted at once
_Told = TypeVar("_Told")


@dataclass(frozen=True)
class AccuracyPredictor:
    """Predicts what an architecture would measure, without a model.

    Immutable, and safe to share between threads.

    Args:
        layout: the dense model.
        prior: additive prior, from the pairs that change one sub-block; where there are none, an assumed one.
        regressor: what was chosen by cross-validation; `quality.regressor` names it.
        process: Gaussian process on the same pairs, which knows how far an architecture is from them.
        quality: held-out quality of the regressor.
        intervals: by what the process' standard deviation is multiplied for half of one.
        target: what is predicted.
        protocol: how the pairs were measured; a prediction stands for that protocol alone.
        seed: of folds and models.
        few_tokens: whether architectures come with what they measured on few tokens.
        expansions: of measured architectures, what slopes taken there say of their surroundings.
        stream: how the dense model's residual stream moves; None where that was not told.
    """

    layout: Layout
    prior: AdditivePrior
    regressor: Regressor
    process: GaussianProcess
    quality: Quality
    intervals: Intervals
    target: Target = field(default_factory=Target)
    protocol: str = ""
    seed: int = 0
    few_tokens: bool = False
    expansions: tuple[Expansion, ...] = ()
    stream: ResidualStream | None = None
    # What cross-validation predicted, by fingerprint, of each pair that `fit` trained on and no slopes were taken at;
    # not saved.
    held_out: Mapping[str, tuple[float, float, float]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def fit(
        cls,
        layout: Layout,
        architectures: Sequence[Architecture],
        values: Sequence[float],
        *,
        target: Target | None = None,
        protocol: str | Sequence[str] = "",
        few_tokens: Sequence[float] | None = None,
        expansions: Sequence[Expansion] = (),
        stream: ResidualStream | None = None,
        prior: AdditivePrior | None = None,
        seed: int = 0,
        regressors: Sequence[str] = tuple(REGRESSORS),
    ) -> Self:
        """Fit a predictor: singles make the prior, all others train the regressors, of which the best is kept.

        Args:
            layout: the dense model.
            architectures: measured architectures, in any order; dense is ignored. Where none differs from dense in one
                gene of one sub-block only, sub-blocks of a kind are assumed to do the same damage. The dense model less
                one layer counts as a single.
            values: measured value of each.
            target: what was measured; None is KL to the dense model in nats per token.
            protocol: how they were measured; where there is one for each, they must be the same.
            few_tokens: what each measured on few tokens, as a feature; not a number for singles is allowed.
            expansions: around some of the architectures, of the target's damage; left out again where cross-validation
                finds the quarter of the pairs that is closest to them predicted worse with them.
            stream: how the dense model's residual stream moves, for what layers removed together do.
            prior: additive prior of the target's damage that was measured otherwise, as on fewer tokens; None makes
                it of the singles.
            seed: of folds and models.
            regressors: names of those to choose from, preferred ones first.

        Raises:
            PredictorError: too few pairs, equal, non-finite or contradictory values or such as the target cannot have,
                architectures of another model, pairs of two protocols, or a sub-block that was never measured alone.

        Source: arXiv 2309.09507 for trees on pairs, arXiv 2411.19146 for the additive prior.
        """
        target, protocol = target or Target(), one_protocol(protocol)
        with one_thread():
            found = fitting.fit(
                layout, architectures, values, target, few_tokens, tuple(expansions), stream, prior, seed, regressors
            )
        return cls(
            layout,
            found.prior,
            found.regressor,
            found.process,
            found.quality,
            found.intervals,
            target,
            protocol,
            seed,
            few_tokens is not None,
            found.expansions,
            stream,
            found.held_out,
        )

    def predict(self, architectures: Iterable[Architecture], few_tokens: Sequence[float] | None = None) -> Prediction:
        """Predict the value of architectures.

        Args:
            architectures: of the predictor's model.
            few_tokens: what each measured on few tokens, for a predictor that was fitted with that.

        Raises:
            PredictorError: an architecture is of another model, or changes a sub-block that was never measured alone;
                few_tokens are missing, or given to a predictor that knows none.
        """
        return self.predict_genes(checked_genes(self.layout, architectures), few_tokens)

    def predict_genes(
        self, genes: FloatArray, few_tokens: Sequence[float] | None = None, threads: int = 1
    ) -> Prediction:
        """Predict the value of many architectures at once.

        Args:
            genes: (architectures, layers, genes in the order of `space.GENES`), as from `SearchSpace.genes` or
                `space.read_genes`.
            few_tokens: as in `predict`.
            threads: that share the work, where there are thousands of architectures; results are the same.

        Raises:
            PredictorError: as `predict`.
        """
        parts = self._by_rows(self._predict_rows, genes, few_tokens, threads)
        return Prediction(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def _predict_rows(self, genes: FloatArray, few: FloatArray | None) -> tuple[FloatArray, ...]:
        """Return values and ends of intervals, each (architectures,)."""
        x = self._seen(genes, few)
        if self.regressor is self.process:
            predicted, spread = self.process.predict_with_spread(x)
        else:
            predicted, spread = self.regressor.predict(x), self.process.spread(x)
        found = interval_around(self.target, predicted, self.intervals.factor(predicted) * spread)
        # Dense is known by definition, and no logarithm reaches it.
        dense = ~changed(self.layout, genes).any(axis=(1, 2))
        return tuple(np.where(dense, self.target.dense, part) for part in (found.value, found.lower, found.upper))

    def damages(self, genes: FloatArray, threads: int = 1) -> FloatArray:
        """Return predicted damages (architectures,), the lower the better: what a search asks, without intervals.

        Args:
            genes: (architectures, layers, genes), as in `predict_genes`.
            threads: as in `predict_genes`.

        Raises:
            PredictorError: as `predict`.
        """
        return np.concatenate(self._by_rows(self._damage_rows, genes, None, threads))

    def _damage_rows(self, genes: FloatArray, few: FloatArray | None) -> FloatArray:
        found = self.target.damage_of(self.regressor.predict(self._seen(genes, few)))
        return np.where(changed(self.layout, genes).any(axis=(1, 2)), found, 0.0)

    def _by_rows(
        self,
        ask: Callable[[FloatArray, FloatArray | None], _Told],
        genes: FloatArray,
        few_tokens: Sequence[float] | None,
        threads: int,
    ) -> list[_Told]:
        """Return what is told of some architectures at a time, so that memory stays bounded."""
        few = self._few_damages(few_tokens)
        if few is not None and len(few) != len(genes):
            raise PredictorError(
                f"Each architecture must come with one measurement on few tokens, but there are {len(genes)} "
                f"architectures and {len(few)} measurements; give one for each."
            )
        starts = range(0, max(len(genes), 1), _ROWS)
        rows = [genes[first : first + _ROWS] for first in starts]
        beside = [None if few is None else few[first : first + _ROWS] for first in starts]
        if threads == 1 or len(rows) == 1:
            return [ask(*each) for each in zip(rows, beside, strict=True)]
        with one_thread(), ThreadPoolExecutor(threads) as pool:
            return list(pool.map(ask, rows, beside))

    def belief(self, genes: FloatArray) -> tuple[FloatArray, FloatArray, float]:
        """Return what is believed of architectures together, in the unit of what is learned (`Target.learned`).

        Args:
            genes: (architectures, layers, genes), as in `predict_genes`; some thousand at most.

        Returns:
            Predictions (architectures,), the covariance (architectures, architectures) of their errors, and the
            variance of a measurement's noise; widened as intervals are.

        Raises:
            PredictorError: as `predict`.
        """
        x = self._features(genes, None)
        predicted = self.regressor.predict(x)
        widened = self.intervals.factor(predicted) / norm.ppf((1 + COVERAGE) / 2)
        covariance = widened[:, None] * self.process.covariance(x) * widened
        return predicted, covariance, float(np.median(widened) ** 2 * self.process.noise)

    def _features(self, genes: FloatArray, few_tokens: Sequence[float] | None) -> FloatArray:
        return self._seen(genes, self._few_damages(few_tokens))

    def _few_damages(self, few_tokens: Sequence[float] | None) -> FloatArray | None:
        if self.few_tokens != (few_tokens is not None):
            raise PredictorError(
                "A predictor fitted with measurements on few tokens must be asked with them, and no other may, but "
                f"{'none were' if self.few_tokens else 'some were'} given; "
                f"{'measure them' if self.few_tokens else 'leave them out'}."
            )
        return None if few_tokens is None else few_damages(self.target, few_tokens)

    def _seen(self, genes: FloatArray, few: FloatArray | None) -> FloatArray:
        return seen(self.prior, self._around, self.target, genes, few, self.stream)

    @cached_property
    def _around(self) -> Surroundings | None:
        return Surroundings(self.expansions, self.prior) if self.expansions else None

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of what the regressor sees."""
        return feature_names(self.layout, self.few_tokens, bool(self.expansions), self.stream is not None)

    def contributions(self, architectures: Iterable[Architecture]) -> list[dict[str, float]]:
        """Return, for each architecture, what each feature adds to what is learned (`Target.learned`).

        Raises:
            PredictorError: the regressor is not XGBoost, whose trees alone say so exactly; or as `predict`.
        """
        if not isinstance(self.regressor, XGBoost):
            raise PredictorError(
                f"Contributions of features must come from xgboost, but this predictor's regressor is "
                f"{self.quality.regressor}; ask `sub_block_damages`, or fit with regressors=['xgboost']."
            )
        parts = self.regressor.contributions(self._features(checked_genes(self.layout, architectures), None))
        names = (*self.feature_names, "constant")
        return [dict(zip(names, (float(part) for part in row), strict=True)) for row in parts]

    def save(self, folder: Path) -> None:
        """Write the predictor into a folder; see `predictor.folder`."""
        arrays = {"regressor": self.regressor.to_arrays(), "process": self.process.to_arrays()}
        arrays["intervals"] = {"places": self.intervals.places, "factors": self.intervals.factors}
        record = {
            "layout": self.layout.to_dict(),
            "target": self.target.to_dict(),
            "protocol": self.protocol,
            "seed": self.seed,
            "few_tokens": self.few_tokens,
            "quality": self.quality.to_dict(),
            "prior": self.prior.to_dict(),
            "expansions": [expansion.to_dict() for expansion in self.expansions],
            "stream": self.stream.to_dict() if self.stream else None,
            "features": list(self.feature_names),
        }
        files.write(folder, record, arrays)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a predictor from a folder.

        Raises:
            PredictorError: a file is missing, damaged, or not of this version.
        """
        record, arrays = files.read(folder)
        with files.refusing(folder):
            layout = Layout.from_dict(record["layout"])
            few_tokens = bool(record["few_tokens"])
            expansions = tuple(Expansion.from_dict(layout, each) for each in record["expansions"])
            stream = ResidualStream.from_dict(record["stream"]) if record.get("stream") else None
            if record["features"] != list(feature_names(layout, few_tokens, bool(expansions), stream is not None)):
                raise ValueError("its features are not this version's")
            quality = Quality.from_dict(record["quality"])
            process = GaussianProcess.from_arrays(arrays["process"])
            regressor = REGRESSORS[quality.regressor].from_arrays(arrays["regressor"])
            if isinstance(regressor, GaussianProcess) and regressor.equals(process):
                regressor = process  # as it was when it was fitted: what both need is then computed once
            return cls(
                layout=layout,
                prior=AdditivePrior.from_dict(layout, record["prior"]),
                regressor=regressor,
                process=process,
                quality=quality,
                intervals=Intervals(**arrays["intervals"]),
                target=Target.from_dict(record["target"]),
                protocol=str(record["protocol"]),
                seed=int(record["seed"]),
                few_tokens=few_tokens,
                expansions=expansions,
                stream=stream,
            )


def curve_of(
    predictor: AccuracyPredictor, architectures: Sequence[Architecture], values: Sequence[float]
) -> list[CurvePoint]:
    """Return the learning curve of a predictor: its held-out quality had it been fitted on fewer of its pairs.

    Args:
        predictor: as fitted on the pairs, without few-token measurements.
        architectures: those that it was fitted on; singles and dense are ignored.
        values: measured value of each.
    """
    pairs = Pairs.check(predictor.layout, architectures, values)
    alone = singles(predictor.layout, pairs.genes) | blocks_alone(predictor.layout, pairs.genes)
    others = pairs.where(~alone)
    x = predictor._seen(others.genes, None)
    y = predictor.target.learned(predictor.target.damage(others.values))
    aggregates = len(aggregate_names(expanded=bool(predictor.expansions), streamed=predictor.stream is not None))
    with one_thread():
        return learning_curve(x, y, aggregates, predictor.seed, predictor.quality.regressor)
