"""Exporting a pruned model to where people run models."""

from search.export.best import FORMATS, export_best, generate_text

__all__ = ["FORMATS", "export_best", "generate_text"]
