"""Why a predictor says what it says: what each sub-block adds, and what another width would change."""

from collections.abc import Sequence

import numpy as np

from predictor.accuracy import AccuracyPredictor
from predictor.dataset import FloatArray, by_sub_block, checked_genes
from predictor.intervals import Prediction
from space import GENES, Architecture, PredictorError

_ORDERS = 32  # in which sub-blocks are pruned one after the other, half of them the other half reversed


def sub_block_damages(
    predictor: AccuracyPredictor, architecture: Architecture, orders: int = _ORDERS, seed: int = 0
) -> FloatArray:
    """Return what each sub-block adds to the predicted damage: its Shapley value, estimated over random orders.

    Args:
        predictor: one that needs no measurement on few tokens.
        architecture: of the predictor's model.
        orders: even number of orders; the more, the less chance is in the shares.
        seed: of the orders.

    Returns:
        (layers, attention and MLP), in the unit of the damage (KL in nats per token); they add up to the prediction.

    Raises:
        PredictorError: as `AccuracyPredictor.predict`.

    Source: Strumbelj and Kononenko, Explaining prediction models (2014), with antithetic orders (arXiv 2104.12199).
    """
    layout = predictor.layout
    pruned = by_sub_block(checked_genes(layout, [architecture]))[0]  # (2 * layers, 2)
    dense = by_sub_block(checked_genes(layout, [Architecture.dense(layout)]))[0]
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(len(pruned)) for _ in range(orders // 2)]
    both = np.array([each for order in drawn for each in (order, order[::-1])])
    # Where each sub-block comes in each order; before it, it is dense.
    place = np.argsort(both, axis=1)
    steps = np.arange(len(pruned) + 1)
    gone = steps[None, :, None] > place[:, None, :]  # (orders, steps, 2 * layers)
    genes = np.where(gone[..., None], pruned, dense).reshape(-1, layout.layers, len(GENES))
    damages = predictor.damages(genes).reshape(len(both), len(steps))
    added = np.diff(damages, axis=1)  # (orders, 2 * layers), by step
    return np.asarray(np.take_along_axis(added, place, axis=1).mean(axis=0).reshape(layout.layers, 2))


def what_if(
    predictor: AccuracyPredictor, architecture: Architecture, layer: int, gene: str, values: Sequence[float]
) -> Prediction:
    """Predict an architecture with one gene changed, for each of several values.

    Args:
        predictor: the predictor.
        architecture: of its model.
        layer: whose gene.
        gene: one of `space.GENES`.
        values: of the gene.

    Raises:
        PredictorError: no such layer or gene; or as `AccuracyPredictor.predict`.
    """
    return predictor.predict_genes(
        _changed(predictor, checked_genes(predictor.layout, [architecture]), layer, gene, values)
    )


def partial_dependence(
    predictor: AccuracyPredictor, architectures: Sequence[Architecture], layer: int, gene: str, values: Sequence[float]
) -> FloatArray:
    """Return the mean predicted damage (values,) of architectures by the value of one gene, all else as it is.

    Args:
        predictor: the predictor.
        architectures: one or more, of its model.
        layer: whose gene.
        gene: one of `space.GENES`.
        values: of the gene.

    Raises:
        PredictorError: as `what_if`.

    Source: Friedman, Greedy function approximation (2001), section 8.2.
    """
    genes = checked_genes(predictor.layout, architectures)
    asked = np.concatenate([_changed(predictor, genes[[row]], layer, gene, values) for row in range(len(genes))])
    return np.asarray(predictor.damages(asked).reshape(len(genes), len(values)).mean(axis=0))


def _changed(
    predictor: AccuracyPredictor, genes: FloatArray, layer: int, gene: str, values: Sequence[float]
) -> FloatArray:
    """Return (values, layers, genes), the one architecture given with a gene changed to each value."""
    if gene not in GENES or not 0 <= layer < predictor.layout.layers:
        raise PredictorError(
            f"What is changed must be one of {', '.join(GENES)} in a layer of 0 to {predictor.layout.layers - 1}, but "
            f"is {gene} in layer {layer}; choose another."
        )
    found = np.repeat(genes, len(values), axis=0)
    found[:, layer, GENES.index(gene)] = values
    return found
