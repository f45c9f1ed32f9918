"""Pruning criteria and the surgery that applies them: pure tensor maths here, no model is opened or measured."""

from evaluator.pruning.apply import Surgeon
from evaluator.pruning.statistics import InputNorms, gather_input_norms, iterate_batches, projections

# Criteria by name, with the paper each comes from.
CRITERIA = {"wanda": "arXiv 2306.11695"}

__all__ = ["CRITERIA", "InputNorms", "Surgeon", "gather_input_norms", "iterate_batches", "projections"]
