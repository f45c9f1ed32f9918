"""An archive of a folder, made as it is sent: neither disk nor memory holds a second copy."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

_CHUNK = 1 << 20  # bytes


def tar_of(folder: Path, top: str) -> Iterator[bytes]:
    """Yield a tar archive of a folder's files; links are left out, which lead elsewhere.

    Args:
        folder: to archive.
        top: the folder's name in the archive.

    Raises:
        OSError: a file became shorter while it was sent.
    """
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or file.is_symlink():
            continue
        with file.open("rb") as stream:
            told = tarfile.TarInfo(f"{top}/{file.relative_to(folder).as_posix()}")
            told.size, told.mtime = stream.seek(0, 2), int(file.stat().st_mtime)
            stream.seek(0)
            yield told.tobuf(tarfile.PAX_FORMAT)
            left = told.size
            while left:
                part = stream.read(min(_CHUNK, left))
                if not part:
                    raise OSError(f"{file.name} became shorter while it was sent")
                left -= len(part)
                yield part
            yield bytes(-told.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)
