"""What a model folder is before anything in it is opened: whether it can be one, is safe, and fits into memory."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from space import Architecture, Layout, ModelError
from space.cost import BYTES_PER_VALUE, cost_of

_DAMAGED = (OSError, ValueError, struct.error, KeyError, TypeError, IndexError, AttributeError, RecursionError)
# Files that run code when they are read.
_UNSAFE = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".msgpack", ".h5"}
_SAFETENSORS, _GGUF = ".safetensors", ".gguf"
_MOST_HEADER_BYTES = 100 << 20  # what safetensors itself allows
_MOST_TEXT_BYTES = 256 << 20  # of a tokenizer or a configuration
_MOST_LAYERS = 10_000
_SPARSE = 0.5  # share of a file that must be on the disk; holes read as zeros, and cost whoever made them nothing


def check_model(path: Path) -> None:
    """Refuse a model that is none, that holds what runs code, or that would fill the memory.

    Args:
        path: a folder with config.json and safetensors, or a GGUF file.

    Raises:
        ModelError: it is refused.
    """
    if path.is_file():
        _check_size(path, path.stat().st_size)
        return
    files = sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        if file.suffix in _UNSAFE:
            raise ModelError(
                f"A model must come as safetensors, which hold numbers alone, but {path.name!r} holds {file.name!r}, "
                "which can run code when it is read; convert it, or take the file away."
            )
        if file.suffix in (".json", ".txt", ".model", ".jinja") and file.stat().st_size > _MOST_TEXT_BYTES:
            raise ModelError(
                f"A file beside a model's weights must have at most {_MOST_TEXT_BYTES >> 20} MiB, but {file.name!r} of "
                f"{path.name!r} has {file.stat().st_size >> 20}; give an intact model."
            )
    weights = [file for file in files if file.suffix == _SAFETENSORS]
    if not weights:
        raise ModelError(f"A model folder must hold safetensors, but {path.name!r} holds none; convert its weights.")
    held = sum(_tensor_bytes(file) for file in weights)
    _check_size(path, held)
    _check_honest(path, layout_of(path), held)


def layout_of(path: Path) -> Layout:
    """Return the layout that a model folder's config.json tells, without opening the model.

    Raises:
        ModelError: there is no config.json, or it is no model's.
        FamilyError: its family has no record.
    """
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"A model folder must hold an intact config.json, but {path.name!r} does not ({error}); give another."
        ) from None
    return Layout.from_config(config)


def models_in(root: Path) -> Iterator[Path]:
    """Yield the models in a folder: it, folders in it and in those, and GGUF files."""
    for folder in (root, *sorted(root.glob("*/")), *sorted(root.glob("*/*/"))):
        if (folder / "config.json").is_file():
            yield folder
    yield from sorted(file for file in (*root.glob("*.gguf"), *root.glob("*/*.gguf")) if file.is_file())


def _check_honest(path: Path, layout: Layout, held: int) -> None:
    """Refuse a configuration that tells of more than the weights hold: what it tells is made in memory first."""
    if layout.layers > _MOST_LAYERS:
        raise ModelError(
            f"A model must have at most {_MOST_LAYERS:,} layers, but {path.name!r} tells of {layout.layers:,}; give an "
            "intact model."
        )
    told = cost_of(layout, Architecture.dense(layout)).weight_bytes / BYTES_PER_VALUE
    if told > held:  # a byte for each, where weights are quantised
        raise ModelError(
            f"A model's config.json must tell of the weights that there are, but that of {path.name!r} tells of "
            f"{told:,.0f} and the safetensors have {held:,} bytes; give an intact model."
        )


def _check_size(path: Path, needed: int) -> None:
    total = psutil.virtual_memory().total
    if needed > total:
        raise ModelError(
            f"A model must fit into the memory of this machine ({total >> 20:,} MiB), but {path.name!r} takes "
            f"{needed >> 20:,} MiB; take a smaller one."
        )


def _tensor_bytes(file: Path) -> int:
    """Return what a safetensors file's tensors take, by a header that fits the file."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(size - 8, _MOST_HEADER_BYTES):
                raise ValueError(f"its header would have {length:,} bytes")
            header: dict[str, Any] = json.loads(stream.read(length))
        ends = [int(own["data_offsets"][1]) for name, own in header.items() if name != "__metadata__"]
    except (
        OSError,
        ValueError,
        struct.error,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ModelError(f"Safetensors must be intact, but {file.name!r} is not ({error}); get it again.") from None
    if max(ends, default=0) + 8 + length != size:
        raise ModelError(
            f"Safetensors must be as long as their header says, but {file.name!r} has {size:,} bytes and not "
            f"{max(ends, default=0) + 8 + length:,}; get it again."
        )
    if file.stat().st_blocks * 512 < _SPARSE * size:
        raise ModelError(
            f"Weights must be on the disk, but most of {file.name!r} is a hole of {size:,} bytes; get it again."
        )
    return max(ends, default=0)
