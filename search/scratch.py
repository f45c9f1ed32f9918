"""Folders for what is not finished: kept while there is something to go on from, and for one process at a time."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from search.folder import RunFolder


@contextmanager
def kept_beside(folder: Path) -> Iterator[Path]:
    """Yield a folder, for this process alone; one that holds no safetensors in the end is taken away again.

    Args:
        folder: to use, made if missing.

    Raises:
        RunFolderError: another process uses it.
    """
    with RunFolder(folder).locked():
        try:
            yield folder
        finally:
            if not any(folder.glob("*.safetensors")):
                shutil.rmtree(folder, ignore_errors=True)
