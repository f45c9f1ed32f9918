"""The layout of a dense model: the sizes that pruning may change, read from its configuration."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from space.criterion import Criterion
from space.errors import ModelError
from space.families import Family, family_of


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of a dense decoder, the same in every layer.

    Notation: hidden size H, query heads Q, KV groups G (key-value heads with the Q / G query heads that share them),
    head size D, MLP width W (intermediate channels).
    """

    family: str
    layers: int
    hidden_size: int  # H
    heads: int  # Q
    kv_groups: int  # G
    head_dim: int  # D
    mlp_width: int  # W
    vocabulary: int
    tied_embeddings: bool
    gated_mlp: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    norm_vectors: int  # parameters per hidden unit of one norm
    attention_norms: int  # norms that leave with the attention
    mlp_norms: int  # norms that leave with the MLP
    head_norms: int  # norms over a head's features, a vector each, that leave with the attention
    positions: int  # rows of a table of learned positions, never pruned
    bias_update: bool = False  # whether what reads a narrowed sub-block gets a bias, as `Criterion.update` may ask for

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one key-value head."""
        return self.heads // self.kv_groups

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read a layout from a model's configuration.

        Args:
            config: the content of `config.json`.

        Raises:
            FamilyError: the family has no record.
            ModelError: a size is missing or inconsistent.
        """
        family = family_of(str(config.get("model_type")))
        for key, value in family.required:
            if config.get(key, value) != value:
                raise ModelError(
                    f"A {family.name} model must have {key} {value!r} to be pruned here, but this one has "
                    f"{config[key]!r}; choose another model."
                )
        hidden = _size(config, family.hidden_size)
        heads = _size(config, family.heads)
        groups = int((config.get(family.kv_groups) if family.kv_groups else None) or heads)
        if heads % groups:
            raise ModelError(
                f"{family.heads} must be a multiple of {family.kv_groups}, but they are {heads} and {groups}; "
                "the model's config.json is damaged."
            )
        return cls(
            family=family.name,
            layers=_size(config, family.layer_count),
            hidden_size=hidden,
            heads=heads,
            kv_groups=groups,
            head_dim=int(config.get("head_dim") or hidden // heads),
            mlp_width=_mlp_width(config, family, hidden),
            vocabulary=_size(config, "vocab_size"),
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
            gated_mlp=family.gate is not None,
            qkv_bias=_flag(config, family.qkv_bias),
            output_bias=_flag(config, family.output_bias),
            mlp_bias=_flag(config, family.mlp_bias),
            norm_vectors=family.norm_vectors,
            attention_norms=len(family.attention_norms),
            mlp_norms=len(family.mlp_norms),
            head_norms=family.head_norms,
            positions=_positions(config, family),
        )

    @property
    def record(self) -> Family:
        """The family's record."""
        return family_of(self.family)

    def pruned_by(self, criterion: Criterion) -> Self:
        """Return the layout with what a criterion's update adds to narrowed sub-blocks."""
        return replace(self, bias_update=criterion.update == "bias")

    def adds_attention_bias(self, kv_groups: int) -> bool:
        """Return whether an attention with some KV groups has an output bias that the dense one has not."""
        return self.bias_update and not self.output_bias and 0 < kv_groups < self.kv_groups

    def adds_mlp_bias(self, mlp_width: int) -> bool:
        """Return whether an MLP of some width has an output bias that the dense one has not."""
        return self.bias_update and not self.mlp_bias and 0 < mlp_width < self.mlp_width

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a layout from `to_dict`.

        Raises:
            ModelError: a field is missing or unknown.
        """
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            differing = ", ".join(sorted(names ^ set(values)))
            raise ModelError(
                f"A layout must have exactly the fields of this version, but these differ: {differing}; "
                "write it again with this version."
            )
        return cls(**values)


def _size(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise ModelError(
            f"{key} in a model's config.json must be a positive whole number, but is {value!r}; open an intact model."
        )
    return value


def _mlp_width(config: Mapping[str, Any], family: Family, hidden: int) -> int:
    if family.mlp_ratio is not None and config.get(family.mlp_width) is None:
        return family.mlp_ratio * hidden
    return _size(config, family.mlp_width)


def _positions(config: Mapping[str, Any], family: Family) -> int:
    if family.learned_positions is None:
        return 0
    key, beyond = family.learned_positions
    return _size(config, key) + beyond


def _flag(config: Mapping[str, Any], rule: bool | str) -> bool:
    return bool(config.get(rule, False)) if isinstance(rule, str) else rule
