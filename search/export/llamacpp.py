"""llama.cpp, where its Python package `xllamacpp` is installed: what a GGUF file's model says, and how fast.

Needs neither torch nor transformers, so that a process of its own starts at once.
"""

import ctypes
import importlib.util
import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from space import ExportError

_SURE = 1000.0  # added to a logit
INSTALL = "pip install 'secateur[llamacpp]'"


def is_installed() -> bool:
    """Return whether llama.cpp can be had here."""
    return importlib.util.find_spec("xllamacpp") is not None


class LlamaCpp:
    """A GGUF file opened by llama.cpp, on the processor.

    Args:
        file: the GGUF file.
        context: tokens that the KV cache holds.
        threads: to compute with.
        exact: whether keys and values are kept in float32 instead of float16.

    Raises:
        ExportError: llama.cpp does not load the file.
    """

    def __init__(self, file: Path, context: int, threads: int, exact: bool = False) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx, params.n_parallel, params.n_gpu_layers = context, 1, 0
        params.n_batch = params.n_ubatch = min(context, 512)
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.verbosity, params.warmup = -1, False
        if exact:
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise ExportError(
                f"A GGUF file must load in llama.cpp, but {str(file)!r} does not ({error}); export it anew."
            ) from error

    def _complete(self, prompt: Sequence[int], **options: Any) -> dict[str, Any]:
        asked = {"prompt": [list(prompt)], "temperature": 0.0, "cache_prompt": False, **options}
        found: dict[str, Any] = self._server.handle_completions(asked)
        return found

    def log_probabilities(
        self, prompt: Sequence[int], vocabulary: int, plain: int, cached: bool = False
    ) -> NDArray[np.float64]:
        """Return the natural log-probabilities (vocabulary,) of the token behind a prompt.

        Args:
            prompt: token ids.
            vocabulary: how many there are.
            plain: a token whose text is a letter; llama.cpp must write one, and says nothing at half a character.
            cached: whether what an earlier prompt began with too may come from the KV cache.
        """
        found = self._complete(
            prompt, max_tokens=1, logprobs=vocabulary, logit_bias=[[plain, _SURE]], cache_prompt=cached
        )
        [position] = found["choices"][0]["logprobs"]["content"]
        values = np.full(vocabulary, -np.inf)
        for each in position["top_logprobs"]:  # without the bias
            values[each["id"]] = each["logprob"]
        return values

    def tokenised(self, text: str) -> list[int]:
        """Return the token ids of a text, with those of a beginning where the tokenizer adds them."""
        asked = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
        request = urllib.request.Request(
            f"{self._server.listening_address}/tokenize", asked, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:  # nosec B310: a socket of this process
            found: list[int] = json.load(answer)["tokens"]
            return found

    def seconds(self, prompt: Sequence[int], tokens: int) -> tuple[float, float]:
        """Return how long reading a prompt takes, and writing tokens behind it.

        Args:
            prompt: token ids.
            tokens: to write, at least 2.
        """
        timings = self._complete(prompt, max_tokens=tokens, ignore_eos=True)["timings"]
        # The first token comes with the prompt.
        return timings["prompt_ms"] / 1e3, timings["predicted_ms"] / 1e3


def quantized(values: NDArray[np.float32], kind: GGMLQuantizationType) -> NDArray[np.uint8]:
    """Return rows of weights in one of llama.cpp's own formats, as bytes (rows, bytes of a row).

    Args:
        values: (rows, columns), columns a multiple of the format's block.
        kind: the format.
    """
    from xllamacpp import xllamacpp

    rows, columns = values.shape
    block, size = GGML_QUANT_SIZES[kind]
    found = np.empty((rows, columns // block * size), np.uint8)
    store = ctypes.CDLL(xllamacpp.__file__).ggml_quantize_chunk
    store.restype = ctypes.c_size_t
    store.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    given = np.ascontiguousarray(values)
    written = store(int(kind), given.ctypes.data, found.ctypes.data, 0, rows, columns, None)
    assert written == found.nbytes
    return found
