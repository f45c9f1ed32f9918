"""What was measured, and everything that the number depends on."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from evaluator.accuracy import TokenScores
from space import MeasurementError

# Neighbouring tokens are correlated; means of this many are nearly independent, so they carry the standard error.
BLOCK_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a measurement was made. Numbers of two protocols never meet in one fit."""

    weights_hash: str
    text: str  # fingerprint of the token ids scored
    text_source: str
    split: str
    tokens: int  # predicted tokens
    sequence_length: int
    criterion: str
    calibration: str  # fingerprint of the calibration set's token ids
    dtype: str
    divergence: str = "top 256 + 64 draws from the rest"
    recovery: str = "none"
    version: int = 2  # of the measuring code; raised when the same settings would give other numbers

    def to_json(self) -> str:
        """Return canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Measurement:
    """The quality of one architecture under one protocol; means over tokens with their standard errors."""

    nll: float  # nats per token
    nll_standard_error: float
    kl: float  # nats per token, dense against pruned
    kl_standard_error: float
    agreement: float  # 0..1
    tokens: int
    protocol: str  # fingerprint
    wall_seconds: float

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood."""
        return math.exp(min(self.nll, 700.0))

    @property
    def perplexity_standard_error(self) -> float:
        """Standard error of the perplexity, to first order."""
        return self.perplexity * self.nll_standard_error

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, perplexity included."""
        return {
            "perplexity": self.perplexity,
            "perplexity_standard_error": self.perplexity_standard_error,
            **asdict(self),
        }

    @classmethod
    def from_scores(cls, scores: TokenScores, sequences: int, protocol: Protocol, wall_seconds: float) -> Self:
        """Summarise token scores.

        Args:
            scores: of `sequences` sequences of equal length, in order.
            sequences: their number.
            protocol: how they came about.
            wall_seconds: time they took.

        Raises:
            MeasurementError: a score is not finite.
        """
        nll, nll_error = _mean_and_error(scores.nll, sequences)
        kl, kl_error = _mean_and_error(scores.kl, sequences)
        if not math.isfinite(nll + kl):
            raise MeasurementError(
                f"A measurement must be finite, but gave NLL {nll} and KL {kl}; measure in float32 (dtype: float32)."
            )
        agreement = float(scores.agreement.mean())
        # Of a change that changes nothing, the estimate may come out a hair below 0, which no divergence is.
        return cls(
            nll, nll_error, max(kl, 0.0), kl_error, agreement, len(scores.nll), protocol.fingerprint, wall_seconds
        )


def _mean_and_error(values: Tensor, sequences: int) -> tuple[float, float]:
    """Return the mean and its standard error by block means."""
    per_sequence = values.double().view(sequences, -1)
    blocks = max(1, per_sequence.shape[1] // BLOCK_TOKENS)
    means = torch.stack([block.mean(dim=1) for block in per_sequence.tensor_split(blocks, dim=1)], dim=1).flatten()
    means = means if len(means) > 1 else per_sequence.flatten()
    error = float(means.std() / math.sqrt(len(means)))
    return float(per_sequence.mean()), error
