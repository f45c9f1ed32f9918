"""What a finished run did and how long each part took: the measured side of benchmark `scale`.

    python -m tests.benchmarks.scale_trace RUN ...

reads run folders (those of benchmark `pipeline` lie in runs/benchmark-pipeline) and keeps what the simulation needs of
them beside the results, so that it can be run anywhere. A run must not have been stopped in between.
"""

import json
import sqlite3
import sys
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, pstdev

from search.folder import RunFolder
from tests.benchmarks.record import RESULTS

FILE = RESULTS / "measured" / "scale-traces.json"
_PAIRS = """
    SELECT origin, json_extract(content, '$.split'), tokens, wall_seconds, architecture FROM pairs
    JOIN protocols ON protocols.fingerprint = protocol ORDER BY id
"""


@dataclass(frozen=True)
class Part:
    """What was measured for one reason on one text.

    Args:
        origin: the reason.
        split: the text.
        pairs: how many.
        tokens: predicted by all of them together.
        seconds: that measuring took.
        changed: mean share of MLPs that differ from the architecture measured before.
    """

    origin: str
    split: str
    pairs: int
    tokens: int
    seconds: float
    changed: float


@dataclass(frozen=True)
class Trace:
    """A finished run; all times in seconds."""

    name: str
    tokens: int  # that it told to have spent
    rounds: int
    wall: float
    generating: float  # until the texts were there
    calibrating: float  # until the statistics were there
    slopes: int
    slopes_seconds: float
    spread: float  # standard deviation of measuring the same number of tokens, by the mean
    store_bytes: int
    parts: tuple[Part, ...]

    @property
    def measuring(self) -> float:
        """Seconds of all measurements and slopes."""
        return self.slopes_seconds + sum(part.seconds for part in self.parts)

    @property
    def driver(self) -> float:
        """Seconds of all else after calibrating: references, fits, plans, trials, export and report."""
        return self.wall - self.generating - self.calibrating - self.measuring

    @property
    def seconds_per_token(self) -> float:
        """Of measuring whole architectures."""
        whole = [part for part in self.parts if part.origin != "prior"]
        return sum(part.seconds for part in whole) / sum(part.tokens for part in whole)

    def part(self, origin: str, split: str = "search") -> Part:
        """Return what was measured for a reason on a text."""
        return next(part for part in self.parts if (part.origin, part.split) == (origin, split))


def traced(folder: Path) -> Trace:
    """Read what a finished run left in its folder."""
    files = RunFolder(folder)
    best = json.loads(files.best_file.read_text())
    began, wrote = (file.stat().st_mtime for file in (files.config_file, folder / "texts.safetensors"))
    calibrated = max(file.stat().st_mtime for file in (files.prepared / "statistics").iterdir())
    with closing(sqlite3.connect(f"file:{files.measurements_file}?mode=ro", uri=True)) as store:
        rows = store.execute(_PAIRS).fetchall()
        slopes = [seconds for (seconds,) in store.execute("SELECT wall_seconds FROM slopes")]
    alike = [seconds for origin, _, _, seconds, _ in rows if origin in ("random", "profile")]
    return Trace(
        folder.name,
        best["tokens_through_model"],
        len(best["rounds"]),
        files.best_file.stat().st_mtime - began,
        wrote - began,
        calibrated - wrote,
        len(slopes),
        sum(slopes),
        pstdev(alike) / fmean(alike),
        files.measurements_file.stat().st_size,
        _parts(rows),
    )


def _parts(rows: list[tuple[str, str, int, float, str]]) -> tuple[Part, ...]:
    found: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    before: list[int] | None = None
    for origin, split, tokens, seconds, architecture in rows:
        widths = [layer["mlp_width"] for layer in json.loads(architecture)["layers"]]
        changed = fmean(mine != other for mine, other in zip(widths, before or widths, strict=True))
        found.setdefault((origin, split), []).append((tokens, seconds, changed))
        before = widths
    return tuple(
        Part(origin, split, len(own), sum(t for t, *_ in own), sum(s for _, s, _ in own), fmean(c for *_, c in own))
        for (origin, split), own in found.items()
    )


@cache
def kept() -> list[Trace]:
    """Return the traces that were kept."""
    rows = json.loads(FILE.read_text())
    return [Trace(**{**row, "parts": tuple(Part(**part) for part in row["parts"])}) for row in rows]


def keep(folders: list[str]) -> None:
    """Keep the traces of run folders; runs of the same name are numbered."""
    names = [Path(folder).name for folder in folders]
    own = [name if name not in names[:index] else f"{name} ({index})" for index, name in enumerate(names)]
    found = [{**asdict(traced(Path(folder))), "name": name} for folder, name in zip(folders, own, strict=True)]
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    keep(sys.argv[1:])
