"""What an error comes to for people: the one sentence that they can do something about, or none."""

import errno
import re
import sqlite3

from space import SecateurError

# In the words of the system, of libraries in Rust, and of numpy, which does not know why.
_SAYS_FULL = re.compile(r"No space left on device|os error 28|^\d+ requested and \d+ written$")


def refusal(error: BaseException) -> str | None:
    """Return what a person can do about an error, in one sentence; None where it is a fault of the program.

    Args:
        error: what stopped a command or a request.
    """
    if isinstance(error, SecateurError):
        return str(error)
    if _disk_full(error):
        return (
            "Results must fit on the disk, but it is full; free some space and repeat the command, it goes on "
            "where it stopped."
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"What a run writes and reads must be open to you, but {str(error.filename)!r} is not; change its "
            "permissions, or choose another place with --out (run folder) or SECATEUR_CACHE (converted models)."
        )
    return None


def _disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one it came from, says that the disk is full; libraries wrap it in their own."""
    while error is not None:
        full = isinstance(error, sqlite3.OperationalError) and "full" in str(error)
        if full or _SAYS_FULL.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
