"""What stopping hopeless measurements early would save a run, and what it would cost.

    python -m tests.benchmarks.stopping [--quick] [--seed N]

Replays what the finished runs of `tests.benchmarks.pipeline` measured on their search text, in their order, from the
block means that every pair keeps. After each sequence a candidate is compared, token by token, with the best measured
so far; it is stopped once it is worse by MARGIN of that one's KL, with Z standard errors to spare. Its KL is then known
as that of the best times the ratio of the two so far. The prior's measurements are never stopped: all are of use.

| figure | meaning |
| --- | --- |
| `saved` | tokens not measured, as a share of all that the run put through the model |
| `saved_of_candidates` | the same as a share of those of the candidates |
| `kl_error` | root mean square error of a stopped candidate's KL, by its KL |
| `wrongly_stopped` | candidates stopped that were better than the best before them |
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from evaluator import Pair, PairStore
from search.folder import RunFolder
from tests.benchmarks.record import ROOT, arguments, finish

Z, MARGINS = 3.0, (0.0, 0.1, 0.5)


@dataclass
class Replay:
    """What became of a run's candidates under one margin."""

    stopped: int = 0
    wrongly_stopped: int = 0
    tokens: float = 0.0  # measured, in sequences
    errors: list[float] = field(default_factory=list)


def main() -> None:
    """Replay each run and print what would have been saved."""
    options = arguments(__doc__ or "")
    folder = ROOT / "runs" / ("benchmark-pipeline-quick" if options.quick else "benchmark-pipeline")
    figures: dict[str, Any] = {}
    for path in sorted(folder.glob(f"*-{options.seed}")):
        run = RunFolder(path)
        if run.best_file.exists():
            figures[path.name] = {f"margin_{margin}": _figures(run, margin) for margin in MARGINS}
    if not figures:
        raise SystemExit(f"{folder} must hold a finished run, but has none; run tests.benchmarks.pipeline first.")
    finish("stopping", figures, {"seed": options.seed, "z": Z}, options.quick)


def _figures(run: RunFolder, margin: float) -> dict[str, float]:
    store = PairStore(run.measurements_file)
    best = run.best()
    pairs = store.pairs(best["predicted"]["protocol"])
    length = store.protocols()[best["predicted"]["protocol"]].sequence_length
    all_tokens = store.tokens_measured()
    store.close()
    sequences = pairs[0].measurement.tokens // (length - 1)
    candidates = [pair for pair in pairs if pair.origin not in ("prior", "baseline", "frontier", "user")]
    replay = _replay(candidates, sequences, margin)
    spared = (len(candidates) * sequences - replay.tokens) * (length - 1)
    result = {name: value for name, value in asdict(replay).items() if name not in ("tokens", "errors")}
    return result | {
        "candidates": len(candidates),
        "saved": round(spared / all_tokens, 4),
        "saved_of_candidates": round(1 - replay.tokens / (len(candidates) * sequences), 4),
        "kl_error": round(float(np.sqrt(np.mean(np.square(replay.errors)))), 4) if replay.errors else 0.0,
    }


def _replay(candidates: list[Pair], sequences: int, margin: float) -> Replay:
    """Measure candidates again, sequence by sequence, as if each could be stopped."""
    result = Replay()
    best = np.array(candidates[0].measurement.kl_blocks)
    for pair in candidates:
        blocks = np.array(pair.measurement.kl_blocks)
        each = len(blocks) // sequences
        for seen in range(1, sequences):
            difference = blocks[: seen * each] - best[: seen * each]
            error = difference.std(ddof=1) / np.sqrt(len(difference))
            if difference.mean() - Z * error > margin * best.mean():
                result.stopped += 1
                result.wrongly_stopped += int(blocks.mean() < best.mean())
                result.errors.append(
                    best.mean() * blocks[: seen * each].mean() / best[: seen * each].mean() / blocks.mean() - 1
                )
                break
        else:
            seen = sequences
        result.tokens += seen
        if blocks.mean() < best.mean():
            best = blocks
    return result


if __name__ == "__main__":
    main()
