"""An architecture: what is kept of every layer. The same JSON comes out of a search and from a person's keyboard."""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from space.errors import ArchitectureError
from space.layout import Layout

GENES = ("kv_groups", "attention_sparsity", "mlp_width", "mlp_sparsity")
SPARSITY_DIGITS = 4  # finer levels are noise, and 0.1 + 0.2 must be the same gene as 0.3
_REMEMBERED = 1 << 14  # layers: architectures of a model differ in which layer is what, so most were read before
_genes = attrgetter(*GENES)


@dataclass(frozen=True, slots=True)
class LayerArchitecture:
    """What is kept of one layer; a width of 0 removes the sub-block with its norm."""

    kv_groups: int  # kept KV groups, each with its query heads
    mlp_width: int  # kept intermediate channels
    attention_sparsity: float = 0.0  # share of zeros in each row of the attention projections
    mlp_sparsity: float = 0.0

    def __post_init__(self) -> None:
        # A removed sub-block has no sparsity: one architecture, one fingerprint.
        attention = round(float(self.attention_sparsity), SPARSITY_DIGITS) if self.kv_groups else 0.0
        mlp = round(float(self.mlp_sparsity), SPARSITY_DIGITS) if self.mlp_width else 0.0
        object.__setattr__(self, "attention_sparsity", attention)
        object.__setattr__(self, "mlp_sparsity", mlp)


@dataclass(frozen=True, slots=True)
class Architecture:
    """A pruned model's shape: one `LayerArchitecture` per layer of the dense model."""

    layers: tuple[LayerArchitecture, ...]

    @classmethod
    def dense(cls, layout: Layout) -> Self:
        """Return the architecture that keeps everything."""
        return cls((LayerArchitecture(layout.kv_groups, layout.mlp_width),) * layout.layers)

    def replace(self, layer: int, **genes: Any) -> Self:
        """Return this architecture with some genes of one layer changed."""
        changed = LayerArchitecture(**{**asdict(self.layers[layer]), **genes})
        return type(self)((*self.layers[:layer], changed, *self.layers[layer + 1 :]))

    def changed_layers(self, other: "Architecture") -> tuple[int, ...]:
        """Return the indices of the layers in which two architectures of one model differ."""
        pairs = zip(self.layers, other.layers, strict=True)
        return tuple(index for index, (mine, theirs) in enumerate(pairs) if mine != theirs)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        # Some thousand times a run; `asdict` copies deeply and takes twenty times as long.
        return {"layers": [{name: getattr(layer, name) for name in layer.__slots__} for layer in self.layers]}

    def to_json(self) -> str:
        """Return the canonical JSON text: sorted keys, no spaces, the same for equal architectures."""
        return f'{{"layers":[{",".join([_text(*_genes(layer)) for layer in self.layers])}]}}'

    @property
    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read an architecture from JSON text.

        Raises:
            ArchitectureError: the text is not JSON, or not an architecture.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ArchitectureError(
                f'An architecture must be JSON of the form {{"layers": [...]}}, but this text is not JSON ({error}); '
                "`secateur sample` writes examples."
            ) from None
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Read an architecture from parsed JSON.

        Raises:
            ArchitectureError: a key is missing or unknown, or a value is of the wrong kind.
        """
        layers = values.get("layers") if isinstance(values, Mapping) else None
        if not isinstance(layers, list) or not layers:
            raise ArchitectureError(
                'An architecture must be an object with a list "layers", one entry per layer; '
                "`secateur sample` writes examples."
            )
        try:
            return cls(tuple([_known_layer(**layer) for layer in layers]))
        except (ArchitectureError, TypeError):  # which says what is wrong, but not where
            return cls(tuple(_layer(index, layer) for index, layer in enumerate(layers)))

    def check(self, layout: Layout) -> None:
        """Check that this architecture can be cut out of a dense model.

        Raises:
            ArchitectureError: the number of layers differs, or a gene is out of its range.
        """
        if len(self.layers) != layout.layers:
            raise ArchitectureError(
                f"An architecture must have one entry for each of the model's {layout.layers} layers, but has "
                f"{len(self.layers)}; add or remove entries (a removed layer is kv_groups 0 and mlp_width 0)."
            )
        groups, width = layout.kv_groups, layout.mlp_width
        for index, layer in enumerate(self.layers):
            if not (0 <= layer.kv_groups <= groups and 0 <= layer.mlp_width <= width):
                _check_range(index, "kv_groups", layer.kv_groups, groups)
                _check_range(index, "mlp_width", layer.mlp_width, width)


def genes_of(architectures: Iterable[Architecture]) -> NDArray[np.float64]:
    """Return the genes (architectures, layers, genes in the order of `GENES`) of architectures of one model."""
    return np.array([[_genes(layer) for layer in each.layers] for each in architectures], dtype=np.float64)


@functools.lru_cache(_REMEMBERED, typed=True)
def _text(kv_groups: int, attention_sparsity: float, mlp_width: int, mlp_sparsity: float) -> str:
    """Return the canonical JSON text of a layer."""
    values = (kv_groups, attention_sparsity, mlp_width, mlp_sparsity)
    return json.dumps(dict(zip(GENES, values, strict=True)), sort_keys=True, separators=(",", ":"))


@functools.lru_cache(_REMEMBERED, typed=True)  # 2, 2.0 and true are not the same: two of them are no width
def _known_layer(**values: Any) -> LayerArchitecture:
    return _layer(0, values)


def _layer(index: int, values: Any) -> LayerArchitecture:
    if not isinstance(values, Mapping):
        raise ArchitectureError(f"Layer {index} must be an object with the genes {', '.join(GENES)}.")
    unknown = sorted(map(str, set(values) - set(GENES)))
    if unknown:
        raise ArchitectureError(
            f"The genes of a layer are {', '.join(GENES)}, but layer {index} has {', '.join(unknown)}; remove them."
        )
    for gene in ("kv_groups", "mlp_width"):
        value = values.get(gene)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ArchitectureError(f"{gene} must be a whole number in layer {index}, but is {value!r}; give one.")
    for gene in ("attention_sparsity", "mlp_sparsity"):
        value = values.get(gene, 0.0)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0.0 <= round(value, SPARSITY_DIGITS) < 1.0:
            raise ArchitectureError(
                f"{gene} must be at least 0 and below 1 in layer {index}, but is {value!r}; "
                "remove a sub-block by a width of 0."
            )
    return LayerArchitecture(**values)


def _check_range(layer: int, gene: str, value: int, dense: int) -> None:
    if not 0 <= value <= dense:
        nearest = min(max(value, 0), dense)
        raise ArchitectureError(
            f"{gene} must be between 0 and {dense} in layer {layer}, but is {value}; the nearest is {nearest}."
        )
