"""What a process on another machine measures by, and what it does there.

A room is a folder on that machine with all that a run's measurements depend on: settings, texts, calibration statistics
of the run's own process. The model is opened there by its name and compared by the hash of its weights. Messages are
plain: JSON and the bytes of files. In its room a machine keeps what it has measured as well, so that a result that was
under way when a process died is not measured again.
"""

import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from evaluator.builtin import cache_folder
from evaluator.checkpoint import open_model
from evaluator.harness.items import Aim, Items
from evaluator.recovery.short import ShortRecipe
from evaluator.splits import load_texts
from evaluator.store import PairStore
from space import Architecture, Criterion, EngineError

if TYPE_CHECKING:
    from evaluator.evaluator import Evaluator

_VERSION = 1  # of what is in a room, and of what is said to it
_PACKAGES = ("secateur", "torch", "transformers")  # that must be the same, since numbers depend on them
_SETTINGS = "room.json"  # put there last: with it a room is complete
_FORGOTTEN_SECONDS = 14 * 86400.0  # since a room was last used


@dataclass(frozen=True)
class Room:
    """A room as the run's own process describes it.

    Args:
        key: tells rooms apart, by all that is in them.
        settings: content of room.json.
        files: what else is in it, by name, and where it lies here.
    """

    key: str
    settings: bytes
    files: Mapping[str, Path | bytes]

    @classmethod
    def of(cls, judge: "Evaluator") -> Self:
        """Return the room of an evaluator that keeps its statistics in a folder."""
        with tempfile.TemporaryDirectory(prefix="secateur-") as scratch:
            judge.texts.save(Path(scratch) / "texts.safetensors")
            texts = (Path(scratch) / "texts.safetensors").read_bytes()
        files: dict[str, Path | bytes] = {"texts.safetensors": texts}
        files |= {
            f"prepared/statistics/{file.name}": file
            for file in sorted(judge.statistics_folder.glob("layer-*.safetensors"))
        }
        digests = {name: sha256(_content(file)).hexdigest() for name, file in files.items()}
        students = judge.students
        settings = {
            "model": _placed(judge.dense.name),
            "dtype": judge.dense.dtype,
            "device": judge.dense.model.device.type,  # whichever of them that process has
            "weights_hash": judge.dense.weights_hash,
            "kernels": judge.kernels.name,
            "criterion": asdict(judge.criterion),
            "recovery": asdict(students.recovery) if students.recovery else None,
            "aim": _plain(students.aim) if students.aim else None,
            "files": digests,
        }
        content = json.dumps(settings, sort_keys=True).encode()
        return cls(sha256(content).hexdigest()[:16], content, files)

    def content(self, name: str) -> bytes:
        """Return the content of a file."""
        return self.settings if name == _SETTINGS else _content(self.files[name])

    @property
    def names(self) -> list[str]:
        """The names of all files, in the order in which they are brought."""
        return [*self.files, _SETTINGS]


def conditions() -> dict[str, str | None]:
    """Return what must be the same in all processes that measure for one run."""
    return {"room": str(_VERSION), **{name: _installed(name) for name in _PACKAGES}}


def lacking(key: str, names: Sequence[str], expected: Mapping[str, str | None]) -> list[str]:
    """Return which of a room's files are not on this machine.

    Args:
        key: of the room.
        names: of its files.
        expected: `conditions` of the run's own process.

    Raises:
        EngineError: this process has other versions.
    """
    own = conditions()
    differing = [
        f"{name} {own.get(name)} instead of {value}" for name, value in expected.items() if own.get(name) != value
    ]
    if differing:
        raise EngineError(
            f"A worker must have the versions that the run has, but {socket.gethostname()} has {', '.join(differing)}; "
            "install the same there."
        )
    return [name for name in names if not (_folder(key) / name).exists()]


def furnish(key: str, name: str, content: bytes) -> None:
    """Put a file into a room on this machine."""
    file = _folder(key) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f"{file.name}.{os.getpid()}.partial")  # another process may be given the same
    beside.write_bytes(content)
    beside.replace(file)


def measure(key: str, architecture: str, split: str, protocol: str) -> dict[str, Any] | None:
    """Measure an architecture in a room; None where the room is not on this machine.

    Args:
        key: of the room.
        architecture: canonical JSON.
        split: the text to measure on.
        protocol: canonical JSON of what the run's own process measures by.

    Raises:
        ModelError: the model cannot be opened here.
        EngineError: it is another model, or would be measured otherwise.
        MeasurementError: the measurement is not finite.
    """
    with _desk.lock:  # one at a time: an evaluator is not safe for several threads
        judge = _desk.judge(key)
        if judge is None:
            return None
        own = json.loads(judge.protocol(split).to_json())
        differing = [name for name, value in json.loads(protocol).items() if own.get(name) != value]
        if differing:
            raise EngineError(
                f"A worker must measure as the run does, but {socket.gethostname()} has another "
                f"{', '.join(differing)}; install the same there."
            )
        [found] = judge.measure([Architecture.from_json(architecture)], split, "room")
        return asdict(found)


def forget(key: str) -> None:
    """Remove a room from this machine."""
    with _desk.lock:
        _desk.clear(key)
    shutil.rmtree(_folder(key), ignore_errors=True)


class _Desk:
    """The one evaluator that a process has open."""

    def __init__(self) -> None:
        self.lock = Lock()
        self._open: tuple[str, Evaluator] | None = None

    def judge(self, key: str) -> "Evaluator | None":
        if self._open is None or self._open[0] != key:
            self.clear()
            folder = _folder(key)
            if not (folder / _SETTINGS).exists():
                return None
            _sweep(folder)
            self._open = key, _opened(folder)
        return self._open[1]

    def clear(self, key: str | None = None) -> None:
        if self._open is not None and key in (None, self._open[0]):
            self._open[1].store.close()
            self._open = None


_desk = _Desk()


def _opened(folder: Path) -> "Evaluator":
    from evaluator.evaluator import Evaluator

    settings = json.loads((folder / _SETTINGS).read_text())
    dense = open_model(settings["model"], dtype=settings["dtype"], device=settings["device"])
    if dense.weights_hash != settings["weights_hash"]:
        raise EngineError(
            f"A worker must have the model of the run, but {settings['model']!r} on {socket.gethostname()} has the "
            f"weights {dense.weights_hash} and not {settings['weights_hash']}; put the same there."
        )
    criterion, recovery, aim = Criterion(**settings["criterion"]), settings["recovery"], settings["aim"]
    return Evaluator(
        replace(dense, layout=dense.layout.pruned_by(criterion)),
        load_texts(folder / "texts.safetensors"),
        PairStore(folder / "measurements.db"),
        criterion=criterion,
        folder=folder / "prepared",
        kernels=settings["kernels"],
        recovery=ShortRecipe(**recovery) if recovery else None,
        aim=(lambda: _aim(aim)) if aim else None,
    )


def _folder(key: str) -> Path:
    # By host: caches may lie in a home that machines share, where SQLite had better not meet itself.
    return cache_folder() / "rooms" / f"{socket.gethostname()}-{key}"


def _sweep(room: Path) -> None:
    """Remove rooms of this machine that nobody has used for long, and say that this one is used."""
    os.utime(room)
    for other in room.parent.glob(f"{socket.gethostname()}-*"):
        with suppress(FileNotFoundError):
            if time.time() - other.stat().st_mtime > _FORGOTTEN_SECONDS:
                shutil.rmtree(other, ignore_errors=True)


def _content(file: Path | bytes) -> bytes:
    return file if isinstance(file, bytes) else file.read_bytes()


def _placed(model: str) -> str:
    """Return a model's name as another process of another folder understands it."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from its source tree
        return None


def _plain(aim: Aim) -> dict[str, Any]:
    """Return what a search aims at as plain values for JSON."""
    items = {
        split: {**asdict(each), "weights": each.weights.tolist(), "tasks": each.tasks.tolist()}
        for split, each in aim.items.items()
    }
    return {"items": items, "signal": aim.signal, "seen": {}}  # what may not be reported is told by the run


def _aim(plain: Mapping[str, Any]) -> Aim:
    items = {}
    for split, each in plain["items"].items():
        pairs = tuple((tuple(context), tuple(continuation)) for context, continuation in each["pairs"])
        values: dict[str, Any] = {"pairs": pairs, "choices": tuple(each["choices"]), "gold": tuple(each["gold"])}
        values |= {"weights": np.array(each["weights"]), "tasks": np.array(each["tasks"])}
        items[split] = Items(**{**each, **values})
    return Aim(items, plain["signal"], {})
