"""Prepared weights, so that going from one architecture to the next costs no mathematics twice.

A search asks for the same few levels of every sub-block again and again. Those that took long to make are kept in a
folder, up to a limit, and mapped from there: they take memory only while installed, and the operating system's cache of
the disk keeps the rest as it can. Others are kept in memory up to another limit; the least recently used leave first.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from evaluator.memory import give_back

MEMORY_BYTES = 2**29
# A model of seven billion parameters has levels for 16 GB, all of which every round of a search asks for.
DISK_BYTES, DISK_SHARE = 2**32, 0.125  # at least; of what is free when a folder is opened
# Mapping a level takes a tenth of a millisecond, writing it some: only what takes far longer to make is worth the disk.
SLOW_SECONDS = 0.02
_CPU = torch.device("cpu")
_ABANDONED_SECONDS = 600.0  # after which nobody is still writing a file

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}  # as files name them

Level = dict[str, Tensor]


class Levels:
    """A bounded store of prepared levels.

    Args:
        folder: where slow ones are kept; None keeps them in memory only.
        memory_bytes: kept in memory at most.
        disk_bytes: kept in the folder at most, levels of earlier processes included; None takes 4 GiB, or an eighth of
            the free disk where that is more.
    """

    def __init__(
        self, folder: Path | None = None, memory_bytes: int = MEMORY_BYTES, disk_bytes: int | None = None
    ) -> None:
        self._folder = folder
        self._levels: OrderedDict[str, Level] = OrderedDict()
        self._memory = 0
        if folder:
            sweep(folder)
        self._disk = sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder else 0
        if disk_bytes is None:
            disk_bytes = disk_allowance(folder, self._disk) if folder else 0
        self._limits = memory_bytes, disk_bytes

    def get(self, key: str, make: Callable[[], Level], device: torch.device = _CPU) -> Level:
        """Return a level, made the first time.

        Args:
            key: says all that it depends on.
            make: computes it.
            device: where the model is. Where that is not the processor, a level from the folder is kept too: it would
                have to be copied there each time.
        """
        if key in self._levels:
            self._levels.move_to_end(key)
            return self._levels[key]
        level = self._read(key)
        if level is None:
            started = time.perf_counter()
            level = make()
            written = time.perf_counter() - started > SLOW_SECONDS and self._write(key, level)
            if written:
                give_back()  # what its making took, which is many times what it is
            mapped = self._read(key) if written and device.type == _CPU.type else None
            if mapped is None:
                self._keep(key, level)
                return level
            level = mapped
        if device.type != _CPU.type:
            level = {name: tensor.to(device) for name, tensor in level.items()}
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
            return _mapped(file)
        except (OSError, ValueError, KeyError, RuntimeError):  # of a disk that was full, or a machine that went down
            return None

    def _write(self, key: str, level: Level) -> bool:
        """Keep a level in the folder, if there is one with room."""
        file = self._file(key)
        if file is None or self._disk + _bytes(level) > self._limits[1]:
            return False  # before anything is written, which takes its time
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(f".{os.getpid()}.partial")  # another process may be making the same
        save_file({name: tensor.cpu().contiguous() for name, tensor in level.items()}, beside)
        size = beside.stat().st_size
        if self._disk + size > self._limits[1]:
            beside.unlink()
            return False
        beside.replace(file)
        self._disk += size
        return True


def disk_allowance(folder: Path, there: int = 0) -> int:
    """Return the bytes that a folder's levels may take.

    Args:
        folder: which need not exist yet.
        there: bytes that its levels take already, which count as free.
    """
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    return max(DISK_BYTES, int(DISK_SHARE * (shutil.disk_usage(existing).free + there)))


def sweep(folder: Path) -> None:
    """Remove what processes that were killed left half written in a folder."""
    for left in folder.glob("*.partial"):
        with contextlib.suppress(FileNotFoundError):  # its process has just finished it
            if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                left.unlink()


def _mapped(file: Path) -> Level:
    """Return a safetensors file's tensors as they lie in the file, mapped into memory.

    The library's own way to do so loses a Ctrl-C that falls into it.
    """
    content = torch.from_file(str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)
    start = 8 + int.from_bytes(content[:8].numpy().tobytes(), "little")
    header = json.loads(content[8:start].numpy().tobytes())
    return {
        name: content[start + first : start + last].view(_DTYPES[own["dtype"]]).view(own["shape"])
        for name, own in header.items()
        for first, last in [own["data_offsets"]]
    }


def _bytes(level: Level) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in level.values())
