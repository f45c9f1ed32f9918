"""What to do, and every door a user comes through: the study, the choice, the run, export, command line.

May import the three other packages; none of them imports it. Names load on first use, so that a door which only asks
the predictor never loads torch.
"""

from typing import Any

_HOMES = {
    "AccuracySettings": "search.accuracy_settings",
    "RecoverySettings": "search.recovery_data",
    "RunConfig": "search.config",
    "RunFolder": "search.folder",
    "evaluate": "search.accuracy",
    "export_best": "search.export.best",
    "generate_text": "search.export.best",
    "load_config": "search.config",
    "open_sliders": "search.sliders",
    "recover": "search.recovery",
    "run_search": "search.run",
}

__all__ = [
    "AccuracySettings",
    "RecoverySettings",
    "RunConfig",
    "RunFolder",
    "evaluate",
    "export_best",
    "generate_text",
    "load_config",
    "open_sliders",
    "recover",
    "run_search",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'search' has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return found
