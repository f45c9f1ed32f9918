"""What is likely: learn accuracy from pairs of architecture and measurement, predict it, say how good that is.

Owns the additive prior, the regressors on top of it, their held-out quality and their intervals, and what follows from
a fitted predictor without measuring: explanations, the refined space, what to measure next. Takes architectures and
numbers, wherever they were measured, so it may import `space` and never torch, `evaluator` or `search`.
"""

from predictor.accuracy import AccuracyPredictor, curve_of
from predictor.acquisition import Pick, choose_batch
from predictor.dataset import FEWEST_PAIRS
from predictor.expansion import Expansion, surroundings
from predictor.explanation import partial_dependence, sub_block_damages, what_if
from predictor.features import feature_names, features
from predictor.intervals import Prediction
from predictor.prior import AdditivePrior
from predictor.quality import COVERAGE, CurvePoint, Quality, cross_validate, error_with
from predictor.refinement import Refinement, refine
from predictor.regressors import DEFAULT, REGRESSORS, Regressor
from predictor.shrinkage import expect_elsewhere
from predictor.stream import ResidualStream
from predictor.tables import pairs_of_table, read_table
from predictor.targets import Target

__all__ = [
    "COVERAGE",
    "DEFAULT",
    "FEWEST_PAIRS",
    "REGRESSORS",
    "AccuracyPredictor",
    "AdditivePrior",
    "CurvePoint",
    "Expansion",
    "Pick",
    "Prediction",
    "Quality",
    "Refinement",
    "Regressor",
    "ResidualStream",
    "Target",
    "choose_batch",
    "cross_validate",
    "curve_of",
    "error_with",
    "expect_elsewhere",
    "feature_names",
    "features",
    "pairs_of_table",
    "partial_dependence",
    "read_table",
    "refine",
    "sub_block_damages",
    "surroundings",
    "what_if",
]
