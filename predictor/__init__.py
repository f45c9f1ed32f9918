"""What is likely: learn accuracy from pairs of architecture and measurement, predict it, say how good that is.

Owns the additive prior, the boosted trees on top of it, their held-out quality and their intervals. Takes architectures
and numbers, wherever they were measured, so it may import `space` and never torch, `evaluator` or `search`.
"""

from predictor.accuracy import COVERAGE, AccuracyPredictor, Prediction
from predictor.dataset import FEWEST_PAIRS
from predictor.features import AdditivePrior, feature_names, features
from predictor.quality import Quality, cross_validate
from predictor.shrinkage import expect_elsewhere

__all__ = [
    "COVERAGE",
    "FEWEST_PAIRS",
    "AccuracyPredictor",
    "AdditivePrior",
    "Prediction",
    "Quality",
    "cross_validate",
    "expect_elsewhere",
    "feature_names",
    "features",
]
