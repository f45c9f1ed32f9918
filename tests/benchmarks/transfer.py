"""How far what a search finds on the model's own text holds on other text.

    python -m tests.benchmarks.transfer [--quick] [--seed N]

Reads the finished run of `tests.benchmarks.pipeline` on self-generated text with the same seed, and measures what came
out of it on text that the model did not write and that this run neither searches nor reports on: WikiText-2 validation
and C4. Kinds of architecture are compared, each paired token by token with uniform widths with whole ends: the winner,
smooth profiles, and the best searched and the best averages by their KL on the search text. Measurements are kept
beside the run, so that what was stopped goes on.
"""

from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau

from evaluator import Evaluator, Measurement, PairStore, Texts, open_model
from evaluator.sources import tokenise
from search import selection
from search.folder import RunFolder
from space import Architecture
from tests.benchmarks.record import DATA, ROOT, arguments, finish

OTHERS = {"validate": "wikitext2.valid.txt", "report": "c4.jsonl"}  # by the evaluator's split that they stand in for
SEQUENCES, EACH = 8, 10


def main() -> None:
    """Measure and print the mean differences of each kind on each text."""
    options = arguments(__doc__ or "")
    name = "benchmark-pipeline-quick" if options.quick else "benchmark-pipeline"
    run = RunFolder(ROOT / "runs" / name / f"self-{options.seed}")
    if not run.best_file.exists():
        raise SystemExit(f"{run.path} must hold a finished run, but does not; run tests.benchmarks.pipeline first.")
    config, best = run.config(), run.best()
    dense = open_model(config.model, dtype=config.dtype)
    texts = run.texts()
    length = texts.tokens["search"].shape[1]
    others = {split: _spread(tokenise(dense, str(DATA / "text" / file)), length) for split, file in OTHERS.items()}
    own = {"validate": texts.tokens["validate"][:SEQUENCES]}
    kinds = _kinds(run, best, EACH if not options.quick else 2)
    rows = {}
    # Not the search split's quick estimate for any of the three: one evaluator for the run's own text, one for others.
    for tokens, named in (
        (own, {"validate": "self_validation"}),
        (others, {"validate": "wikitext2_valid", "report": "c4"}),
    ):
        judge = Evaluator(
            dense,
            Texts({"calibrate": texts.tokens["calibrate"], **tokens}, {"calibrate": "self-generated", **named}),
            PairStore(run.path / "transfer.db"),
            criterion=config.criterion.criterion,
            folder=run.prepared,
            kernels=config.kernels,
        )
        rows |= {source: _compare(judge, split, kinds) for split, source in named.items()}
        judge.surgeon.restore()
    figures = {source: {key: value for key, value in row.items() if key != "measured"} for source, row in rows.items()}
    finish("transfer", figures, {"seed": options.seed, "sequences": SEQUENCES, "texts": rows}, options.quick)


def _spread(stream: torch.Tensor, length: int) -> torch.Tensor:
    sequences = stream[: len(stream) // length * length].view(-1, length)
    return sequences[np.linspace(0, len(sequences) - 1, SEQUENCES).astype(int)].clone()


def _kinds(run: RunFolder, best: dict[str, Any], each: int) -> dict[str, list[tuple[Architecture, float]]]:
    """Return architectures with their KL on the search text, by kind; whole ends first."""
    store = PairStore(run.measurements_file)
    pairs = store.pairs(best["predicted"]["protocol"])
    space = run.config().search_space(run.layout())
    kl = {pair.architecture.fingerprint: pair.measurement.kl for pair in pairs}
    chosen = {
        "whole_ends": [Architecture.from_dict(best["baselines"]["uniform_whole_ends"]["architecture"])],
        "uniform": [Architecture.from_dict(best["baselines"]["uniform"]["architecture"])],
        "winner": [Architecture.from_dict(best["architecture"])],
    }
    for origin in ("profile", "searched", "averaged"):
        chosen[origin] = selection.lowest([pair for pair in pairs if pair.origin == origin], space, each)
    return {kind: [(each, kl[each.fingerprint]) for each in own] for kind, own in chosen.items()}


def _compare(judge: Evaluator, split: str, kinds: dict[str, list[tuple[Architecture, float]]]) -> dict[str, Any]:
    """Return each kind's mean difference from whole ends with the text's error of it, and how ranks agree."""
    measured = {kind: judge.measure([a for a, _ in own], split, kind) for kind, own in kinds.items()}
    [base] = measured["whole_ends"]
    result: dict[str, Any] = {"kl_whole_ends": round(base.kl, 4), "perplexity_whole_ends": round(base.perplexity, 2)}
    for kind, own in measured.items():
        if kind != "whole_ends" and own:
            result[kind] = _mean_difference(own, base)
    near = [
        (kl, m.kl) for kind in ("searched", "averaged") for (_, kl), m in zip(kinds[kind], measured[kind], strict=True)
    ]
    result["kendall_tau_near_optimum"] = round(float(kendalltau(*zip(*near, strict=True)).statistic), 3)
    result["measured"] = {kind: [each.to_dict() for each in own] for kind, own in measured.items()}
    return result


def _mean_difference(own: list[Measurement], base: Measurement) -> dict[str, float]:
    # The mean over architectures is taken block by block, so that the error is that of the text alone.
    kl, nll = (
        (np.array([getattr(each, name) for each in own]) - np.array(getattr(base, name))).mean(axis=0)
        for name in ("kl_blocks", "nll_blocks")
    )
    error = {name: float(values.std(ddof=1) / len(values) ** 0.5) for name, values in (("kl", kl), ("nll", nll))}
    return {
        "kl": round(float(kl.mean()), 4), "kl_standard_error": round(error["kl"], 4),
        "nll": round(float(nll.mean()), 4), "nll_standard_error": round(error["nll"], 4),
    }  # fmt: skip


if __name__ == "__main__":
    main()
