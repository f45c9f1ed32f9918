"""The number formats of a GGUF file: which of them a tensor is stored in, and its bytes."""

import re
from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, LlamaFileType, quants
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray
from torch import Tensor

from search.export import llamacpp
from space import SettingError

_K_KINDS = (Kind.Q4_K, Kind.Q5_K, Kind.Q6_K)
# What llama.cpp stores rows in whose length is no multiple of a block.
_FALL_BACK = {Kind.Q4_K: Kind.Q5_0, Kind.Q5_K: Kind.Q5_1, Kind.Q6_K: Kind.Q8_0}
_EMBEDDINGS = ("token_embd.weight", "output.weight")
_DELICATE = re.compile(r"blk\.(\d+)\.(attn_v|attn_qkv|ffn_down)\.weight")


@dataclass(frozen=True, slots=True)
class StorageType:
    """How the weights of a file are stored."""

    name: str  # as files are called by it
    file_type: LlamaFileType
    matrices: Kind
    # Of tokens, into the decoder and out of it, which coarse formats harm most; and of values and MLPs' outputs in some
    # blocks, where llama.cpp's mixes spend more bits.
    embeddings: Kind
    delicate: Kind | None
    # Mean KL divergence from the model in memory above which a file is taken for broken, in nats. None of coarse types:
    # what they cost is the model's affair (SmolLM2-135M at 80 %: 0.005 to 0.3; one cut to pieces: more), and that the
    # file is otherwise right a finer one of the same model shows.
    tolerance: float | None = None

    @property
    def by_llama_cpp(self) -> bool:
        """Whether llama.cpp alone can write it."""
        return self.matrices in _K_KINDS

    def kind_of(self, name: str, blocks: int) -> Kind:
        """Return the format of a matrix.

        Args:
            name: of the tensor in the file.
            blocks: how many the file has.
        """
        if name in _EMBEDDINGS:
            return self.embeddings
        place = _DELICATE.fullmatch(name)
        if self.delicate is not None and place and _gets_more(int(place[1]), blocks):
            return self.delicate
        return self.matrices


def _gets_more(block: int, blocks: int) -> bool:
    """Return whether llama.cpp's mixes (`_M`) spend more on a block: the first and last eighth, and each third."""
    eighth = blocks // 8
    return block < eighth or block >= 7 * blocks // 8 or (block - eighth) % 3 == 2


def _alike(name: str, file_type: str, tolerance: float | None = None, embeddings: str | None = None) -> StorageType:
    return StorageType(name, LlamaFileType[file_type], Kind[name], Kind[embeddings or name], None, tolerance)


STORAGE_TYPES: dict[str, StorageType] = {
    each.name.lower(): each
    for each in (
        _alike("F32", "ALL_F32", 1e-6),
        _alike("F16", "MOSTLY_F16", 0.01),
        _alike("BF16", "MOSTLY_BF16"),
        _alike("Q8_0", "MOSTLY_Q8_0"),
        _alike("Q5_0", "MOSTLY_Q5_0", embeddings="Q8_0"),
        _alike("Q4_0", "MOSTLY_Q4_0", embeddings="Q8_0"),
        _alike("Q6_K", "MOSTLY_Q6_K"),
        StorageType("Q5_K_M", LlamaFileType.MOSTLY_Q5_K_M, Kind.Q5_K, Kind.Q6_K, Kind.Q6_K),
        StorageType("Q4_K_M", LlamaFileType.MOSTLY_Q4_K_M, Kind.Q4_K, Kind.Q6_K, Kind.Q6_K),
    )
}


def storage_type(name: str) -> StorageType:
    """Return a storage type by its name, in whatever case.

    Raises:
        SettingError: there is none of that name.
    """
    if name.lower() not in STORAGE_TYPES:
        raise SettingError(
            f"A GGUF file's type must be one of {', '.join(STORAGE_TYPES)}, but is {name!r}; choose one."
        )
    return STORAGE_TYPES[name.lower()]


def stored(tensor: Tensor, wanted: Kind) -> tuple[NDArray[np.generic], Kind]:
    """Return a tensor's bytes as a GGUF file holds them, and in what format.

    Vectors stay float32, as llama.cpp computes with them; rows that are no multiple of a format's block get the format
    that llama.cpp falls back on, in the end float16.

    Args:
        tensor: of one or two dimensions.
        wanted: the format.
    """
    values = tensor.detach().cpu().float().contiguous().numpy()
    if values.ndim == 1:
        return values, Kind.F32
    while values.shape[-1] % GGML_QUANT_SIZES[wanted][0]:
        wanted = _FALL_BACK.get(wanted, Kind.F16)
    if wanted == Kind.F32:
        return values, wanted
    if wanted == Kind.F16:
        return values.astype(np.float16), wanted
    return (llamacpp.quantized if wanted in _K_KINDS else quants.quantize)(values, wanted), wanted
