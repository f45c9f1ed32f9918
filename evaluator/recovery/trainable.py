"""Which weights of a pruned model are trained: low-rank additions to its projections, or all of them."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from evaluator.checkpoint import DenseModel
from evaluator.pruning import projections
from evaluator.recovery.masked import add_masked, is_sparse, take_out

if TYPE_CHECKING:
    from peft import PeftModel

_ACTIVATION_VALUES = 16  # kept of a layer for each of its hidden units, about, beside 3 for each MLP channel
_LARGEST_SHARE = 0.5  # of the free memory that activations may take before they are computed again instead


class Trainable:
    """The weights of a student that are trained; while it lives, only they take gradients.

    The zeros of a sparse model stay zeros.

    Args:
        student: the pruned model, changed in place.
        rank: of the low-rank additions (LoRA, arXiv 2106.09685); 0 trains all weights.
        scale: by which additions are multiplied, at any rank.
        seed: of their start.
    """

    def __init__(self, student: DenseModel, rank: int, scale: float, seed: int) -> None:
        self._student = student
        self._dtype = student.model.dtype
        self._whole = rank == 0
        self._peft: PeftModel | None = None
        self._masked: list[nn.Module] = []
        self._kept: dict[nn.Parameter, Tensor] = {}  # of sparse weights, which of them are not zero
        for weight in student.model.parameters():
            weight.requires_grad_(self._whole)
        found = _projections_of(student)
        held = [module.weight for module in found.values()]
        sparse = [each for each in held if isinstance(each, nn.Parameter) and is_sparse(each)]
        if rank and sparse:
            self._masked = list(found.values())
            add_masked(self._masked, rank, scale, seed)
        elif rank and found:
            self._peft = _with_additions(student, list(found), rank, scale, seed)
        elif self._whole:
            self._kept = {each: each.ne(0) for each in sparse}
            for weight in student.model.parameters():
                weight.data = weight.data.float()  # in less, a small step would change nothing
        named = student.model.named_parameters()  # shared ones once
        self.weights = {name: weight for name, weight in named if weight.requires_grad}

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype to compute in, where weights are wider now than the model had them."""
        return self._dtype if self._whole and self._dtype != torch.float32 else None

    def stepped(self) -> None:
        """Put zeros back where a step of whole weights has moved them."""
        with torch.no_grad():
            for weight, kept in self._kept.items():
                weight.mul_(kept)

    def finish(self, keep: bool) -> None:
        """Let nothing take gradients any more, and have the weights in the model's own dtype.

        Args:
            keep: whether low-rank additions become part of the model's weights, or are taken out again.
        """
        if self._peft is not None:
            self._peft.merge_and_unload(safe_merge=True) if keep else self._peft.unload()
            self._peft = None
        take_out(self._masked, keep)
        self._masked = []
        for weight in self._student.model.parameters():
            weight.data = weight.data.to(self._dtype)  # not buffers, whose dtype is their own: frequencies of positions
            weight.requires_grad_(False)
        self._student.model.eval()


def _projections_of(student: DenseModel) -> dict[str, nn.Module]:
    """Return every projection that a model still has, by its path."""
    family = student.layout.record
    return {
        f"{family.layers}.{index}.{path}": layer.get_submodule(path)
        for index, layer in enumerate(student.layers)
        for path in projections(family)
        if _is_projection(layer, path)
    }


def _with_additions(student: DenseModel, paths: list[str], rank: int, scale: float, seed: int) -> "PeftModel":
    """Return the model with additions to its projections."""
    from peft import LoraConfig, PeftModel, get_peft_model  # late, so that no other command waits for it

    settings = LoraConfig(
        r=rank,
        lora_alpha=scale * rank,  # type: ignore[arg-type]  # peft says int, and divides it by the rank
        target_modules=paths,
        fan_in_fan_out=student.layout.record.orientation == "in_out",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft, about tied weights, which are not touched
        torch.manual_seed(seed)
        made = get_peft_model(student.model, settings)
    assert isinstance(made, PeftModel)
    return made


def _is_projection(layer: nn.Module, path: str) -> bool:
    """Return whether a layer still has a projection: what stands for a removed one is of another kind."""
    try:
        return isinstance(layer.get_submodule(path), (nn.Linear, Conv1D))
    except AttributeError:
        return False


def activation_bytes(student: DenseModel, tokens: int) -> int:
    """Return roughly the memory that the activations of a step take."""
    layout = student.layout
    values = layout.layers * (_ACTIVATION_VALUES * layout.hidden_size + 3 * layout.mlp_width)
    return tokens * values * student.model.dtype.itemsize


@contextlib.contextmanager
def recomputing(student: DenseModel, tokens: int, wanted: bool | None) -> Iterator[None]:
    """Compute activations again in the backward pass instead of keeping them (gradient checkpointing).

    Args:
        student: the model.
        tokens: of a step.
        wanted: whether to; None where they would take more than half of the memory that is free.
    """
    if wanted is None:
        wanted = activation_bytes(student, tokens) > _LARGEST_SHARE * _free_bytes(student.model.device)
    if not wanted:
        yield
        return
    model: Any = student.model
    # The name until transformers 5.22, and from then on.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    enable()
    layers = list(student.layers)
    for layer in layers:
        layer.training = True  # the layer alone, which asks for it; what is in it goes on without dropout
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
        disable()


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
