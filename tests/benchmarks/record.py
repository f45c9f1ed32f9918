"""What every benchmark shares: where data lies, and how figures are kept and printed."""

import argparse
import json
import lzma
import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from search.environment import commit

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("SECATEUR_DATA", ROOT.parent / "shared" / "data"))


def arguments(purpose: str) -> argparse.Namespace:
    """Parse `--quick` and `--seed`."""
    parser = argparse.ArgumentParser(description=purpose)
    parser.add_argument("--quick", action="store_true", help="a small version in a minute or two, not recorded")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def keep(file: Path, name: str, quick: bool) -> None:
    """Keep a packed copy of a store of measurements beside the results, for other machines.

    Args:
        file: the store; another process may be at work on it.
        name: of the benchmark.
        quick: a quick version's is not kept.
    """
    if quick:
        return
    packed = _packed(file, name)
    packed.parent.mkdir(parents=True, exist_ok=True)
    beside = packed.with_suffix(f".{os.getpid()}.partial")
    with TemporaryDirectory() as scratch:
        snapshot = Path(scratch) / file.name
        with closing(sqlite3.connect(file)) as store:
            store.execute("VACUUM INTO ?", (str(snapshot),))
        beside.write_bytes(lzma.compress(snapshot.read_bytes()))
    beside.replace(packed)


def restore(file: Path, name: str, quick: bool) -> None:
    """Unpack the store of measurements that was kept, unless there is one already."""
    packed = _packed(file, name)
    if not quick and packed.exists() and not file.exists():
        beside = file.with_suffix(".partial")
        beside.write_bytes(lzma.decompress(packed.read_bytes()))
        beside.replace(file)


def _packed(file: Path, name: str) -> Path:
    return RESULTS / "measured" / f"{name}-{file.parent.name}.db.xz"


def finish(name: str, figures: dict[str, Any], details: dict[str, Any], quick: bool) -> None:
    """Keep the full result with its commit and print the figures as the last line.

    Args:
        name: of the benchmark.
        figures: what the issue names.
        details: seeds, protocol, raw numbers.
        quick: a quick version is printed only.
    """
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        result = {
            "benchmark": name,
            "commit": commit(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "figures": figures,
            **details,
        }
        beside = RESULTS / f".{name}.partial"
        beside.write_text(json.dumps(result, indent=1) + "\n")
        beside.replace(RESULTS / f"{name}.json")
    print(json.dumps(figures))
