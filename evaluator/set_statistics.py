"""What a calibration set is like, in numbers that its record keeps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluator.checkpoint import DenseModel

_FEWEST_BINS, _MOST_BINS = 6, 24  # of the histogram of perplexities


def statistics(dense: DenseModel, tokens: Tensor, losses: Tensor | None = None) -> dict[str, Any]:
    """Return what a set is like, in numbers.

    Args:
        dense: the model.
        tokens: (sequences, sequence_length).
        losses: (sequences,) nats per token, where they are known.
    """
    end = dense.tokenizer.eos_token_id
    found: dict[str, Any] = {
        "tokens": tokens.numel(),
        "distinct_tokens": len(torch.unique(tokens)),
        "repeated_4grams": round(repetition(tokens), 4),
        "ends_of_documents": 0 if end is None else int((tokens == end).sum()),
    }
    if losses is not None:
        perplexities = losses.double().exp().numpy()
        counts, edges = np.histogram(
            np.log(perplexities), bins=min(_MOST_BINS, max(_FEWEST_BINS, 2 * round(len(losses) ** 0.5)))
        )
        found["perplexity"] = {
            "mean": float(losses.double().mean().exp()),
            "quantiles": {str(q): float(np.quantile(perplexities, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)},
            "histogram": {"edges": np.exp(edges).round(3).tolist(), "counts": counts.tolist()},
        }
    return found


def repetition(units: Sequence[Tensor] | Tensor) -> float:
    """Return the share of 4-grams of tokens that their unit has had before: what a model that loops writes."""
    shares = []
    for unit in units:
        grams = unit.unfold(0, min(4, len(unit)), 1)
        shares.append(1 - len(torch.unique(grams, dim=0)) / len(grams))
    return float(np.mean(shares))
