"""The command `secateur`: calls a command, and turns whatever stops it into an exit code and one sentence."""

import os
import sys
from collections.abc import Callable
from typing import Any

from search.commands import app
from search.refusals import refusal

INTERRUPTED = 130  # what shells expect after Ctrl-C
REFUSED = 2
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
    except KeyboardInterrupt:
        print(_STOPPED, file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        sentence = refusal(error)
        if sentence is None:
            raise
        print(f"secateur: {sentence}", file=sys.stderr)
        return REFUSED
    return 0


if __name__ == "__main__":
    main()
