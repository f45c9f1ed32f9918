"""What can be said: families, a dense model's layout, architectures, the allowed set of them, closed-form cost.

Owns the vocabulary that the other three packages share. Imports none of them, and of heavy libraries numpy alone, so
that a question about an architecture needs no model.
"""

from space.allocation import evenly_sparse, largest, uniform_sparsity, uniform_widths, whole_ends
from space.architecture import GENES, Architecture, LayerArchitecture, genes_of
from space.batch import DistinctChoices, Genes, check_indices, costs_of_genes, encode_genes, read_genes
from space.building import build_space, default_width_step
from space.cost import BUDGET_METRICS, LATENCY, METRICS, Budget, Cost, cost_of
from space.criterion import Criterion, Update, Weights, Widths
from space.domain import Choice, Indices, SearchSpace
from space.errors import (
    ArchitectureError,
    BudgetError,
    EngineError,
    ExportError,
    FamilyError,
    MeasurementError,
    ModelError,
    PredictorError,
    RunFolderError,
    SecateurError,
    SettingError,
    TextError,
)
from space.families import FAMILIES, Family, family_of
from space.latency import Conditions, LatencyTable, Phase, TableCheck, WholeModel, milliseconds
from space.layout import Layout
from space.sampling import land, sample

__all__ = [
    "BUDGET_METRICS",
    "FAMILIES",
    "GENES",
    "LATENCY",
    "METRICS",
    "Architecture",
    "ArchitectureError",
    "Budget",
    "BudgetError",
    "Choice",
    "Conditions",
    "Cost",
    "Criterion",
    "DistinctChoices",
    "EngineError",
    "ExportError",
    "Family",
    "FamilyError",
    "Genes",
    "Indices",
    "LatencyTable",
    "LayerArchitecture",
    "Layout",
    "MeasurementError",
    "ModelError",
    "Phase",
    "PredictorError",
    "RunFolderError",
    "SearchSpace",
    "SecateurError",
    "SettingError",
    "TableCheck",
    "TextError",
    "Update",
    "Weights",
    "WholeModel",
    "Widths",
    "build_space",
    "check_indices",
    "cost_of",
    "costs_of_genes",
    "default_width_step",
    "encode_genes",
    "evenly_sparse",
    "family_of",
    "genes_of",
    "land",
    "largest",
    "milliseconds",
    "read_genes",
    "sample",
    "uniform_sparsity",
    "uniform_widths",
    "whole_ends",
]
