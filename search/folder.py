"""The run folder: the artefacts of a run by name, each written whole or not at all.

config.yaml layout.json latency.json texts.safetensors prepared/ measurements.db predictor/ held-out.json study.db
best.json report.html export/
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import yaml
from filelock import FileLock, Timeout

from search.config import WHERE, RunConfig, parse_config
from search.settings import DTypeName
from space import (
    BudgetError,
    LatencyTable,
    Layout,
    MeasurementError,
    ModelError,
    RunFolderError,
    SearchSpace,
    SettingError,
)

if TYPE_CHECKING:
    from evaluator import Texts


class RunFolder:
    """Paths and small artefacts of one run.

    Args:
        path: the folder, made by `prepare` if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.layout_file = path / "layout.json"
        self.latency_file = path / "latency.json"
        self.texts_file = path / "texts.safetensors"
        self.generated = path / "generated"
        self.prepared = path / "prepared"  # calibration statistics and pruned weights, all of which can be made again
        self.measurements_file = path / "measurements.db"
        self.predictor = path / "predictor"
        self.study_file = path / "study.db"
        self.held_out_file = path / "held-out.json"  # what cross-validation predicted of pairs, by fingerprint
        self.study_is_copied = False  # see `search.database.copied_study`
        self.database_file = path / "database.json"  # which schema holds both, where they are in a database
        self.best_file = path / "best.json"
        self.accuracy_file = path / "accuracy.json"  # by what was asked, see `search.accuracy`
        self.report_file = path / "report.html"
        self.export = path / "export"

    def mix_file(self, number: int) -> Path:
        """Return the file of a calibration set that a run may choose, by its place among the mixes."""
        return self.path / f"mix-{number}.safetensors"

    def predictor_of(self, name: str) -> Path:
        """Return the folder of a predictor of something else than KL."""
        return self.path / f"predictor-{name}"

    def predictors(self) -> list[Path]:
        """Return the folders of all predictors, that of KL first."""
        return [self.predictor, *sorted(path for path in self.path.glob("predictor-*") if path.is_dir())]

    def check(self, config: RunConfig) -> None:
        """Check that the folder is new or holds this very run, changing nothing.

        Raises:
            RunFolderError: the folder holds something else, or a run with other settings.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"A run folder must be a folder, but {str(self.path)!r} is a file; choose another.")
        if self.config_file.exists():
            self._compare(self.config(), config)
            return
        # What a run leaves that was killed before it had written its first file.
        ours = {".lock", f".{self.config_file.name}.partial"}
        if self.path.exists() and any(entry.name not in ours for entry in self.path.iterdir()):
            raise RunFolderError(
                f"A run folder must be new or hold a run, but {str(self.path)!r} holds other files and no config.yaml; "
                "choose another with --out."
            )

    def prepare(self, config: RunConfig) -> None:
        """Make the folder for a run, or check that it holds this very run.

        Raises:
            RunFolderError: the folder holds something else, or a run with other settings; nothing is changed.
        """
        self.check(config)
        if not self.config_file.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self.config_file, config.to_yaml())

    def discard(self) -> None:
        """Take back a folder whose run was refused before it measured anything."""
        for file in (self.config_file, self.layout_file, self.latency_file, self.path / ".lock"):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # something else is in it
            self.path.rmdir()

    def texts(self) -> "Texts":
        """Return the run's texts.

        Raises:
            RunFolderError: the file is missing or damaged.
        """
        from safetensors import SafetensorError

        from evaluator import load_texts  # late: reading a run's numbers needs no torch

        try:
            return load_texts(self.texts_file)
        except (OSError, SafetensorError, TypeError) as error:
            raise RunFolderError(
                f"texts.safetensors of a run folder must be intact, but the one in {str(self.path)!r} is not "
                f"({error}); restore it or choose another folder."
            ) from error

    def _compare(self, saved: RunConfig, asked: RunConfig) -> None:
        before, now = (each.model_dump(by_alias=True, exclude=WHERE) for each in (saved, asked))
        if before == now:
            return
        key = next(key for key in before if before[key] != now[key])
        raise RunFolderError(
            f"A run folder must be continued with its own settings, but {str(self.path)!r} has {key} {before[key]!r} "
            f"and this command says {now[key]!r}; choose another folder with --out, or repeat the settings in its "
            "config.yaml."
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second process from working on the same run.

        Raises:
            RunFolderError: another process holds the run.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / ".lock", timeout=0):
                yield
        except Timeout:
            raise RunFolderError(
                f"A run must be worked on by one process, but another one holds {str(self.path)!r}; wait for it."
            ) from None

    def config(self) -> RunConfig:
        """Return the saved settings.

        Raises:
            RunFolderError: the folder is no run folder, or its settings are damaged.
        """
        if not self.config_file.exists():
            raise RunFolderError(
                f"A run folder must hold a config.yaml, but {str(self.path)!r} does not; "
                "give the folder that `secateur run` wrote."
            )
        try:
            return parse_config(yaml.safe_load(self.config_file.read_text(encoding="utf-8")))
        except (SettingError, BudgetError, yaml.YAMLError, UnicodeDecodeError, TypeError, AttributeError) as error:
            raise RunFolderError(
                f"The config.yaml of a run folder must be intact, but the one in {str(self.path)!r} is not "
                f"({str(error).splitlines()[0]}); restore it or choose another folder."
            ) from error

    def keep_layout(self, model: str, weights_hash: str, layout: Layout, dtype: str) -> None:
        """Write which model the run is about, or check that it is the same as before.

        Raises:
            RunFolderError: the run was begun with another model's weights.
        """
        values = {"model": model, "weights_hash": weights_hash, "dtype": dtype, "layout": layout.to_dict()}
        if self.layout_file.exists():
            saved = self.read_json(self.layout_file)
            if (saved.get("weights_hash"), saved.get("layout")) != (weights_hash, values["layout"]):
                raise RunFolderError(
                    f"A run must go on with the model it began with, but {str(self.path)!r} was written by weights "
                    f"{saved.get('weights_hash')} and {model!r} now has {weights_hash}; "
                    "choose another folder with --out."
                )
            return
        write_json(self.layout_file, values)

    def dtype(self) -> DTypeName:
        """Return what the run's model runs in; `auto` where it was not opened yet.

        Raises:
            RunFolderError: the file is damaged.
        """
        found = self.read_json(self.layout_file).get("dtype", "auto") if self.layout_file.exists() else "auto"
        if found not in get_args(DTypeName):
            raise RunFolderError(
                f"The dtype in a run folder's {self.layout_file.name} must be one of {', '.join(get_args(DTypeName))}, "
                f"but is {found!r} in {str(self.path)!r}; restore the file or choose another folder."
            )
        return cast(DTypeName, found)

    def layout(self) -> Layout:
        """Return the layout of the run's dense model.

        Raises:
            RunFolderError: the file is missing or damaged.
        """
        values = self.read_json(self.layout_file)
        try:
            return Layout.from_dict(values["layout"])
        except (KeyError, TypeError, ModelError) as error:
            raise RunFolderError(
                f"{self.layout_file.name} of a run folder must be intact, but the one in {str(self.path)!r} is not "
                f"({error}); restore it or choose another folder."
            ) from error

    def latency(self) -> LatencyTable | None:
        """Return what the model's sub-blocks were timed to take, or None where they were not timed.

        Raises:
            RunFolderError: the file is damaged.
        """
        if not self.latency_file.exists():
            return None
        try:
            return LatencyTable.from_dict(self.read_json(self.latency_file))
        except MeasurementError as error:
            raise RunFolderError(
                f"latency.json of a run folder must be intact, but the one in {str(self.path)!r} is not ({error}); "
                "restore it, or delete it to time the sub-blocks again."
            ) from error

    def keep_latency(self, table: LatencyTable) -> None:
        """Write what the model's sub-blocks were timed to take."""
        write_json(self.latency_file, table.to_dict())

    def search_space(self) -> SearchSpace:
        """Return the run's search space.

        Raises:
            RunFolderError: a file is missing or damaged.
            BudgetError: a budget is on latency, and sub-blocks were not timed.
        """
        return self.config().search_space(self.layout(), self.latency())

    def best(self) -> dict[str, Any]:
        """Return the content of best.json.

        Raises:
            RunFolderError: the run is not finished, or the file is damaged.
        """
        if not self.best_file.exists():
            raise RunFolderError(
                f"A finished run must hold a best.json, but {str(self.path)!r} does not; "
                "finish it with the command that began it."
            )
        values = self.read_json(self.best_file)
        missing = [key for key in ("architecture", "cost", "measured", "baselines") if key not in values]
        if missing:
            raise RunFolderError(
                f"best.json of a run folder must be complete, but the one in {str(self.path)!r} lacks "
                f"{', '.join(missing)}; delete it and repeat the command that began the run."
            )
        return values

    def accuracy(self) -> dict[str, Any]:
        """Return the accuracies of the run's models by what was asked; empty where nothing was.

        Raises:
            RunFolderError: the file is damaged.
        """
        return self.read_json(self.accuracy_file) if self.accuracy_file.exists() else {}

    def read_json(self, file: Path) -> dict[str, Any]:
        """Read one of the folder's JSON files.

        Raises:
            RunFolderError: the file is missing or damaged.
        """
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError("it is not an object")
        except (OSError, ValueError) as error:
            raise RunFolderError(
                f"{file.name} of a run folder must be intact JSON, but the one in {str(self.path)!r} is not ({error}); "
                "restore it or choose another folder."
            ) from error
        return values


def write_text(file: Path, text: str) -> None:
    """Write a file beside, make sure it is on the disk, then rename it into place."""
    beside = file.with_name(f".{file.name}.partial")
    try:
        with beside.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write JSON beside, then rename it into place."""
    write_text(file, json.dumps(values, indent=2) + "\n")
