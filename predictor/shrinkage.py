"""What damage to expect on other text: the additive prior, drawn together where texts disagree about it.

The damage of a sub-block depends on the text it is measured on, that of a KV group by far more than that of MLP
channels, and a search looks for just those sub-blocks whose damage one text happens to show too small. For one level
(say, attentions left with 2 KV groups) take the log damages on the sequences of a text,

    y[c, t] = mean + layer[c] + text[t] + rest[c, t]

with variances L of layer and R of rest. Other text of another kind has a rest of its own, as sequences of one text
have. So the best guess of a layer's log damage there is

    mean + s (measured - mean),    s = L / (L + R (1 / sequences + shift))

Source: empirical Bayes, the estimator of James and Stein (1961) in its form for random effects.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from predictor.dataset import FloatArray, by_sub_block, changed, checked_genes, singles
from predictor.prior import LEAST_SHARE, AdditivePrior, Knots
from space import Architecture

_FEWEST_LAYERS = 4  # a variance between fewer says nothing
_Level = tuple[int, int, float]  # attention (0) or MLP (1), width (0) or sparsity (1), its value


def expect_elsewhere(
    prior: AdditivePrior, architectures: Sequence[Architecture], by_sequence: FloatArray, shift: float
) -> AdditivePrior:
    """Return the prior to expect on other text.

    Args:
        prior: as measured.
        architectures: what was measured; those that are no singles are ignored.
        by_sequence: (architectures, sequences) values on each sequence of the text.
        shift: how much the other text differs, as a multiple of how much two sequences of this one do: 0 for more text
            of the same kind, 1 for another kind.
    """
    genes = checked_genes(prior.layout, architectures)
    shares = _shares(prior, genes, by_sequence, shift)
    widths, sparsities = (
        tuple(dict(curve) for curve in curves) for curves in (prior.widths, prior.sparsities)
    )  # per sub-block, value by gene
    for (kind, gene, value), share in shares.items():
        curves = [curve for curve in (widths, sparsities)[gene][kind::2] if value in curve]
        if not curves:
            continue  # one channel less is no point of a curve, see `rounding_floor`
        logs = np.log(np.maximum([curve[value] for curve in curves], np.finfo(float).tiny))
        for curve, log in zip(curves, share * logs + (1 - share) * logs.mean(), strict=True):
            curve[value] = float(np.exp(log))
    blocks = {layer: value * _changed_by(widths, prior.widths, layer) for layer, value in prior.blocks.items()}
    return AdditivePrior(
        prior.layout, _knots(widths, densest_last=True), _knots(sparsities, densest_last=False), blocks
    )


def _changed_by(after: Sequence[Mapping[float, float]], before: Sequence[Knots], layer: int) -> float:
    """Return by what a layer removed whole goes: as its two sub-blocks, each removed alone."""
    own = slice(2 * layer, 2 * layer + 2)
    found, measured = (sum(dict(curve).get(0.0, 0.0) for curve in curves[own]) for curves in (after, before))
    return found / measured if measured > 0 else 1.0


def _knots(curves: Sequence[Mapping[float, float]], densest_last: bool) -> tuple[Knots, ...]:
    return tuple(tuple(sorted(curve.items(), reverse=densest_last)) for curve in curves)


def _shares(prior: AdditivePrior, genes: FloatArray, by_sequence: FloatArray, shift: float) -> dict[_Level, float]:
    """Return by level what share s of a layer's distance from the mean is kept."""
    rows: dict[_Level, list[int]] = {}
    own = changed(prior.layout, genes)
    for row in np.flatnonzero(singles(prior.layout, genes)):
        column, gene = (int(index) for index in np.argwhere(own[row])[0])
        rows.setdefault((column % 2, gene, float(by_sub_block(genes)[row, column, gene])), []).append(int(row))
    enough = {level: own for level, own in rows.items() if len(own) >= _FEWEST_LAYERS and by_sequence.shape[1] > 1}
    found = {level: _share(by_sequence[own], shift) for level, own in enough.items()}
    return {level: share for level, share in found.items() if share < 1}


def _share(values: FloatArray, shift: float) -> float:
    """Return s for the values (layers, sequences) of one level."""
    layers, sequences = values.shape
    mean = values.mean(axis=1, keepdims=True)
    if (mean <= 0).any():
        return 1.0  # damage too small to be seen has no logarithm to compare
    # A short sequence's estimate may come out below 0, which no damage is.
    logs = np.log(np.maximum(values, LEAST_SHARE * mean))
    logs = logs - logs.mean(axis=0)
    layer = logs.mean(axis=1, keepdims=True)
    rest = float(((logs - layer) ** 2).sum()) / ((layers - 1) * (sequences - 1))
    between = max(float(layer.var(ddof=1)) - rest / sequences, 0.0)
    total = between + rest * (1 / sequences + shift)
    return between / total if total > 0 else 1.0
