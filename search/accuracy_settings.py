"""What models are asked, and whether it can be asked here."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from search.config import RunConfig
from space import SettingError

INSTALL = "pip install 'secateur[accuracy]'"


@dataclass(frozen=True, slots=True)
class AccuracySettings:
    """What is asked.

    Args:
        ask: names of presets, or of the harness' tasks as NAME or NAME@SHOTS.
        limit: items of each task at most, a seeded sample; None asks all.
        seed: of the sample.
        data: folder of local files; None takes the harness' own data, from the hub or its cache.

    Raises:
        SettingError: lm-eval is not installed, or the limit leaves too few items for an error.
    """

    ask: tuple[str, ...]
    limit: int | None = None
    seed: int = 0
    data: Path | None = None

    def __post_init__(self) -> None:
        if find_spec("lm_eval") is None:
            raise SettingError(f"Tasks are asked by the package lm-eval, which is not installed here; {INSTALL}.")
        if self.limit is not None and self.limit < 2:
            raise SettingError(f"--limit must leave at least 2 items of a task, but is {self.limit}; raise it.")
        if self.data is not None and not self.data.is_dir():
            raise SettingError(f"--task-data must be a folder, but {str(self.data)!r} is none; check the path.")

    @property
    def title(self) -> str:
        """What is asked, in words."""
        names = ", ".join(self.ask)
        return names if self.limit is None else f"{names}; at most {self.limit} items of a task, seed {self.seed}"


def settings_of(config: RunConfig) -> AccuracySettings:
    """Return what a run that aims at tasks asks its models in the end.

    Args:
        config: its settings, with `tasks.ask`.

    Raises:
        SettingError: lm-eval is not installed, or there is no such folder.
    """
    data = None if config.tasks.data is None else Path(config.tasks.data)
    return AccuracySettings(config.tasks.ask, config.tasks.report, config.seed, data)
