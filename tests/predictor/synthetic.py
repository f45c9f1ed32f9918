"""A ground truth with interactions, so that a predictor can be judged without a model."""

from collections.abc import Sequence

import numpy as np

from space import Architecture, Budget, build_space, genes_of, sample
from tests.space.layouts import SMOLLM2_135M

SPACE = build_space(SMOLLM2_135M, [Budget("parameters", 0.8)])
DENSE = Architecture.dense(SMOLLM2_135M)
SINGLES = [
    *(DENSE.replace(i, mlp_width=width) for i in range(SMOLLM2_135M.layers) for width in (0, 512, 1024, 1280, 1408)),
    *(DENSE.replace(i, kv_groups=groups) for i in range(SMOLLM2_135M.layers) for groups in (0, 1, 2)),
]


def draw(count: int, seed: int) -> list[Architecture]:
    """Return architectures on the budget."""
    return SPACE.decode(sample(SPACE, count, np.random.default_rng(seed)))


def measure(
    architectures: Sequence[Architecture], seed: int, interaction: float = 1.0, noise: float = 0.03
) -> list[float]:
    """Return KL in nats per token of a made-up model.

    Each sub-block does damage that grows with a power of its loss about as measured on SmolLM2-135M, with a
    sensitivity of its own (ends of the model more, MLP more than attention); damaged neighbours make it worse, with a
    strength of their own; noise is a factor.
    """
    rng = np.random.default_rng(seed)
    ends = 1 + 2 * np.linspace(-1, 1, SMOLLM2_135M.layers) ** 4
    sensitivity = np.column_stack((0.05 * ends, 0.12 * ends)) * np.exp(
        0.6 * rng.standard_normal((SMOLLM2_135M.layers, 2))
    )
    power = rng.uniform(1.5, 2.3, sensitivity.shape)
    strength = interaction * rng.lognormal(-0.5, 1.0, SMOLLM2_135M.layers - 1)
    kept = genes_of(architectures)[:, :, [0, 2]] / (SMOLLM2_135M.kv_groups, SMOLLM2_135M.mlp_width)
    damage = sensitivity * (1 - kept) ** power  # (architectures, layers, attention and MLP)
    layer = damage.sum(axis=2)
    value = layer.sum(axis=1) + (strength * np.sqrt(layer[:, 1:] * layer[:, :-1])).sum(axis=1)
    return (value * np.exp(noise * rng.standard_normal(len(value)))).tolist()
