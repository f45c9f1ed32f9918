"""What requests may name: built-in models, what lies in the operator's folders, and the hub where it is allowed.

Requests carry names, and get back nothing that lies elsewhere: a path counts by where it ends when links are followed.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from search.commands.searching import folder_name
from search.config import RunConfig, parse_config
from search.service.models import check_model, layout_of, models_in
from search.service.settings import ServiceSettings
from space import ModelError, RunFolderError, SettingError, TextError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_HUB_TEXT = re.compile(r"hub:[\w./-]{1,200}(:[\w.-]{0,100}){0,2}")
_TASK = re.compile(r"[\w.-]{1,100}(@\d{1,3})?")
_DEVICE = re.compile(r"cpu|auto|cuda(:\d{1,2})?")
_WEIGHT = re.compile(r"=(\d+(\.\d*)?|\.\d+)$")
_WRITTEN = ("self", "self-filtered")  # by the model itself
_BUILT_IN = ("smollm2-135m",)
_HUB_DATA = ("c4", "wikitext2", "wikitext103", "wikipedia", "slimpajama", "fineweb-edu", "gsm8k")
_DATA_KINDS = (".txt", ".jsonl", ".parquet", ".safetensors")
_MOST_TOKENS = 1 << 26  # of all texts of a run: 67 million, beyond which ids alone are half a gigabyte


def _data_in(root: Path) -> Iterator[Path]:
    return (file for file in sorted(root.rglob("*")) if file.suffix in _DATA_KINDS and file.is_file())


class Gate:
    """Turns what requests name into what commands may be given.

    Args:
        settings: the operator's folders.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings

    def models(self) -> list[str]:
        """Return the names of all models that can be asked for, but those of the hub."""
        return [*_BUILT_IN, *self._names(self._settings.models, models_in)]

    def data(self) -> list[str]:
        """Return the names of all files that texts and examples can be read from."""
        return self._names(self._settings.data, _data_in)

    def _names(self, roots: tuple[Path, ...], found: Callable[[Path], Iterator[Path]]) -> list[str]:
        names = [
            str(path.relative_to(root)) if path != root else str(root.absolute())
            for root in roots
            if root.is_dir()
            for path in found(root)
            if self._inside(str(path.absolute()), (root,))  # a link may lead elsewhere
        ]
        return list(dict.fromkeys(names))

    def model(self, name: str) -> str:
        """Return a model as `--model` takes it.

        Raises:
            ModelError: it is none of those allowed, or unsafe.
        """
        if name in _BUILT_IN:
            return name
        path = self._inside(name, self._settings.models)
        if path is not None:
            check_model(path)
            return str(path)
        if self._settings.hub and _HUB_ID.fullmatch(name):
            return name
        hub = "an id of the hub" if self._settings.hub else "the operator allows no hub"
        raise ModelError(
            f"A model must be one of {', '.join(_BUILT_IN)}, in the service's model folders, or ({hub}), but is "
            f"{name[:200]!r}; see GET /api/models."
        )

    def text(self, source: str) -> str:
        """Return a text, or examples, as commands take them.

        Raises:
            TextError: it is none of those allowed.
        """
        if source in _WRITTEN:
            return source
        if self._settings.hub and (source in _HUB_DATA or _HUB_TEXT.fullmatch(source)):
            return source
        path = self._inside(source, self._settings.data)
        if path is None or not path.is_file():
            raise TextError(
                f"A text must be self, a file in the service's data folders"
                f"{', or of the hub' if self._settings.hub else ''}, but is {source[:200]!r}; see GET /api/data."
            )
        return str(path)

    def mixed(self, source: str) -> str:
        """Return a source with a weight, or several joined by +, as commands take them.

        Raises:
            TextError: a part is none of those allowed.
        """
        parts = []
        for part in source.split("+"):
            weight = _WEIGHT.search(part)
            parts.append(self.text(_WEIGHT.sub("", part)) + (weight.group() if weight else ""))
        return "+".join(parts)

    def folder(self, name: str) -> str:
        """Return a folder of data as commands take it.

        Raises:
            TextError: it is none of those allowed.
        """
        path = self._inside(name, self._settings.data)
        if path is None or not path.is_dir():
            raise TextError(f"A data folder must be in the service's own, but is {name[:200]!r}; see GET /api/data.")
        return str(path)

    def tasks(self, names: tuple[str, ...], data: str | None) -> None:
        """Refuse names of tasks that are none, and the hub's where it is not allowed.

        Raises:
            SettingError: one is refused.
        """
        for name in names:
            if not _TASK.fullmatch(name):
                raise SettingError(f"A task must be NAME or NAME@SHOTS, but is {name[:200]!r}; correct it.")
        if names and data is None and not self._settings.hub:
            raise SettingError(
                "tasks.ask must have tasks.data, since the operator allows no hub, but has none; name a data folder."
            )

    def device(self, name: str) -> str:
        """Return a device.

        Raises:
            SettingError: it is none.
        """
        if not _DEVICE.fullmatch(name):
            raise SettingError(f"A device must be cpu, cuda, cuda:N or auto, but is {name[:50]!r}; choose one.")
        return name

    def settings(self, asked: RunConfig) -> RunConfig:
        """Return a run's settings with everything that they name as commands take it.

        Raises:
            SecateurError: something is not allowed, or no architecture of the model meets the budgets.
        """
        text, calibration, tasks = asked.text, asked.calibration, asked.tasks
        self.tasks(tasks.ask, tasks.data)
        sequences = text.calibrate + text.search + text.validate_ + text.report_sequences
        if sequences * text.sequence_length > _MOST_TOKENS:
            raise SettingError(
                f"A run's texts must have at most {_MOST_TOKENS:,} tokens together, but have "
                f"{sequences * text.sequence_length:,}; take fewer or shorter sequences."
            )
        if asked.engine != "local" or asked.address or asked.database:
            raise SettingError(
                "engine, address and database of a run must be left out, since the operator of the service sets them, "
                "but one is given; take it away."
            )
        values = asked.model_dump(mode="json", by_alias=True)
        values["database"] = self._settings.run_database
        if self._settings.dask:
            values |= {"engine": "dask", "address": self._settings.dask}
        values["model"] = self.model(asked.model)
        values["device"] = self.device(asked.device)
        values["text"]["source"] = self.text(text.source)
        values["text"]["report"] = self.text(text.report) if text.report else None
        values["calibration"]["sources"] = [self.mixed(each) for each in calibration.sources]
        values["calibration"]["mixes"] = [self.mixed(each) for each in calibration.mixes]
        values["calibration"]["set"] = self.text(calibration.set_) if calibration.set_ else None
        if calibration.prefix not in ("openings", "bos", "token"):
            values["calibration"]["prefix"] = self.text(calibration.prefix)
        values["tasks"]["data"] = self.folder(tasks.data) if tasks.data else None
        config = parse_config(values)
        if Path(config.model).is_dir() and not config.needs_latency:
            config.search_space(layout_of(Path(config.model)))
        return config

    def run(self, name: str) -> Path:
        """Return the folder of a run by its name, whether it is there or not.

        Raises:
            RunFolderError: no folder can have that name here.
        """
        path = self._settings.runs / name
        if not _NAME.fullmatch(name) or path.is_symlink():
            raise RunFolderError(
                "A run must be named by letters, digits, dots, dashes and underscores, a letter or digit first, but "
                f"is {name[:200]!r}; choose another name."
            )
        return path.absolute()

    def study(self, name: str) -> Path:
        """Return the folder of a study by its name, whether it is there or not.

        Raises:
            RunFolderError: no folder can have that name here.
        """
        self.run(name)
        return (self._settings.runs / "studies" / name).absolute()

    def studies(self) -> list[str]:
        """Return the names of all finished studies, the newest first."""
        found = sorted((self._settings.runs / "studies").glob("*/study.html"), key=lambda file: -file.stat().st_mtime)
        return [file.parent.name for file in found if _NAME.fullmatch(file.parent.name)]

    def run_name(self, config: RunConfig, name: str | None) -> str:
        """Return what a run is called, the usual where nobody says."""
        return name or re.sub(r"[^A-Za-z0-9._-]", "-", folder_name(config)).lstrip("._-")[:128]

    def runs(self) -> list[str]:
        """Return the names of all runs, the newest first."""
        found = [file for file in self._settings.runs.glob("*/config.yaml") if not file.parent.is_symlink()]
        found.sort(key=lambda file: file.stat().st_mtime, reverse=True)
        return [file.parent.name for file in found if _NAME.fullmatch(file.parent.name)]

    def _inside(self, name: str, roots: tuple[Path, ...]) -> Path | None:
        """Return what lies under one of the roots by a name or a path, links followed; None where nothing does."""
        if "\0" in name or len(name) > 4096 or ".." in Path(name).parts:
            return None
        for root in roots:
            try:
                path, top = (root / name).resolve(strict=True), root.resolve(strict=True)
            except (OSError, RuntimeError):
                continue
            if path == top or top in path.parents:
                return path
        return None
