"""Element-wise steps of measuring, each one pass over memory where torch can compile them.

Between its matrix products a measurement waits for memory: a norm written in torch reads and writes its activations six
times, a loss its logits four times. `torch.compile` makes one loop of each of three steps; it needs a C++ compiler on
the machine, and without one the same steps run as torch has them.

| step | eager | where |
| --- | --- | --- |
| RMS norm | weight * (x / rms(x)) | before each sub-block of most families |
| gating | silu(gate) * up | in their MLPs |
| summary | highest logit and log-sum-exp of a row | vocabulary |

Compiled steps round less often than eager ones, so their numbers differ in the last bits: which of the two measured is
part of a protocol.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

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


@dataclass(frozen=True)
class Kernels:
    """The steps as one machine runs them."""

    name: str  # eager or compiled
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    gated: Callable[[Tensor, Tensor], Tensor]
    summary: Callable[[Tensor], tuple[Tensor, Tensor]]


EAGER = Kernels("eager", rms_norm, gated, summary_in_blocks)


@functools.cache
def compiled() -> Kernels:
    """Return compiled steps, or the eager ones where they do not compile or do not agree."""
    found = Kernels("compiled", *(torch.compile(step, dynamic=True) for step in (rms_norm, gated, summary_at_once)))
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(8, 96, generator=generator).bfloat16()
    try:
        with torch.inference_mode():
            for step, arguments in (
                ("rms_norm", (rows, rows[0], 1e-5)),
                ("gated", (rows, rows.flip(0))),
                ("summary", (rows,)),
            ):
                torch.testing.assert_close(
                    getattr(found, step)(*arguments), getattr(EAGER, step)(*arguments), atol=0.05, rtol=0.02
                )
    except Exception as error:  # whatever a missing or foreign compiler raises
        logging.getLogger(__name__).info("steps are not compiled: %s", error)
        return EAGER
    return found


@contextlib.contextmanager
def running_by(kernels: Kernels, decoder: nn.Module) -> Iterator[None]:
    """Let a decoder's norms and gated MLPs run by compiled steps for a while; eager ones are its own."""
    replaced: list[Any] = []
    try:
        if kernels is not EAGER:
            for module in decoder.modules():
                if (forward := _forward(kernels, module)) is not None:
                    module.forward = forward  # type: ignore[method-assign]
                    replaced.append(module)
        yield
    finally:
        for module in replaced:
            del module.forward


def _forward(kernels: Kernels, module: Any) -> Callable[[Tensor], Tensor] | None:
    """Return a module's compiled form, if it has one."""
    if hasattr(module, "variance_epsilon") and hasattr(module, "weight"):
        return lambda hidden: kernels.rms_norm(hidden, module.weight, module.variance_epsilon)
    if all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")) and _is_silu(
        module.act_fn
    ):
        return lambda hidden: module.down_proj(kernels.gated(module.gate_proj(hidden), module.up_proj(hidden)))
    return None


def _is_silu(activation: nn.Module) -> bool:
    probe = torch.linspace(-4, 4, 9)
    return torch.equal(activation(probe), functional.silu(probe))
