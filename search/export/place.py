"""Where an export goes: written beside, checked there, then renamed into place; what was there before stays whole."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from space import ExportError, ModelError

MARK = "secateur.json"  # names the folder as an export of ours, so that it may be replaced
_CARD = "README.md"
_OF_THE_HUB = re.compile(r"[\w.-]+/[\w.-]+")

# Fills a folder with a model, checks it, and returns what there is to add to the record.
Fill = Callable[[Path], Mapping[str, Any]]


def check_target(target: Path) -> None:
    """Check that an export can go to a folder, before there is any work; one that was killed there is put right.

    Raises:
        ExportError: the folder holds something else than an export of ours, or is none but a name on the hub.
    """
    _finish(target)
    if target.exists() and not (target / MARK).is_file():
        raise ExportError(
            f"An export must go to a new folder or replace an export of ours, but {str(target)!r} holds something "
            "else; choose another with --out."
        )
    is_url = str(target).startswith(("hf:", "http:", "https:"))
    if is_url or (_OF_THE_HUB.fullmatch(str(target)) and not target.parent.exists()):
        raise ExportError(
            f"An export must go to a folder of this machine, but {str(target)!r} looks like a name on a hub (there is "
            f"no folder {str(target.parent)!r} here); make that folder or choose another with --out, and upload the "
            "export with the hub's own client."
        )


def record_of(folder: Path) -> dict[str, Any]:
    """Return what an export says of itself; nothing of another model's folder.

    Raises:
        ModelError: its secateur.json is damaged.
    """
    file = folder / MARK
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ModelError(f"{file.name} of an export must be intact JSON, but {str(file)!r} is not; export it anew.")
    return found


def write(target: Path, fill: Fill, record: Mapping[str, Any], card: Callable[[Mapping[str, Any]], str]) -> None:
    """Write an export: its files, their hashes and what is known of it in secateur.json, and a card for people.

    Args:
        target: folder to make; an older export of ours there is replaced when the new one is whole.
        fill: writes the model into a folder and checks it there.
        record: what is known of the model.
        card: makes the text of README.md from the whole record.

    Raises:
        ExportError: the target cannot be written to, or the export did not pass its check.
    """
    check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(target, "partial")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir()
        found = dict(fill(beside))
        files = {path.name: _described(path) for path in sorted(beside.iterdir()) if path.is_file()}
        whole = {**record, **found, "files": files}
        (beside / _CARD).write_text(card(whole), encoding="utf-8")
        (beside / MARK).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    old = _beside(target, "old")
    if target.exists():
        target.rename(old)
    beside.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _beside(target: Path, what: str) -> Path:
    return target.with_name(f".{target.name}.{what}")


def _finish(target: Path) -> None:
    """Undo what an export left that was killed between its two renamings."""
    old = _beside(target, "old")
    if not (old / MARK).is_file():  # nothing of ours
        return
    if target.exists():
        shutil.rmtree(old)
    else:
        old.rename(target)


def _described(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
