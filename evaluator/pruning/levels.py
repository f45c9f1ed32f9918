"""Prepared weights, so that going from one architecture to the next costs no mathematics twice.

A search asks for the same few levels of every sub-block again and again. Levels are kept in memory up to a limit, the
least recently used leave first, and those that took long to make also in a folder, up to another limit.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

MEMORY_BYTES = 2**29
DISK_BYTES = 2**32
# Reading a level takes about a millisecond; only what takes far longer to make is worth the disk.
SLOW_SECONDS = 0.25

Level = dict[str, Tensor]


class Levels:
    """A bounded store of prepared levels.

    Args:
        folder: where slow ones are kept; None keeps them in memory only.
        memory_bytes: kept in memory at most.
        disk_bytes: kept in the folder at most, levels of earlier processes included.
    """

    def __init__(
        self, folder: Path | None = None, memory_bytes: int = MEMORY_BYTES, disk_bytes: int = DISK_BYTES
    ) -> None:
        self._folder = folder
        self._limits = memory_bytes, disk_bytes
        self._levels: OrderedDict[str, Level] = OrderedDict()
        self._memory = 0
        self._disk = sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder else 0

    def get(self, key: str, make: Callable[[], Level]) -> Level:
        """Return a level, made the first time.

        Args:
            key: says all that it depends on.
            make: computes it.
        """
        if key in self._levels:
            self._levels.move_to_end(key)
            return self._levels[key]
        level = self._read(key)
        if level is None:
            started = time.perf_counter()
            level = make()
            if time.perf_counter() - started > SLOW_SECONDS:
                self._write(key, level)
        self._keep(key, level)
        return level

    def _keep(self, key: str, level: Level) -> None:
        size = _bytes(level)
        if size > self._limits[0]:
            return
        self._levels[key] = level
        self._memory += size
        while self._memory > self._limits[0]:
            _, oldest = self._levels.popitem(last=False)
            self._memory -= _bytes(oldest)

    def _file(self, key: str) -> Path | None:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors" if self._folder else None

    def _read(self, key: str) -> Level | None:
        file = self._file(key)
        if file is None or not file.exists():
            return None
        try:
            return load(file.read_bytes())  # not `load_file`, which loses a Ctrl-C that falls into it
        except SafetensorError:  # of a disk that was full, or a machine that went down; made again
            return None

    def _write(self, key: str, level: Level) -> None:
        file = self._file(key)
        if file is None or self._disk + _bytes(level) > self._limits[1]:
            return  # before anything is written, which takes its time
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(".partial")
        save_file({name: tensor.cpu().contiguous() for name, tensor in level.items()}, beside)
        size = beside.stat().st_size
        if self._disk + size > self._limits[1]:
            beside.unlink()
            return
        beside.replace(file)
        self._disk += size


def _bytes(level: Level) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in level.values())
