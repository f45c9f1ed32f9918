"""What fine-tuning minimises: the loss on given tokens, the divergence from the dense model, or a mix of both.

| symbol | meaning |
| --- | --- |
| p, q | next-token distributions of the dense (teacher) and the pruned model (student), logits divided by T |
| share | of the loss that is T^2 KL(p || q); the rest is -log q[next token] at T = 1 |

The factor T^2 keeps the size of the gradients (Hinton et al., arXiv 1503.02531).
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from evaluator.checkpoint import DenseModel
from evaluator.head import Head
from evaluator.recovery.batches import Batch, batch_of, in_order
from evaluator.recovery.examples import Sample
from evaluator.recovery.parts import mean_loss
from space import SettingError


class Objective:
    """The loss of a student on batches.

    Args:
        student: the pruned model, in the form of a dense one.
        teacher: the dense model; needed where `share` is above 0.
        share: of the divergence from the teacher, 0..1.
        temperature: that both models' logits are divided by in the divergence.
        autocast: the dtype to compute in, where the weights have a wider one.

    Raises:
        SettingError: a number is out of range, or the teacher is missing.
    """

    def __init__(
        self,
        student: DenseModel,
        teacher: DenseModel | None = None,
        share: float = 0.0,
        temperature: float = 1.0,
        autocast: torch.dtype | None = None,
    ) -> None:
        if not 0 <= share <= 1:
            raise SettingError(f"The share of distillation must be within 0 and 1, but is {share}; change it.")
        if temperature <= 0:
            raise SettingError(f"The temperature of distillation must be above 0, but is {temperature}; change it.")
        if share and teacher is None:
            raise SettingError(f"Distillation learns from a dense model, but none is given beside a share of {share}.")
        self._student, self._teacher = student, teacher
        self._share, self._temperature = share, temperature
        self._autocast = autocast
        self._head, self._teachers_head = Head(student), Head(teacher or student)

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean loss of a batch's learned tokens, nats, with gradients where they are enabled."""
        taught = None
        if self._share and self._teacher is not None:
            with torch.no_grad():
                taught = _learned(self._teacher, batch)
        with self._computing():
            of = functools.partial(self._sum, batch.targets, taught)
            return mean_loss(of, _learned(self._student, batch), self._head.weights, self._student.layout.vocabulary)

    def _sum(self, targets: Tensor, taught: Tensor | None, hidden: Tensor, part: slice) -> Tensor:
        """Return the loss of some of a batch's learned tokens, summed, nats.

        Args:
            targets: (learned,) ids of all.
            taught: (learned, hidden) final hidden states of the teacher, of all.
            hidden: (part, hidden) those of the student.
            part: which they are.
        """
        logits = self._head.traced(hidden).float()
        loss = logits.new_zeros(())
        if self._share < 1:
            loss = (1 - self._share) * functional.cross_entropy(logits, targets[part], reduction="sum")
        if taught is not None:
            with torch.no_grad():
                dense = self._softened(self._teachers_head.traced(taught[part]).float()).to(logits.device)
            kl = functional.kl_div(self._softened(logits), dense, reduction="sum", log_target=True)
            loss = loss + self._share * self._temperature**2 * kl
        return loss

    def _softened(self, logits: Tensor) -> Tensor:
        return (logits / self._temperature).log_softmax(dim=-1)

    def mean(self, samples: Sequence[Sample], batch_tokens: int) -> float:
        """Return the mean loss over the learned tokens of samples, nats.

        Args:
            samples: what to measure on.
            batch_tokens: through the model at once.
        """
        total, count = 0.0, 0
        with torch.no_grad():
            for chosen in in_order(samples, batch_tokens):
                batch = batch_of([samples[index] for index in chosen]).to(self._student.model.device)
                learned = int(batch.learned.sum())
                total += learned * float(self.loss(batch))
                count += learned
        return total / count

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        if self._autocast is None:
            yield
        else:
            with torch.autocast(self._student.model.device.type, self._autocast):
                yield


def _learned(model: DenseModel, batch: Batch) -> Tensor:
    """Return the hidden states (learned, hidden) that predict a batch's learned tokens."""
    hidden: Tensor = model.decoder(batch.tokens, use_cache=False).last_hidden_state[:, :-1]
    return hidden[batch.learned.to(hidden.device)]
