"""How far the compact KL (top tokens and draws from the rest) is from the exact sum over the vocabulary.

    python -m tests.benchmarks.divergence [--quick] [--seed N]

Exact log-probabilities of the dense model are kept for a few sequences and compared, for the baselines at 80 % and for
one channel less in one layer, with what the evaluator reports, with what it ranks by on the search text (q normalised
by the tokens kept) and with the usual single bucket for the rest.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluator import SELF, DenseModel, SplitSizes, open_model, prepare_texts
from evaluator.accuracy import TOP_K, _hidden, make_reference, score_tokens
from evaluator.head import Head
from evaluator.pruning import Surgeon, gather_statistics
from evaluator.sources import tokenise
from space import Architecture, Budget, Criterion, uniform_widths, whole_ends
from tests.benchmarks.record import DATA, ROOT, arguments, finish


def main() -> None:
    """Compare and print the largest errors."""
    options = arguments(__doc__ or "")
    model = str(DATA / "models" / "stories260K") if options.quick else "smollm2-135m"
    dense = open_model(model)
    wikitext = tokenise(dense, str(DATA / "text" / "wikitext2.valid.txt"))[: 4 * 512].view(4, 512)
    cache = ROOT / "runs" / "benchmark-divergence"
    sizes = SplitSizes(calibrate=32, search=1, validate=1, report=4)
    own = prepare_texts(dense, SELF, sizes, options.seed, cache).tokens
    batches = own["calibrate"].split(8)
    statistics = list(gather_statistics(dense.decoder, list(dense.layers), dense.layout.record, batches))
    surgeon = Surgeon(dense.layers, dense.layout, statistics, Criterion(update="none"))
    rows = [row for text, tokens in (("self", own["report"]), ("wikitext2_valid", wikitext))
            for row in _compare(dense, surgeon, text, tokens)]  # fmt: skip
    pruned = [row for row in rows if row["architecture"] != "one_channel_less"]
    figures = {
        f"largest_error_{way}": round(max(abs(row[way] / row["exact"] - 1) for row in pruned), 5)
        for way in ("draws", "estimated", "one_bucket")
    }
    finish("divergence", figures, {"seed": options.seed, "model": Path(model).name, "rows": rows}, options.quick)


def _compare(dense: DenseModel, surgeon: Surgeon, text: str, tokens: Tensor) -> list[dict[str, Any]]:
    surgeon.restore()
    reference = make_reference(dense, tokens)
    head = Head(dense)
    before = torch.cat([head(hidden).float().log_softmax(dim=-1) for hidden, _ in _hidden(dense, tokens)])
    layout = dense.layout
    budget = [Budget.parse("parameters=0.8")]
    asked = {
        "uniform": uniform_widths(layout, budget),
        "uniform_whole_ends": uniform_widths(layout, budget, whole_ends(layout)),
        "one_channel_less": Architecture.dense(layout).replace(0, mlp_width=layout.mlp_width - 1),
    }
    rows = []
    for name, architecture in asked.items():
        surgeon.install(architecture)
        exact, bucket = _exact(dense, before, tokens)
        draws, estimated = (float(score_tokens(dense, reference, estimated=each).kl.mean()) for each in (False, True))
        found = {"exact": exact, "draws": draws, "estimated": estimated, "one_bucket": bucket}
        rows.append({"text": text, "architecture": name, **found})
    return rows


def _exact(dense: DenseModel, before: Tensor, tokens: Tensor) -> tuple[float, float]:
    """Return mean KL over the whole vocabulary, and with all but the top merged into one bucket."""
    exact, merged, first = [], [], 0
    head = Head(dense)
    for hidden, _ in _hidden(dense, tokens):
        p = before[first : first + len(hidden)]
        first += len(hidden)
        q = head(hidden).float().log_softmax(dim=-1)
        exact.append((p.exp() * (p - q)).sum(dim=-1))
        top = p.topk(min(TOP_K, p.shape[-1]), dim=-1)
        log_q = q.gather(1, top.indices)
        rest_p, rest_q = (1 - each.exp().sum(dim=-1).clamp_max(1 - 1e-7) for each in (top.values, log_q))
        merged.append((top.values.exp() * (top.values - log_q)).sum(dim=-1) + rest_p * (rest_p / rest_q).log())
    return float(torch.cat(exact).mean()), float(torch.cat(merged).mean())


if __name__ == "__main__":
    main()
