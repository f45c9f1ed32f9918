"""A pruned model as GGUF: llama.cpp's `llama`, `qwen2` or `qwen3` where all layers are alike, else an uneven kin.

`deci` (Llama-3.1-Nemotron) computes as a Llama does, with head counts and MLP widths of each block's own; `openelm`
does so with the head norms of a Qwen3. docs/exports.md has what was tried of both, and their traps.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from gguf import MODEL_ARCH, MODEL_TENSOR, TENSOR_NAMES, GGUFWriter
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evaluator.pruned_model import RemovedAttention, RemovedMLP
from search.export.packing import Block, pack
from search.export.vocabulary import vocabulary_of
from space import ExportError, Family

_EVEN = {"llama": MODEL_ARCH.LLAMA, "mistral": MODEL_ARCH.LLAMA, "qwen2": MODEL_ARCH.QWEN2, "qwen3": MODEL_ARCH.QWEN3}
_UNEVEN = {**dict.fromkeys(("llama", "mistral", "qwen2"), MODEL_ARCH.DECI), "qwen3": MODEL_ARCH.OPENELM}
_NEIGHBOURS_TURN = (MODEL_ARCH.LLAMA, MODEL_ARCH.DECI)  # rotary embeddings turn features 0 and 1, not 0 and D / 2
_FREE_FREQUENCIES = (MODEL_ARCH.LLAMA, MODEL_ARCH.DECI)
_QUANTIZATION_VERSION = 2  # of the block formats
_DUMMY_WIDTH = 32  # of an MLP of zeros; a block of every quantised format
# Biases that llama.cpp takes, by what it calls a model; `o` and `down` are where pruning may add one.
_BIASES = {
    MODEL_ARCH.LLAMA: ["q", "k", "v", "o", "gate", "up", "down"],
    MODEL_ARCH.DECI: ["q", "k", "v", "o", "gate", "up", "down"],
    MODEL_ARCH.QWEN2: ["q", "k", "v"],
    MODEL_ARCH.QWEN3: [],
    MODEL_ARCH.OPENELM: [],
}


@dataclass(frozen=True)
class Parts:
    """The weights of a block by short names (`q.weight`, `down.bias`), with its sizes; a dummy where it has none."""

    heads: int
    kv_groups: int
    mlp_width: int
    attention: Mapping[str, Tensor]
    mlp: Mapping[str, Tensor]


class Source:
    """A model to be written: what of it is left, and what llama.cpp can call it.

    Args:
        model: a pruned model, or a dense one.
        family: its record.

    Raises:
        ExportError: llama.cpp cannot run such a model.
    """

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        self.model, self.family = model, family
        if family.name not in _EVEN:
            raise ExportError(
                f"A model must be of the family {', '.join(_EVEN)} to go into a GGUF file, since llama.cpp runs no "
                f"other with layers of different widths, but this one is a {family.name}; export to huggingface."
            )
        config = model.config
        if config.hidden_act != "silu":
            raise _refusal(f"has the activation {config.hidden_act}, which its MLPs lack")
        self.head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        layers = model.get_submodule(family.layers)
        assert isinstance(layers, nn.ModuleList)
        self._layers = layers
        kept = [(self._has(layer, "attention"), self._has(layer, "mlp")) for layer in layers]
        blocks = pack(kept) or [Block(None, None)]
        found = [self._parts(block) for block in blocks]
        widths = {(part.heads, part.kv_groups, part.mlp_width) for part in found}
        self.architecture = _EVEN[family.name] if self._are_alike(widths) else _UNEVEN[family.name]
        self._check_biases(found)
        if self.architecture == MODEL_ARCH.OPENELM and not config.tie_word_embeddings:
            raise _refusal("has an output matrix of its own, and an uneven Qwen3 there must share the embedding's")
        self.blocks = [self._completed(part, first=not index) for index, part in enumerate(found)]
        self.frequency_factors = self._frequency_factors()

    def _are_alike(self, widths: set[tuple[int, int, int]]) -> bool:
        """Return whether blocks of such heads, KV groups and MLP widths go by the family's own name."""
        if len(widths) > 1:
            return False
        [(heads, groups, width)] = widths
        # There a Qwen2's queries are as wide as the residual stream.
        whole = heads * self.head_dim == self.model.config.hidden_size
        return bool(groups and width) and (whole or self.family.name != "qwen2")

    def _has(self, layer: nn.Module, sub_block: str) -> bool:
        path = getattr(self.family, sub_block)
        return not isinstance(layer.get_submodule(path), RemovedAttention | RemovedMLP)

    def _parts(self, block: Block) -> Parts:
        family = self.family
        attention: dict[str, Tensor] = {}
        mlp: dict[str, Tensor] = {}
        if block.attention is not None:
            layer = self._layers[block.attention]
            named = {"q": family.query, "k": family.key, "v": family.value, "o": family.output}
            attention = _weights(layer, {"attention_norm": family.attention_norms[0], **named})
            if family.head_norms:
                attention |= _weights(layer, {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"})
        if block.mlp is not None:
            assert family.gate is not None
            named = {"gate": family.gate, "up": family.up, "down": family.down}
            mlp = _weights(self._layers[block.mlp], {"mlp_norm": family.mlp_norms[0], **named})
        return Parts(
            heads=len(attention["q.weight"]) // self.head_dim if attention else 0,
            kv_groups=len(attention["k.weight"]) // self.head_dim if attention else 0,
            mlp_width=len(mlp["up.weight"]) if mlp else 0,
            attention=attention,
            mlp=mlp,
        )

    def _check_biases(self, found: Sequence[Parts]) -> None:
        there = {name for part in found for name in (*part.attention, *part.mlp) if name.endswith(".bias")}
        if there - {f"{name}.bias" for name in _BIASES[self.architecture]}:
            # Even layers may go by the uneven name, which may take them.
            self.architecture = _UNEVEN[self.family.name]
        if beyond := sorted(there - {f"{name}.bias" for name in _BIASES[self.architecture]}):
            raise _refusal(f"has biases ({', '.join(beyond)}) that a {self.family.name} there has not")

    def _completed(self, part: Parts, first: bool) -> Parts:
        """Return a block with what llama.cpp demands: an MLP, and in the first or in `openelm` an attention."""
        hidden, zeros = self.model.config.hidden_size, torch.zeros
        if not part.attention and (first or self.architecture == MODEL_ARCH.OPENELM):
            norms = {"q_norm.weight": torch.ones(self.head_dim), "k_norm.weight": torch.ones(self.head_dim)}
            attention = {"attention_norm.weight": torch.ones(hidden), "o.weight": zeros(hidden, self.head_dim)}
            attention |= {f"{name}.weight": zeros(self.head_dim, hidden) for name in "qkv"}
            attention |= norms if self.family.head_norms else {}
            part = Parts(1, 1, part.mlp_width, attention, part.mlp)
        if not part.mlp:
            mlp = {f"{name}.weight": zeros(_DUMMY_WIDTH, hidden) for name in ("gate", "up")}
            mlp |= {"mlp_norm.weight": torch.ones(hidden), "down.weight": zeros(hidden, _DUMMY_WIDTH)}
            part = Parts(part.heads, part.kv_groups, _DUMMY_WIDTH, part.attention, mlp)
        return part

    def _frequency_factors(self) -> Tensor | None:
        """Return by what the rotary frequencies of the base are divided, as Llama 3 does; None where by nothing."""
        rotary: Any = self.model.get_submodule(self.family.decoder).rotary_emb
        frequencies: Tensor = rotary.inv_freq.detach().cpu().double()
        if 2 * len(frequencies) != self.head_dim or rotary.attention_scaling != 1 or "dynamic" in rotary.rope_type:
            raise _refusal(f"turns positions in the way {rotary.rope_type}, which its file does not say")
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim
        factors = self.rope_theta**-exponents / frequencies
        if torch.allclose(factors, torch.ones_like(factors), rtol=1e-4):
            return None
        if self.architecture not in _FREE_FREQUENCIES:
            raise _refusal(f"turns positions in the way {rotary.rope_type}, which a {self.family.name} there does not")
        return factors.float()

    @property
    def rope_theta(self) -> float:
        """The base of the rotary frequencies."""
        return float(self.model.config.rope_parameters["rope_theta"])

    @property
    def context_length(self) -> int:
        """Tokens up to which the file's model is the same: no more than a sliding window, which llama.cpp ignores."""
        config = self.model.config
        kinds = getattr(config, "layer_types", None)
        slides = "sliding_attention" in kinds if kinds else self.family.name == "mistral"
        window = getattr(config, "sliding_window", None) if slides else None
        return int(min(config.max_position_embeddings, window or config.max_position_embeddings))

    def describe(self, writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the sizes and the tokenizer into a file's metadata.

        Args:
            writer: of the file.
            tokenizer: the model's.

        Raises:
            ExportError: llama.cpp has no such tokenizer.
        """
        config, blocks = self.model.config, self.blocks
        vocabulary_of(tokenizer, config.vocab_size).add_to(writer)
        writer.add_quantization_version(_QUANTIZATION_VERSION)
        writer.add_vocab_size(config.vocab_size)
        writer.add_context_length(self.context_length)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(len(blocks))
        even = self.architecture in _EVEN.values()
        for add, values in (
            (writer.add_feed_forward_length, [block.mlp_width for block in blocks]),
            (writer.add_head_count, [block.heads for block in blocks]),
            (writer.add_head_count_kv, [block.kv_groups for block in blocks]),
        ):
            add(values[0] if even else values)
        for add_size in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
            add_size(self.head_dim)
        writer.add_rope_freq_base(self.rope_theta)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the file's tensors by their names there."""
        yield _name(MODEL_TENSOR.TOKEN_EMBD), self._embedding.weight
        output = self.model.get_output_embeddings()
        if output.weight is not self._embedding.weight:
            yield _name(MODEL_TENSOR.OUTPUT), output.weight
        norm: Any = self.model.get_submodule(self.family.decoder).norm
        yield _name(MODEL_TENSOR.OUTPUT_NORM), norm.weight
        if self.frequency_factors is not None:
            yield _name(MODEL_TENSOR.ROPE_FREQS), self.frequency_factors
        for index, block in enumerate(self.blocks):
            for name, tensor in self._of_block(block).items():
                part, _, kind = name.partition(".")
                yield _name(_TENSORS[part], index, kind), tensor

    @property
    def _embedding(self) -> Any:
        return self.model.get_input_embeddings()

    def _of_block(self, block: Parts) -> dict[str, Tensor]:
        found = {**block.attention, **block.mlp}
        if self.architecture in _NEIGHBOURS_TURN and block.attention:
            for name in ("q.weight", "k.weight", "q.bias", "k.bias"):
                if name in found:
                    found[name] = neighbours(found[name], self.head_dim)
        if self.architecture == MODEL_ARCH.OPENELM:
            found["qkv.weight"] = torch.cat([found.pop(f"{name}.weight").cpu() for name in "qkv"])
        return found


_TENSORS = {
    "attention_norm": MODEL_TENSOR.ATTN_NORM,
    "q": MODEL_TENSOR.ATTN_Q,
    "k": MODEL_TENSOR.ATTN_K,
    "v": MODEL_TENSOR.ATTN_V,
    "qkv": MODEL_TENSOR.ATTN_QKV,
    "o": MODEL_TENSOR.ATTN_OUT,
    "q_norm": MODEL_TENSOR.ATTN_Q_NORM,
    "k_norm": MODEL_TENSOR.ATTN_K_NORM,
    "mlp_norm": MODEL_TENSOR.FFN_NORM,
    "gate": MODEL_TENSOR.FFN_GATE,
    "up": MODEL_TENSOR.FFN_UP,
    "down": MODEL_TENSOR.FFN_DOWN,
}


def _refusal(reason: str) -> ExportError:
    return ExportError(
        f"A model must be one that llama.cpp can run to go into a GGUF file, but this one {reason}; export to "
        "huggingface."
    )


def _weights(layer: nn.Module, paths: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the weights and biases of modules by the modules' short names."""
    return {
        f"{name}.{kind}": tensor
        for name, path in paths.items()
        for kind, tensor in layer.get_submodule(path).named_parameters(recurse=False)
    }


def _name(tensor: MODEL_TENSOR, block: int | None = None, kind: str = "weight") -> str:
    return f"{TENSOR_NAMES[tensor].format(bid=block)}.{kind}"


def neighbours(tensor: Tensor, head_dim: int) -> Tensor:
    """Return a projection with the rows of each head in the order in which rotary embeddings turn neighbours.

    Args:
        tensor: (heads * head_dim, ...), whose halves of a head turn together.
        head_dim: rows of a head.
    """
    heads = len(tensor) // head_dim
    halves = tensor.reshape(heads, 2, head_dim // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)
