"""Element-wise steps of measuring, each one pass over memory where torch can compile them.

Between its matrix products a measurement waits for memory: a norm written in torch reads and writes its activations six
times, a loss its logits four times. `torch.compile` makes one loop of each of three steps; it needs a C++ compiler on
the machine, and without one the same steps run as torch has them.

| step | eager | where |
| --- | --- | --- |
| RMS norm | weight * (x / rms(x)) | before each sub-block of most families |
| gating | silu(gate) * up | in their MLPs |
| summary | highest logit and log-sum-exp of a row | vocabulary |

On a GPU, where each of many small steps costs the time to start it, norm and summary are torch's own fused ones.

Fused and compiled steps round less often than eager ones, so their numbers differ in the last bits: which of them
measured is part of a protocol.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._inductor import config as inductor_config
from torch.nn import functional

from evaluator.checkpoint import DenseModel
from space import SettingError

KernelsName = Literal["auto", "eager", "compiled", "fused"]

_FEWEST_PARAMETERS = 50_000_000  # of a model that takes minutes to search, as compiling may take a quarter of one
_BLOCK_COLUMNS = 4096  # of the vocabulary, turned into float32 at once where nothing is compiled


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return what transformers' RMS norms of Llama's form return, (..., hidden)."""
    values = hidden.float()
    values = values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + epsilon)
    return weight * values.to(hidden.dtype)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """Return the inputs of an MLP's down projection, (..., mlp_width)."""
    return functional.silu(gate) * up


def summary_in_blocks(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the highest logit and the log-sum-exp of each row, both (tokens,) float32, block by block."""
    highest = logits.amax(dim=-1).float()
    total = torch.zeros_like(highest)
    for block in logits.split(_BLOCK_COLUMNS, dim=1):
        total += (block.float() - highest[:, None]).exp_().sum(dim=-1)
    return highest, total.log() + highest


def summary_at_once(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same in a form that compiles to two passes."""
    highest = logits.amax(dim=-1).float()
    return highest, (logits.float() - highest[:, None]).exp().sum(dim=-1).log() + highest


def fused_rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return RMS norms of Llama's form by torch's own step, (..., hidden)."""
    return functional.rms_norm(hidden, (hidden.shape[-1],), weight, epsilon)


def fused_summary(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same as `summary_in_blocks` in the fewest steps, for memory that a float32 copy does not matter to."""
    return logits.amax(dim=-1).float(), logits.float().logsumexp(dim=-1)


@dataclass(frozen=True)
class Kernels:
    """The steps as one machine runs them."""

    name: str  # eager, compiled or fused
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    gated: Callable[[Tensor, Tensor], Tensor]
    summary: Callable[[Tensor], tuple[Tensor, Tensor]]


EAGER = Kernels("eager", rms_norm, gated, summary_in_blocks)
FUSED = Kernels("fused", fused_rms_norm, gated, fused_summary)


def choose_kernels(name: KernelsName, dense: DenseModel) -> Kernels:
    """Return the steps to measure a model by; `auto` fuses on a GPU, and compiles where that is soon worth its seconds.

    Args:
        name: `auto`, `eager`, `compiled` or `fused`.
        dense: the model.

    Raises:
        SettingError: they must be compiled, but cannot.
    """
    if name == "fused" or (name == "auto" and dense.model.device.type == "cuda"):
        return FUSED
    pays = dense.model.device.type == "cpu" and dense.model.num_parameters() >= _FEWEST_PARAMETERS
    if name == "eager" or (name == "auto" and not pays):
        return EAGER
    found = _compiled()
    if found is None and name == "compiled":
        raise SettingError(
            "Kernels can be compiled only where torch finds a C++ compiler whose code agrees with its own, but "
            "compiled was asked for here; install g++, or take kernels: auto."
        )
    return found or EAGER


@functools.cache
def _compiled() -> Kernels | None:
    """Return compiled steps, or none where they do not compile or do not agree with the eager ones."""
    make: Any = functools.partial(torch.compile, dynamic=True)
    found = Kernels("compiled", make(rms_norm), make(gated), make(summary_at_once))
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(8, 96, generator=generator).bfloat16()
    try:
        # A pool of compiling processes would take more memory and time to start than three steps to compile.
        with torch.inference_mode(), inductor_config.patch(compile_threads=1):
            for step, arguments in (
                ("rms_norm", (rows, rows[0], 1e-5)),
                ("gated", (rows, rows.flip(0))),
                ("summary", (rows,)),
            ):
                torch.testing.assert_close(
                    getattr(found, step)(*arguments), getattr(EAGER, step)(*arguments), atol=0.02, rtol=0.02
                )
    except Exception as error:  # whatever a missing or foreign compiler raises
        logging.getLogger(__name__).info("steps are not compiled: %s", error)
        return None
    return found


@contextlib.contextmanager
def running_by(kernels: Kernels, decoder: nn.Module) -> Iterator[None]:
    """Let a decoder's norms and gated MLPs run by compiled steps for a while; eager ones are its own."""
    replaced: list[Any] = []
    try:
        if kernels is not EAGER:
            for module in decoder.modules():
                if (forward := _forward(kernels, module)) is not None:
                    module.forward = forward
                    replaced.append(module)
        yield
    finally:
        for module in replaced:
            del module.forward


def _forward(kernels: Kernels, module: Any) -> Callable[[Tensor], Tensor] | None:
    """Return a module's compiled form, if it has one and nobody else has changed how it runs."""
    if "forward" in vars(module):
        return None
    if hasattr(module, "variance_epsilon") and hasattr(module, "weight"):
        return lambda hidden: kernels.rms_norm(hidden.flatten(0, -2), module.weight, module.variance_epsilon).view_as(
            hidden
        )
    if all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")) and _is_silu(
        module.act_fn
    ):
        return lambda hidden: _gated_mlp(kernels, module, hidden)
    return None


def _gated_mlp(kernels: Kernels, module: Any, hidden: Tensor) -> Tensor:
    rows = hidden.flatten(0, -2)  # one shape, one graph
    found: Tensor = module.down_proj(kernels.gated(module.gate_proj(rows), module.up_proj(rows)))
    return found.view_as(hidden)


def _is_silu(activation: nn.Module) -> bool:
    probe = torch.linspace(-4, 4, 9)
    return torch.equal(activation(probe), functional.silu(probe))
