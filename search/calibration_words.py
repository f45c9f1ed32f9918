"""What a run's record says of its calibration set, in words for its report."""

from collections.abc import Iterator, Mapping
from typing import Any


def calibration_in_words(record: Mapping[str, Any]) -> dict[str, str]:
    """Return what there is to say, by title.

    Args:
        record: `calibration` of best.json; empty in those of earlier versions.
    """
    if not record:
        return {}
    parts = "; ".join(_part(each, record) for each in record["parts"])
    told = {"Calibration set": f"{record['hash']}, seed {record['seed']}: {parts}"}
    if "mixes" in record:
        told["Calibration mixes"] = "; ".join(_mixes(record))
    return told


def _part(part: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    dropped = ", ".join(f"{count} by {name.replace('_', ' ')}" for name, count in part["dropped"].items() if count)
    size = f"{part['sequences']} x {record['sequence_length']} tokens of {part['source']}"
    return f"{size}, from {part['candidates']} candidates, of which {dropped} left out" if dropped else size


def _mixes(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield what allocations on the budget lost under each mix, and what the winner does."""
    for mix, told in record["mixes"].items():
        above, error = told["above_best"], told["above_best_standard_error"]
        text = f"{mix}: chosen" if mix == record["chosen"] else f"{mix}: KL {above:+.1%} ± {error:.1%}"
        winner = record.get("winner_under", {}).get(mix)
        yield f"{text}, the winner's KL {winner['kl']:.4f}" if winner else text
