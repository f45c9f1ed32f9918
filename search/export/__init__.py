"""Exporting a pruned model to where people run models: `search.export.best`.

Nothing is imported here, so that the process which checks an export loads no more than the export needs.
"""
