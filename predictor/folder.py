"""A predictor's folder: predictor.json and predictor.safetensors, which hold numbers and text, and no code to run."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from space import PredictorError, SecateurError

FORMAT, VERSION = "secateur-predictor", 2
RECORD, ARRAYS = "predictor.json", "predictor.safetensors"

Arrays = Mapping[str, Mapping[str, np.ndarray]]  # by part, then by name


def write(folder: Path, record: Mapping[str, Any], arrays: Arrays) -> None:
    """Write a predictor.

    Each file is written beside its place and then renamed, predictor.json last, so that a crash leaves either the old
    predictor or one that `read` refuses.

    Args:
        folder: made if missing.
        record: plain values for JSON.
        arrays: numbers.
    """
    flat = {
        f"{part}/{name}": np.ascontiguousarray(values)
        for part, named in arrays.items()
        for name, values in named.items()
    }
    content = safetensors.save(flat)
    record = {"format": FORMAT, "version": VERSION, **record, "arrays_sha256": hashlib.sha256(content).hexdigest()}
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / ARRAYS, content)
    _replace(folder / RECORD, json.dumps(record, indent=1, allow_nan=False).encode())


def read(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """Return record and arrays of a predictor.

    Raises:
        PredictorError: a file is missing, damaged, or not of this version.
    """
    record = _read_record(folder)
    content = _read(folder / ARRAYS)
    if hashlib.sha256(content).hexdigest() != record.get("arrays_sha256"):
        raise PredictorError(
            f"{ARRAYS} must be the one that was saved with {RECORD}, but differs in {folder}; fit the predictor again."
        )
    arrays: dict[str, dict[str, np.ndarray]] = {}
    with refusing(folder):
        for key, values in safetensors.load(content).items():
            part, _, name = key.partition("/")
            arrays.setdefault(part, {})[name] = values
    return record, arrays


@contextlib.contextmanager
def refusing(folder: Path) -> Iterator[None]:
    """Turn whatever a damaged file makes go wrong into one sentence."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, SecateurError, SafetensorError) as error:
        raise PredictorError(
            f"A predictor's {RECORD} must be complete and of this version, but the one in {folder} is not "
            f"({error}); fit the predictor again."
        ) from None


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    beside.write_bytes(content)
    beside.replace(path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PredictorError(
            f"A predictor's folder must hold {RECORD} and {ARRAYS}, but {path} cannot be read "
            f"({error.strerror}); fit and save a predictor there."
        ) from None


def _read_record(folder: Path) -> dict[str, Any]:
    content = _read(folder / RECORD)
    try:
        record = json.loads(content)
    except ValueError as error:
        raise PredictorError(
            f"A predictor's {RECORD} must be JSON, but the one in {folder} is not ({error}); fit the predictor again."
        ) from None
    if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("version") != VERSION:
        raise PredictorError(
            f"A predictor's {RECORD} must be of format {FORMAT} version {VERSION}, but the one in {folder} is not; "
            "fit the predictor again with this version."
        )
    return record
