"""Fine-tuning a pruned model for a few hundred steps: low-rank additions or all weights, while it helps.

    samples -> schedule -> [ batch -> loss -> AdamW ] x steps -> the best weights on held-out samples -> merged

Everything a step does follows from the recipe and its number, so that training that goes on from a checkpoint ends with
the weights that undisturbed training ends with.
"""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluator.checkpoint import DenseModel
from evaluator.recovery.batches import batch_of, schedule
from evaluator.recovery.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from evaluator.recovery.examples import Sample
from evaluator.recovery.objective import Objective
from evaluator.recovery.trainable import Trainable, recomputing
from space import MeasurementError, SettingError

_CLIP = 1.0  # largest norm of a step's gradients
_ADDITIONS_RATE, _WHOLE_RATE = 5e-4, 5e-5  # learning rates of low-rank additions and of whole weights

Progress = Callable[[int, str], None]  # steps, and what to say of them


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a pruned model is fine-tuned.

    Args:
        steps: at most.
        step_tokens: of a step, padding included.
        rank: of the low-rank additions; 0 trains all weights.
        scale: by which additions are multiplied.
        learning_rate: at its highest; None takes what suits the rank.
        warmup: share of the steps in which the learning rate rises; then it falls by a cosine to a tenth.
        weight_decay: of AdamW.
        distillation: share of the loss that is the divergence from the dense model, 0..1.
        temperature: of that divergence.
        evaluate_every: steps between looks at the held-out samples.
        patience: looks without improvement after which to stop; 0 never stops early.
        checkpoint_every: steps between checkpoints.
        recompute: whether activations are computed again in the backward pass; None where memory is short.
        seed: of the order and of the additions' start.

    Raises:
        SettingError: a number is out of range.
    """

    steps: int = 400
    step_tokens: int = 1024
    rank: int = 16
    scale: float = 2.0
    learning_rate: float | None = None
    warmup: float = 0.05
    weight_decay: float = 0.0
    distillation: float = 0.0
    temperature: float = 1.0
    evaluate_every: int = 50
    patience: int = 3
    checkpoint_every: int = 20
    recompute: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, good, rule in (
            ("steps", self.steps >= 1, "at least 1"),
            ("step_tokens", self.step_tokens >= 8, "at least 8"),
            ("rank", self.rank >= 0, "at least 0"),
            ("scale", self.scale > 0, "above 0"),
            ("learning_rate", self.learning_rate is None or self.learning_rate > 0, "above 0"),
            ("warmup", 0 <= self.warmup < 1, "at least 0 and below 1"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("distillation", 0 <= self.distillation <= 1, "within 0 and 1"),
            ("temperature", self.temperature > 0, "above 0"),
            ("evaluate_every", self.evaluate_every >= 1, "at least 1"),
            ("patience", self.patience >= 0, "at least 0"),
            ("checkpoint_every", self.checkpoint_every >= 1, "at least 1"),
        ):
            if not good:
                raise SettingError(f"{name} of a recovery must be {rule}, but is {getattr(self, name)}; change it.")

    @property
    def highest_rate(self) -> float:
        """The learning rate at its highest, the one that None stands for included."""
        return self.learning_rate or (_ADDITIONS_RATE if self.rank else _WHOLE_RATE)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, the first being 0."""
        highest = self.highest_rate
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return highest * (step + 1) / rising
        done = (step - rising) / max(1, self.steps - rising)
        return highest * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "learning_rate": self.highest_rate}


@dataclass(frozen=True)
class Recovery:
    """What a fine-tuning did.

    Args:
        steps: taken.
        best_step: of which the weights are.
        learned_tokens: on which there was a loss.
        tokens: through the student in training, forward.
        losses: of each step, nats a token.
        looks: (step, loss) of each look at the held-out samples.
        seconds: of all processes that were at it.
    """

    steps: int
    best_step: int
    learned_tokens: int
    tokens: int
    losses: tuple[float, ...] = field(repr=False)
    looks: tuple[tuple[int, float], ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "losses": [round(loss, 5) for loss in self.losses]}


def fine_tune(
    student: DenseModel,
    samples: Sequence[Sample],
    held_out: Sequence[Sample],
    recipe: Recipe,
    teacher: DenseModel | None = None,
    folder: Path | None = None,
    progress: Progress = lambda _steps, _note: None,
) -> Recovery:
    """Fine-tune a pruned model in place.

    Args:
        student: the pruned model, in the form of a dense one.
        samples: to learn from.
        held_out: to stop by and to choose the best weights by; none takes the last weights.
        recipe: how.
        teacher: the dense model, where the recipe distils.
        folder: where a checkpoint is kept, from which the same training goes on; None keeps none.
        progress: told the steps done and the loss.

    Raises:
        SettingError: the recipe needs a teacher, or there is nothing to learn from.
        MeasurementError: a loss is not finite.
    """
    if not samples:
        raise SettingError("A recovery must have samples to learn from, but has none; give more or shorter ones.")
    training = _Training(student, samples, held_out, recipe, teacher, folder)
    done = False
    try:
        with recomputing(student, recipe.step_tokens, recipe.recompute):
            training.run(progress)
        done = True
    finally:
        training.trainable.finish(keep=done)
    return training.result()


class _Training:
    """A fine-tuning at work."""

    def __init__(
        self,
        student: DenseModel,
        samples: Sequence[Sample],
        held_out: Sequence[Sample],
        recipe: Recipe,
        teacher: DenseModel | None,
        folder: Path | None,
    ) -> None:
        self._student, self._samples, self._held_out, self._recipe = student, samples, held_out, recipe
        key = _key(student, samples, held_out, recipe)  # of the weights as they are before anything is added to them
        self._file = folder / f"{key}.safetensors" if folder else None
        self._batches = schedule(samples, recipe.step_tokens, recipe.steps, recipe.seed)
        aims = student, teacher, recipe.distillation, recipe.temperature
        Objective(*aims)  # refuses before the model is changed
        self.trainable = Trainable(student, recipe.rank, recipe.scale, recipe.seed)
        if not self.trainable.weights:
            raise SettingError(f"A model must have a projection to train, but {student.name} has none left; keep some.")
        self._objective = Objective(*aims, self.trainable.autocast)
        self._optimizer = torch.optim.AdamW(self.trainable.weights.values(), weight_decay=recipe.weight_decay)
        self._state = Checkpoint()
        self._best: dict[str, Tensor] = {}

    def run(self, progress: Progress) -> None:
        """Take the steps that are missing and leave the best weights in the student."""
        recipe = self._recipe
        if self._file is not None and self._file.exists():
            self._state, self._best = load_checkpoint(self._file, self.trainable.weights, self._optimizer)
            progress(self._state.step, "")
        before, started = self._state.seconds, time.perf_counter()
        while self._state.step < recipe.steps and not self._hopeless():
            loss = self._step(self._state.step)
            self._state.losses.append(loss)
            self._state.step += 1
            step = self._state.step
            if self._held_out and (step % recipe.evaluate_every == 0 or step == recipe.steps):
                self._look(step)
            self._state.seconds = before + time.perf_counter() - started
            if self._file is not None and (step % recipe.checkpoint_every == 0 or step == recipe.steps):
                save_checkpoint(self._file, self._state, self.trainable.weights, self._optimizer, self._best)
            progress(1, f"loss {loss:.3f}")
        if self._best:
            _place(self.trainable.weights, self._best)

    def _step(self, number: int) -> float:
        """Take a step; return its loss."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.rate(number)
        batch = batch_of([self._samples[index] for index in self._batches[number]])
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(self._recipe.seed + number)  # of a family's dropout, where there is any
            loss = self._objective.loss(batch.to(self._student.model.device))
            loss.backward()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise MeasurementError(
                f"The loss of a recovery must be finite, but is {value} in step {number + 1}; lower the learning rate."
            )
        torch.nn.utils.clip_grad_norm_(self.trainable.weights.values(), _CLIP)
        self._optimizer.step()
        self.trainable.stepped()
        self._optimizer.zero_grad(set_to_none=True)
        return value

    def _look(self, step: int) -> None:
        """Measure the held-out samples and keep the weights if they are the best so far."""
        loss = self._objective.mean(self._held_out, self._recipe.step_tokens)
        if loss < min((each for _, each in self._state.looks), default=math.inf):
            self._best = {name: weight.detach().clone() for name, weight in self.trainable.weights.items()}
        self._state.looks.append((step, loss))

    def _hopeless(self) -> bool:
        """Return whether the last looks, as many as patience lasts, brought nothing."""
        losses, patience = [loss for _, loss in self._state.looks], self._recipe.patience
        return bool(patience) and len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])

    def result(self) -> Recovery:
        """Return what was done."""
        state = self._state
        best = min(state.looks, key=lambda look: look[1])[0] if state.looks else state.step
        done = [[self._samples[index] for index in own] for own in self._batches[: state.step]]
        return Recovery(
            steps=state.step,
            best_step=best,
            learned_tokens=sum(len(each.tokens) - max(each.first, 1) for own in done for each in own),
            tokens=sum(len(own) * max(len(each.tokens) for each in own) for own in done),
            losses=tuple(state.losses),
            looks=tuple(state.looks),
            seconds=state.seconds,
        )


def _place(weights: dict[str, torch.nn.Parameter], values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(values[name])


def _key(student: DenseModel, samples: Sequence[Sample], held_out: Sequence[Sample], recipe: Recipe) -> str:
    """Return what names a checkpoint: all that the weights after a step depend on."""
    digest = hashlib.sha256(f"{student.weights_hash} {student.dtype} {recipe.to_dict()}".encode())
    for sample in (*samples, *held_out):
        digest.update(f"{sample.first} {sample.tokens}".encode())
    return digest.hexdigest()[:16]
