"""What a step of fine-tuning learns from: samples of about one length, as many as a step has tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evaluator.recovery.examples import Sample

_WINDOW = 64  # samples of which those of one length come together, so that little is padded


@dataclass(frozen=True)
class Batch:
    """Samples beside each other, padded at the end: what follows a token does not change it."""

    tokens: Tensor  # (samples, longest) int64
    learned: Tensor  # (samples, longest - 1) bool: of each token but the first, whether it is predicted and learned

    @property
    def targets(self) -> Tensor:
        """The tokens to be learned (learned,), in order."""
        return self.tokens[:, 1:][self.learned]

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return Batch(self.tokens.to(device), self.learned.to(device))


def samples_of(tokens: Tensor) -> list[Sample]:
    """Return sequences (sequences, sequence_length) of plain text as samples, of which all but the first is learned."""
    return [Sample(tuple(row), 1) for row in tokens.tolist()]


def batch_of(samples: Sequence[Sample]) -> Batch:
    """Return samples as one batch.

    Args:
        samples: at least one, each with something to learn.
    """
    longest = max(len(sample.tokens) for sample in samples)
    tokens = torch.zeros(len(samples), longest, dtype=torch.int64)
    learned = torch.zeros(len(samples), longest - 1, dtype=torch.bool)
    for row, sample in enumerate(samples):
        tokens[row, : len(sample.tokens)] = torch.tensor(sample.tokens)
        learned[row, max(sample.first, 1) - 1 : len(sample.tokens) - 1] = True
    return Batch(tokens, learned)


def schedule(samples: Sequence[Sample], step_tokens: int, steps: int, seed: int) -> list[list[int]]:
    """Return which samples each step learns from: all in a random order before any comes again.

    Args:
        samples: what there is.
        step_tokens: of a step at most, padding included; one sample may have more.
        steps: to take.
        seed: of the order.
    """
    rng = np.random.default_rng([seed, 17])
    found: list[list[int]] = []
    while len(found) < steps:
        order = rng.permutation(len(samples)).tolist()
        for start in range(0, len(order), _WINDOW):
            batches = _filled(samples, order[start : start + _WINDOW], step_tokens)
            found += [batches[place] for place in rng.permutation(len(batches)).tolist()]
    return found[:steps]


def in_order(samples: Sequence[Sample], step_tokens: int) -> list[list[int]]:
    """Return batches of all samples, once, to measure on."""
    return _filled(samples, list(range(len(samples))), step_tokens)


def _filled(samples: Sequence[Sample], chosen: Sequence[int], step_tokens: int) -> list[list[int]]:
    """Return the chosen samples in batches by their lengths, the shortest first."""
    found: list[list[int]] = []
    for index in sorted(chosen, key=lambda each: (len(samples[each].tokens), each)):
        longest = len(samples[index].tokens)  # of those so far
        if not found or (len(found[-1]) + 1) * longest > step_tokens:
            found.append([])
        found[-1].append(index)
    return found
