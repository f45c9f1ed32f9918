"""What rows of a store's tables are in objects and arrays, and back."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from evaluator.measurement import Measurement
from evaluator.slopes import Slopes
from space import GENES, Architecture, LayerArchitecture

_BLOCKS = np.dtype("<f4")
_GENES = np.dtype("<i4")
_SHARES = 10_000  # sparsities have four digits, so that they are whole numbers of these
_LAYER_BYTES = len(GENES) * _GENES.itemsize


@dataclass(frozen=True)
class PairTable:
    """Pairs of one protocol as columns, in the order they were measured: what a regressor is fitted on.

    Args:
        genes: (pairs, layers, genes in the order of `GENES`).
        nll: (pairs,) nats per token.
        kl: (pairs,) nats per token.
        origins: (pairs,) why each was measured.
    """

    genes: NDArray[np.float64]
    nll: NDArray[np.float64]
    kl: NDArray[np.float64]
    origins: tuple[str, ...]

    @classmethod
    def of(cls, parts: Iterable[Sequence[Any]]) -> Self:
        """Return rows of genes, nll, kl and origin as columns; part by part, so that few are there twice."""
        genes, numbers = [], []
        origins: list[str] = []
        for rows in parts:
            blobs, nll, kl, own = zip(*rows, strict=True)
            genes.append(b"".join(blobs))
            numbers.append(np.array((nll, kl)))
            origins += map(sys.intern, own)
        nll, kl = np.concatenate(numbers, axis=1) if numbers else np.empty((2, 0))
        return cls(_unpacked(b"".join(genes), len(origins)), nll, kl, tuple(origins))


def pack(architecture: Architecture) -> bytes:
    """Return an architecture's genes: four whole numbers a layer, in the order of `GENES`, sparsities times 10,000."""
    genes = [
        (
            layer.kv_groups,
            round(layer.attention_sparsity * _SHARES),
            layer.mlp_width,
            round(layer.mlp_sparsity * _SHARES),
        )
        for layer in architecture.layers
    ]
    return np.array(genes, _GENES).tobytes()


def unpack(blobs: Sequence[bytes]) -> NDArray[np.float64]:
    """Return the genes (architectures, layers, genes in the order of `GENES`) of packed architectures of one model."""
    return _unpacked(b"".join(blobs), len(blobs))


def _unpacked(packed: bytes, count: int) -> NDArray[np.float64]:
    layers = len(packed) // (count * _LAYER_BYTES) if count else 0
    genes = np.frombuffer(packed, _GENES).reshape(count, layers, len(GENES)).astype(np.float64)
    genes[:, :, 1::2] /= _SHARES
    return genes


class Unpacker:
    """Makes architectures of packed ones. Layers that are alike are one object: a search has few of a kind."""

    def __init__(self) -> None:
        self._layers: dict[bytes, LayerArchitecture] = {}

    def architecture(self, packed: bytes) -> Architecture:
        """Return a packed architecture."""
        parts = [packed[start : start + _LAYER_BYTES] for start in range(0, len(packed), _LAYER_BYTES)]
        try:
            return Architecture(tuple([self._layers[part] for part in parts]))
        except KeyError:
            self._learn(parts)
            return Architecture(tuple([self._layers[part] for part in parts]))

    def _learn(self, parts: Iterable[bytes]) -> None:
        for part in parts:
            groups, attention, width, mlp = np.frombuffer(part, _GENES).tolist()
            self._layers[part] = LayerArchitecture(groups, width, attention / _SHARES, mlp / _SHARES)


def blocks_to_bytes(blocks: Sequence[float]) -> bytes:
    """Return block means as they are kept."""
    return np.asarray(blocks, _BLOCKS).tobytes()


def to_measurement(row: Mapping[Any, Any]) -> Measurement:
    """Return a row of the pairs as a measurement; its protocol and blocks included."""
    values = {name: row[name] for name in Measurement.__dataclass_fields__}
    blocks = {
        name: tuple(np.frombuffer(row[name], _BLOCKS).astype(float).tolist()) for name in ("nll_blocks", "kl_blocks")
    }
    return Measurement(**{**values, **blocks})


def to_slopes(row: Mapping[Any, Any]) -> Slopes:
    """Return a row of the slopes."""
    content = json.loads(row["content"])
    widths, sparsities = (
        tuple(tuple((float(gene), float(change)) for gene, change in own) for own in content[name])
        for name in ("widths", "sparsities")
    )
    return Slopes(Architecture.from_json(row["architecture"]), float(content["kl"]), widths, sparsities)
