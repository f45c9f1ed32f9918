"""What regressors see of an architecture: its prior, and how the damage is spread over the model.

The prior (`predictor.prior`) is blind to interactions, so all features but the first say where the damage sits, not
how much of it there is. Of what is learned as it is and not by its logarithm, damages are not divided by their sum.

Where slopes were taken at measured architectures (`predictor.expansion`), the first feature passes from what they say
to the additive prior as the distance grows: log prior + exp(-distance) log(expanded / prior).

Where the dense model's residual stream is known (`predictor.stream`), the prior is what layers removed in a row are
expected to do together, and their overlap is a feature.
"""

import numpy as np

from predictor.dataset import FloatArray
from predictor.targets import FLOOR
from space import Layout

# Shares by depth, the largest share, the concentration and counts of removed sub-blocks were tried as well: each lowers
# the cross-validated rank correlation, on synthetic and on measured spaces, or leaves it as it is.
AGGREGATES = ("prior", "neighbours", "within_layer", "attention")
EXPANDED = ("expansion", "distance")
OVERLAP = "overlap"
FEW_TOKENS = "few_tokens"


def feature_names(
    layout: Layout, few_tokens: bool = False, expanded: bool = False, streamed: bool = False
) -> tuple[str, ...]:
    """Return the names of the columns of `features`: the aggregates, then the terms of the sub-blocks."""
    sub_blocks = tuple(f"{part}_{layer}" for layer in range(layout.layers) for part in ("attention", "mlp"))
    return aggregate_names(few_tokens, expanded, streamed) + sub_blocks


def aggregate_names(few_tokens: bool = False, expanded: bool = False, streamed: bool = False) -> tuple[str, ...]:
    """Return the names of the first columns of `features`, those of the whole model."""
    return AGGREGATES + EXPANDED * expanded + (OVERLAP,) * streamed + (FEW_TOKENS,) * few_tokens


def features(
    terms: FloatArray,
    logarithmic: bool = True,
    few_tokens: FloatArray | None = None,
    expanded: FloatArray | None = None,
    joint: FloatArray | None = None,
) -> FloatArray:
    """Return what regressors see of each architecture.

    Args:
        terms: (architectures, 2 * layers), from `AdditivePrior.terms`.
        logarithmic: whether the logarithm of the damage is learned.
        few_tokens: (architectures,) damage measured on few tokens, in the unit in which it is learned.
        expanded: (architectures, 2), from `surroundings`; only where the logarithm is learned.
        joint: (architectures, 2), from `ResidualStream.joint`.

    Returns:
        (architectures, features in the order of `feature_names`).
    """
    total = np.maximum(terms.sum(axis=1), FLOOR)
    layer = terms[:, 0::2] + terms[:, 1::2]  # (architectures, layers)
    roots = np.sqrt(terms)
    # A geometric mean is large only where both are damaged.
    neighbours = np.sqrt(layer[:, :-1] * layer[:, 1:]).sum(axis=1)
    within_layer = (roots[:, 0::2] * roots[:, 1::2]).sum(axis=1)
    share = total if logarithmic else 1.0
    prior = np.log(total) if logarithmic else total
    shift = np.zeros(len(terms)) if joint is None else joint[:, 0]
    prior = prior + shift if logarithmic else prior * np.exp(shift)
    if expanded is not None:
        prior = prior + np.exp(-expanded[:, 1]) * (expanded[:, 0] - shift)
    attention = terms[:, 0::2].sum(axis=1)
    aggregates = [prior, neighbours / share, within_layer / share, attention / share]
    if expanded is not None:
        aggregates += [expanded[:, 0], expanded[:, 1]]
    if joint is not None:
        aggregates.append(joint[:, 1])
    if few_tokens is not None:
        aggregates.append(few_tokens)
    return np.column_stack((*aggregates, roots))
