"""The commands of `secateur`, by what they are about; importing them registers them with `app`."""

# In the order of --help.
from search.commands import searching, asking, results, evaluating, recovering, calibrating, serving  # isort: skip
from search.commands.arguments import app

__all__ = ["app", "asking", "calibrating", "evaluating", "recovering", "results", "searching", "serving"]
