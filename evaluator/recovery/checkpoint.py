"""A fine-tuning's checkpoint: one safetensors file, written beside and renamed, with all that the next step needs."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from space import ModelError

_MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


@dataclass
class Checkpoint:
    """How far a fine-tuning is."""

    step: int = 0  # taken
    losses: list[float] = field(default_factory=list)  # of each step
    looks: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0


def save_checkpoint(
    file: Path,
    state: Checkpoint,
    weights: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    best: Mapping[str, Tensor],
) -> None:
    """Write a checkpoint.

    Args:
        file: to write; an older one is replaced.
        state: how far it is.
        weights: that are trained.
        optimizer: AdamW of these weights.
        best: the weights of the best look so far, if any.
    """
    tensors = {f"weight {name}": weight.detach() for name, weight in weights.items()}
    tensors |= {f"best {name}": weight for name, weight in best.items()}
    for name, weight in weights.items():
        tensors |= {f"{moment} {name}": optimizer.state[weight][moment] for moment in _MOMENTS}
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(".partial")
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, beside, {"state": json.dumps(asdict(state))})
    beside.replace(file)


def load_checkpoint(
    file: Path, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> tuple[Checkpoint, dict[str, Tensor]]:
    """Put a checkpoint's weights and moments into place; return how far it is and the best weights so far.

    Args:
        file: written by `save_checkpoint` for the same training.
        weights: to put the trained ones into.
        optimizer: AdamW of these weights.

    Raises:
        ModelError: the file is damaged.
    """
    try:
        with safe_open(file, "pt") as stream:
            values = json.loads(stream.metadata()["state"])
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  not a mapping
        state = Checkpoint(**{**values, "looks": [(step, loss) for step, loss in values["looks"]]})
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(tensors[f"weight {name}"])
                moments = {moment: tensors[f"{moment} {name}"].to(weight.device) for moment in _MOMENTS}
                optimizer.state[weight] = {"step": torch.tensor(float(state.step)), **moments}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"A recovery's checkpoint must be intact, but {str(file)!r} is not ({error}); delete it to begin anew."
        ) from error
    best = {name: tensors[f"best {name}"] for name in weights if f"best {name}" in tensors}
    return state, {name: tensor.to(weights[name].device) for name, tensor in best.items()}
