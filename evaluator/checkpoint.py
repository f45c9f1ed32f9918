"""Opening a dense model: a Hugging Face id or folder, a GGUF file, or a built-in name."""

import contextlib
import functools
import hashlib
import logging
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from evaluator.builtin import PACKAGED_MODELS, cache_folder, packaged_gguf
from space import Layout, ModelError, family_of

SEVERAL = "auto"  # devices, as many as the model needs

_TRIES = 7  # of a product, of which the best counts

DTypeName = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class DenseModel:
    """A dense model in memory, with what is known about it."""

    name: str  # as the user gave it
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    weights_hash: str  # SHA-256 over names and bytes of all weights, in the dtype they run in

    @property
    def dtype(self) -> str:
        """The dtype's name, as in `float32`."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def weights_bytes(self) -> int:
        """Memory that the weights take, shared ones once."""
        return sum(weight.numel() * weight.element_size() for weight in self.model.parameters())

    @property
    def decoder(self) -> torch.nn.Module:
        """The module that turns token ids into final hidden states."""
        return self.model.get_submodule(self.layout.record.decoder)

    @property
    def layers(self) -> torch.nn.ModuleList:
        """The decoder layers."""
        layers = self.model.get_submodule(self.layout.record.layers)
        assert isinstance(layers, torch.nn.ModuleList)
        return layers

    @property
    def longest_sequence(self) -> int:
        """Tokens that the model's positions allow in one sequence."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 2**31)


def choose_dtype(name: DTypeName, device: str = "cpu") -> torch.dtype:
    """Return the dtype to run in; `auto` takes bfloat16 where the hardware multiplies it faster, else float32.

    Args:
        name: `auto` or a dtype's name.
        device: a torch device, or `auto`.
    """
    if name != "auto":
        return torch.float32 if name == "float32" else torch.bfloat16 if name == "bfloat16" else torch.float16
    on_gpu = torch.cuda.is_available() if device == SEVERAL else torch.device(device).type == "cuda"
    if on_gpu:
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    capable = torch.cpu.get_capabilities()
    has_instructions = capable.get("avx512_bf16") or capable.get("amx_bf16")
    return torch.bfloat16 if has_instructions and _bfloat16_is_faster() else torch.float32


@functools.cache
def _bfloat16_is_faster() -> bool:
    """Return whether a matrix product takes at most two thirds of float32's time here; the best of a few tries each.

    In time of the processor: by the clock on the wall a busy machine would choose now one dtype, now the other.
    """
    wide = torch.ones(512, 512)
    narrow = wide.bfloat16()
    best = {}
    for matrix in (wide, narrow):
        taken = []
        for _ in range(_TRIES):
            started = time.process_time()
            torch.mm(matrix, matrix)
            taken.append(time.process_time() - started)
        best[matrix.dtype] = min(taken)
    return best[torch.bfloat16] < 2 / 3 * best[torch.float32]


def open_model(
    name: str, *, dtype: DTypeName = "auto", device: str = "cpu", trust_remote_code: bool = False
) -> DenseModel:
    """Open a dense model for measuring.

    Args:
        name: a built-in name (`smollm2-135m`), a folder, a .gguf file, or a Hugging Face id.
        dtype: what to run in; see `choose_dtype`.
        device: a torch device, or `auto` to lay the model over all GPUs there are, as accelerate sees fit.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        ModelError: there is no such model, or it cannot be read.
        FamilyError: its family has no record.
    """
    folder = model_folder(name)
    with quiet_transformers(), as_model_error(name):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        family_of(config.model_type)  # refuse before the weights are read
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=choose_dtype(dtype, device),
            device_map=device,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    _check_in_memory(name, model)
    model.eval().requires_grad_(False)
    return DenseModel(name, model, tokenizer, Layout.from_config(config.to_dict()), hash_weights(model))


def _check_in_memory(name: str, model: PreTrainedModel) -> None:
    """Refuse a model of which accelerate has left weights on the disk: they are changed here, not only read."""
    if any(weight.is_meta for weight in model.parameters()):
        raise ModelError(
            f"A model must fit into the memory of its devices, but {name!r} does not; take a machine with more, "
            "or dtype: bfloat16."
        )


def model_folder(name: str) -> str:
    """Return what transformers opens: a folder, made of a GGUF file the first time, or an id of the hub.

    Args:
        name: as for `open_model`.

    Raises:
        ModelError: there is no such model.
    """
    if name in PACKAGED_MODELS:
        return str(_converted(packaged_gguf(name)))
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return str(_converted(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"A model folder must hold a config.json, but {name!r} does not; give the folder that does, "
                "a .gguf file, a Hugging Face id or a built-in name."
            )
        return str(path)
    looks_like_id = name.count("/") <= 1 and not name.startswith((".", "/", "~")) and not path.exists()
    if not looks_like_id:
        raise ModelError(
            f"A model must be a folder with a config.json, a .gguf file, a Hugging Face id or one of "
            f"{', '.join(PACKAGED_MODELS)}, but {name!r} is none of these; check the path."
        )
    return name


def _converted(gguf: Path) -> Path:
    """Return a folder with a GGUF file's weights as safetensors, converting it the first time."""
    with gguf.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    target = cache_folder() / f"{gguf.stem[:40]}-{digest[:12]}-hf"
    if (target / "config.json").exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch, quiet_transformers(), as_model_error(str(gguf)):
        # bfloat16 holds the block-quantised weights' values to their own precision, and halves the cache.
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
        model.hf_quantizer = None  # type: ignore[assignment]  # transformers' own attribute: not quantised any more
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(scratch)
        with contextlib.suppress(OSError):  # another process may have converted it meanwhile
            Path(scratch).rename(target)
            Path(scratch).mkdir()  # the context manager removes it
    return target


def hash_weights(model: PreTrainedModel) -> str:
    """Return the SHA-256 over names, shapes and bytes of all weights (first 16 hexadecimal digits)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def as_model_error(name: str) -> Iterator[None]:
    """Say of whatever a library raises that a model of that name cannot be read."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, ModelError) or type(error).__module__.startswith("space"):
            raise
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"A model must be a readable folder, .gguf file, Hugging Face id or one of {', '.join(PACKAGED_MODELS)}, "
            f"but {name!r} could not be opened ({reason}); check the name, or the network for an id."
        ) from error


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' own progress bars and notices from mixing with ours."""
    level: Any = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
