"""OWL: layers with more outliers among their weights' scores are pruned less.

| symbol | meaning |
| --- | --- |
| A: scores of all of a layer's weights | abs(W[i, j]) norm2(X[:, j]), as in Wanda |
| D = share of A above M mean(A) | the layer's outliers |
| S = target - 2 lambda (D - min D) / (max D - min D), shifted to the target's mean | the layer's sparsity |

Source: arXiv 2310.05175, section 3.2, and the authors' code for the scale: shares are stretched to 2 lambda.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

OUTLIER = 5.0  # M, the paper's value for LLaMA
SPREAD = 0.08  # lambda, the same


def outlier_share(scores: Iterable[Tensor], multiple: float = OUTLIER) -> float:
    """Return the share of a layer's scores above a multiple of their mean.

    Args:
        scores: of each of its projections.
        multiple: M.
    """
    parts = [score.flatten().float() for score in scores]
    count = sum(part.numel() for part in parts)
    mean = sum(float(part.sum(dtype=part.double().dtype)) for part in parts) / count
    return sum(int((part > multiple * mean).sum()) for part in parts) / count


def layer_sparsities(shares: Sequence[float], target: float, spread: float = SPREAD) -> NDArray[np.float64]:
    """Return each layer's sparsity (layers,), of mean `target` and within 2 `spread` of each other.

    Args:
        shares: outliers of each layer.
        target: mean sparsity.
        spread: lambda.
    """
    outliers = np.asarray(shares, dtype=np.float64)
    stretch = np.ptp(outliers)
    if stretch == 0:
        return np.full(len(outliers), target)
    raised = 2 * spread * (outliers - outliers.min()) / stretch
    return np.asarray(np.clip(target - (raised - raised.mean()), 0.0, 0.99))
