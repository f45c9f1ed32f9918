"""Pruning criteria and the surgery that applies them: pure tensor maths here, no model is opened or measured.

Which criteria there are is one table, in `evaluator.pruning.criteria`.
"""

from evaluator.pruning.apply import Surgeon
from evaluator.pruning.levels import Levels
from evaluator.pruning.statistics import (
    InputStatistics,
    LayerStatistics,
    gather_statistics,
    iterate_batches,
    passed_over,
    projections,
)
from evaluator.pruning.taylor import gather_gradients

__all__ = [
    "InputStatistics",
    "LayerStatistics",
    "Levels",
    "Surgeon",
    "gather_gradients",
    "gather_statistics",
    "iterate_batches",
    "passed_over",
    "projections",
]
