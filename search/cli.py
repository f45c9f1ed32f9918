"""The command `secateur`: calls a command, and turns whatever stops it into an exit code and one sentence."""

import errno
import os
import re
import sqlite3
import sys
from collections.abc import Callable
from typing import Any

from search.commands import app
from space import SecateurError

INTERRUPTED = 130  # what shells expect after Ctrl-C
REFUSED = 2
# In the words of the system, of libraries in Rust, and of numpy, which does not know why.
_SAYS_FULL = re.compile(r"No space left on device|os error 28|^\d+ requested and \d+ written$")
_STOPPED = "Stopped; the same command goes on from here."


def main() -> None:
    """Run the command line: 0 done, 2 refused with one sentence, 130 interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(_guarded(lambda: app(standalone_mode=True)))


def _guarded(call: Callable[[], Any]) -> int:
    try:
        call()
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # typer turns Ctrl-C into this, without a word
            print(_STOPPED, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else 0
    except SecateurError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print(_STOPPED, file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if _disk_full(error):
            return _refuse(
                "Results must fit on the disk, but it is full; free some space and repeat the command, it goes on "
                "where it stopped."
            )
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return _refuse(
                f"What a run writes and reads must be open to you, but {str(error.filename)!r} is not; change its "
                "permissions, or choose another place with --out (run folder) or SECATEUR_CACHE (converted models)."
            )
        raise
    return 0


def _refuse(sentence: str) -> int:
    print(f"secateur: {sentence}", file=sys.stderr)
    return REFUSED


def _disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one it came from, says that the disk is full; libraries wrap it in their own."""
    while error is not None:
        full = isinstance(error, sqlite3.OperationalError) and "full" in str(error)
        if full or _SAYS_FULL.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    main()
