"""A few steps of distillation before a measurement, the same for every architecture: what a model is worth recovered.

Which of two architectures is better may change when both are fine-tuned, and it is the recovered one that people run.
The steps learn the dense model's predictions on the calibration set, so they need no other text; low-rank additions are
trained beside the installed weights, and taken out again after the measurement.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evaluator.accuracy import divergence, make_reference
from evaluator.checkpoint import DenseModel
from evaluator.head import Head
from evaluator.recovery.parts import mean_loss
from evaluator.recovery.trainable import Trainable
from space import MeasurementError, SettingError

FORWARD_PASSES = 3  # of a step, its backward pass counting two

_CLIP = 1.0  # largest norm of a step's gradients
_WARMUP = 0.2  # share of the steps in which the learning rate rises


@dataclass(frozen=True, slots=True)
class ShortRecipe:
    """How a model is recovered before it is measured.

    Args:
        steps: to take.
        step_tokens: of a step.
        rank: of the low-rank additions.
        learning_rate: at its highest; it rises in a fifth of the steps and falls linearly to nothing.
        seed: of the order of the text and of the additions' start.

    Raises:
        SettingError: a number is out of range.
    """

    steps: int = 20
    step_tokens: int = 1024
    rank: int = 16
    learning_rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("step_tokens", 16), ("rank", 1)):
            if getattr(self, name) < least:
                raise SettingError(
                    f"{name} of a short recovery must be at least {least}, but is {getattr(self, name)}; raise it."
                )
        if self.learning_rate <= 0:
            raise SettingError(f"learning_rate of a recovery must be above 0, but is {self.learning_rate}; raise it.")

    def __str__(self) -> str:
        return (
            f"{self.steps} steps of {self.step_tokens} tokens, rank {self.rank}, rate {self.learning_rate:g}, "
            f"seed {self.seed}"
        )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, the first being 0."""
        rising = max(1, round(_WARMUP * self.steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        return self.learning_rate * (self.steps - step) / max(1, self.steps - rising + 1)

    @property
    def work(self) -> float:
        """What a recovery costs, in tokens through the decoder."""
        return float(FORWARD_PASSES * self.steps * self.step_tokens)


class ShortRecovery:
    """Recovers one architecture after the other, each from its own weights.

    Args:
        dense: the model, with nothing installed.
        tokens: (sequences, sequence_length) token ids to learn from.
        recipe: how.
    """

    def __init__(self, dense: DenseModel, tokens: Tensor, recipe: ShortRecipe) -> None:
        self._recipe = recipe
        sequences, length = tokens.shape
        together = min(sequences, max(1, recipe.step_tokens // length))
        wanted = recipe.steps * together
        rng = np.random.default_rng([recipe.seed, 47])
        turns = [rng.permutation(sequences) for _ in range(-(-wanted // sequences))]
        order = np.concatenate(turns)[:wanted]
        used = np.unique(order)  # only these need the dense model's predictions
        places = np.searchsorted(used, order)
        self._steps = torch.from_numpy(places).view(recipe.steps, together)
        self._reference = make_reference(dense, tokens[torch.from_numpy(used)])

    @contextlib.contextmanager
    def recovered(self, student: DenseModel) -> Iterator[None]:
        """Recover a model for a while; afterwards it is as it was.

        Args:
            student: the pruned model, of modules of its own.

        Raises:
            MeasurementError: a loss is not finite.
        """
        trainable = Trainable(student, self._recipe.rank, 2.0, self._recipe.seed)
        try:
            if trainable.weights:
                self._train(student, trainable)
            yield
        finally:
            trainable.finish(keep=False)

    def _train(self, student: DenseModel, trainable: Trainable) -> None:
        weights = list(trainable.weights.values())
        optimizer, head = torch.optim.AdamW(weights, weight_decay=0.0), Head(student)
        for number, chosen in enumerate(self._steps):
            for group in optimizer.param_groups:
                group["lr"] = self._recipe.rate(number)
            with torch.enable_grad():
                loss = self._loss(student, head, chosen)
                loss.backward()
            if not torch.isfinite(loss.detach()):
                raise MeasurementError(
                    f"The loss of a recovery must be finite, but is {float(loss.detach())} in step {number + 1}; lower "
                    "its learning rate."
                )
            torch.nn.utils.clip_grad_norm_(weights, _CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _loss(self, student: DenseModel, head: Head, chosen: Tensor) -> Tensor:
        """Return the mean divergence from the dense model on some sequences."""
        reference = self._reference
        predicted = reference.tokens.shape[1] - 1
        rows = (chosen[:, None] * predicted + torch.arange(predicted)).flatten().to(reference.ids.device)
        tokens = reference.tokens[chosen].to(student.model.device)
        hidden = student.decoder(tokens, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)

        def lost(states: Tensor, part: slice) -> Tensor:
            logits, own = head.traced(states.to(head.device)).float(), rows[part]
            pruned = logits.gather(1, reference.ids[own].long()) - logits.logsumexp(dim=-1, keepdim=True)
            return divergence(reference.logprobs[own], reference.rest[own], pruned).sum()

        return mean_loss(lost, hidden, head.weights, student.layout.vocabulary)
