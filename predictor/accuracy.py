"""The accuracy predictor: fitted on pairs, asked about architectures, kept in a folder."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from predictor.boosting import BoostedModel, Margin
from predictor.dataset import FloatArray, Pairs, changed, checked_genes, singles
from predictor.features import FLOOR, AdditivePrior, feature_names, features
from predictor.quality import Quality, cross_validate, half_width
from space import Architecture, Layout, PredictorError, SecateurError

COVERAGE = 0.9  # share of new measurements that an interval is to contain
_FORMAT, _VERSION = "secateur-predictor", 1
_RECORD, _TREES = "predictor.json", "trees.json"


@dataclass(frozen=True)
class Prediction:
    """Predicted values with a 90 % interval, one per architecture, in the unit of the predictor's target."""

    value: FloatArray  # (architectures,)
    lower: FloatArray  # (architectures,)
    upper: FloatArray  # (architectures,)

    def __len__(self) -> int:
        return len(self.value)


@dataclass(frozen=True)
class AccuracyPredictor:
    """Predicts what an architecture would measure, without a model: lower is better.

    Immutable, and safe to share between threads.

    Args:
        layout: the dense model.
        prior: additive prior, from the pairs that change one sub-block.
        model: margin and trees, from the other pairs.
        quality: held-out quality of the model.
        half_width: half width of the interval, in natural logarithms.
        protocol: how the pairs were measured; a prediction stands for that protocol alone.
        target: what was measured, for example "kl".
        seed: of folds and trees.
    """

    layout: Layout
    prior: AdditivePrior
    model: BoostedModel
    quality: Quality
    half_width: float
    protocol: str = ""
    target: str = "kl"
    seed: int = 0
    # What cross-validation predicted, by fingerprint, of each pair that `fit` trained on; not saved.
    held_out: Mapping[str, float] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def fit(
        cls,
        layout: Layout,
        architectures: Sequence[Architecture],
        values: Sequence[float],
        *,
        protocol: str = "",
        target: str = "kl",
        seed: int = 0,
    ) -> Self:
        """Fit a predictor: singles make the prior, all others train margin and trees.

        Args:
            layout: the dense model.
            architectures: measured architectures, in any order; dense is ignored.
            values: measured value of each, at least 0 and 0 for dense, all of one protocol.
            protocol: how they were measured.
            target: what was measured; KL to the dense model in nats per token is "kl".
            seed: of folds and trees.

        Raises:
            PredictorError: too few pairs, equal, non-finite, negative or contradictory values, architectures of another
                model, or a sub-block that was never measured alone.

        Source: arXiv 2309.09507 for boosted trees on pairs, arXiv 2411.19146 for the additive prior.
        """
        pairs = Pairs.check(layout, architectures, values)
        single = singles(layout, pairs.genes)
        others = pairs.where(~single)
        others.check_trainable()
        prior = AdditivePrior.from_genes(layout, pairs.genes, pairs.values)
        x = features(prior.terms(others.genes))
        log_values = np.log(np.maximum(others.values, FLOOR))
        quality, residuals = cross_validate(x, log_values, seed)
        model = BoostedModel.fit(x, log_values, seed)
        held_out = dict(zip(others.fingerprints, np.exp(log_values - residuals).tolist(), strict=True))
        return cls(layout, prior, model, quality, half_width(residuals, COVERAGE), protocol, target, seed, held_out)

    def predict(self, architectures: Iterable[Architecture]) -> Prediction:
        """Predict the value of architectures.

        Raises:
            PredictorError: an architecture is of another model, or changes a sub-block that was never measured alone.
        """
        return self.predict_genes(checked_genes(self.layout, architectures))

    def predict_genes(self, genes: FloatArray) -> Prediction:
        """Predict the value of many architectures at once.

        Args:
            genes: (architectures, layers, genes in the order of `space.GENES`), as from `SearchSpace.genes`.

        Raises:
            PredictorError: as `predict`.
        """
        x = features(self.prior.terms(genes))
        # Dense is 0 by definition, which no logarithm reaches.
        pruned = changed(self.layout, genes).any(axis=(1, 2))
        value = np.where(pruned, np.exp(self.model.predict(x)), 0.0)
        return Prediction(value, value * np.exp(-self.half_width), value * np.exp(self.half_width))

    def contributions(self, architectures: Iterable[Architecture]) -> list[dict[str, float]]:
        """Return, for each architecture, what each feature adds to the natural logarithm of the prediction."""
        genes = checked_genes(self.layout, architectures)
        parts = self.model.contributions(features(self.prior.terms(genes)))
        names = (*feature_names(self.layout), "constant")
        return [dict(zip(names, (float(part) for part in row), strict=True)) for row in parts]

    def save(self, folder: Path) -> None:
        """Write the predictor into a folder: predictor.json, and the trees in XGBoost's own trees.json.

        Each file is written beside its place and then renamed, predictor.json last, so that a crash leaves either the
        old predictor or one that `load` refuses.
        """
        trees = self.model.trees_json()
        record = {
            "format": _FORMAT,
            "version": _VERSION,
            "layout": self.layout.to_dict(),
            "protocol": self.protocol,
            "target": self.target,
            "seed": self.seed,
            "half_width": self.half_width,
            "quality": self.quality.to_dict(),
            "margin": self.model.margin.to_dict(),
            "prior": self.prior.to_dict(),
            "features": list(feature_names(self.layout)),
            "trees_sha256": hashlib.sha256(trees).hexdigest(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / _TREES, trees)
        _replace(folder / _RECORD, json.dumps(record, indent=1, allow_nan=False).encode())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a predictor from a folder.

        Raises:
            PredictorError: a file is missing, damaged, or not of this version.
        """
        record = _read_record(folder)
        trees = _read(folder / _TREES)
        if hashlib.sha256(trees).hexdigest() != record.get("trees_sha256"):
            raise PredictorError(
                f"{_TREES} must be the one that was saved with {_RECORD}, but differs in {folder}; "
                "fit the predictor again."
            )
        try:
            layout = Layout.from_dict(record["layout"])
            if record["features"] != list(feature_names(layout)):
                raise ValueError("its features are not this version's")
            return cls(
                layout=layout,
                prior=AdditivePrior.from_dict(layout, record["prior"]),
                model=BoostedModel.from_json(Margin.from_dict(record["margin"]), trees),
                quality=Quality.from_dict(record["quality"]),
                half_width=float(record["half_width"]),
                protocol=str(record["protocol"]),
                target=str(record["target"]),
                seed=int(record["seed"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, SecateurError) as error:
            raise PredictorError(
                f"A predictor's {_RECORD} must be complete and of this version, but the one in {folder} is not "
                f"({error}); fit the predictor again."
            ) from None


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    beside.write_bytes(content)
    beside.replace(path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PredictorError(
            f"A predictor's folder must hold {_RECORD} and {_TREES}, but {path} cannot be read "
            f"({error.strerror}); fit and save a predictor there."
        ) from None


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads(_read(folder / _RECORD))
    except ValueError as error:
        if isinstance(error, PredictorError):
            raise
        raise PredictorError(
            f"A predictor's {_RECORD} must be JSON, but the one in {folder} is not ({error}); fit the predictor again."
        ) from None
    if not isinstance(record, dict) or record.get("format") != _FORMAT or record.get("version") != _VERSION:
        raise PredictorError(
            f"A predictor's {_RECORD} must be of format {_FORMAT} version {_VERSION}, but the one in {folder} is not; "
            "fit the predictor again with this version."
        )
    return record
