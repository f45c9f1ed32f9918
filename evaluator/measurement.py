"""What was measured, and everything that the number depends on."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from evaluator.accuracy import TokenScores
from space import MeasurementError

# Neighbouring tokens are correlated; means of this many are nearly independent, so they carry the standard error.
BLOCK_TOKENS = 64

DIVERGENCE = "top 256 + 64 draws from the rest"
ESTIMATED_DIVERGENCE = f"{DIVERGENCE}, normalised by them"


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
    divergence: str = DIVERGENCE
    kernels: str = "eager"  # or compiled, which round less often
    recovery: str = "none"
    version: int = 3  # of the measuring code; raised when the same settings would give other numbers

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
    # Means over neighbouring tokens, the same ones for every architecture of a protocol: what `difference` pairs.
    nll_blocks: tuple[float, ...] = field(default=(), repr=False)
    kl_blocks: tuple[float, ...] = field(default=(), repr=False)

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood."""
        return math.exp(min(self.nll, 700.0))

    @property
    def perplexity_standard_error(self) -> float:
        """Standard error of the perplexity, to first order."""
        return self.perplexity * self.nll_standard_error

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, perplexity included, blocks left out."""
        return {
            "perplexity": self.perplexity,
            "perplexity_standard_error": self.perplexity_standard_error,
            **{name: value for name, value in asdict(self).items() if not name.endswith("_blocks")},
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
        nll_blocks, kl_blocks = _blocks(scores.nll, sequences), _blocks(scores.kl, sequences)
        nll, kl = float(scores.nll.double().mean()), float(scores.kl.double().mean())
        if not math.isfinite(nll + kl):
            raise MeasurementError(
                f"A measurement must be finite, but gave NLL {nll} and KL {kl}; measure in float32 (dtype: float32)."
            )
        return cls(
            nll=nll,
            nll_standard_error=_standard_error(nll_blocks),
            # Of a change that changes nothing, the estimate may come out a hair below 0, which no divergence is.
            kl=max(kl, 0.0),
            kl_standard_error=_standard_error(kl_blocks),
            agreement=float(scores.agreement.mean()),
            tokens=len(scores.nll),
            protocol=protocol.fingerprint,
            wall_seconds=wall_seconds,
            nll_blocks=tuple(nll_blocks.tolist()),
            kl_blocks=tuple(kl_blocks.tolist()),
        )


@dataclass(frozen=True, slots=True)
class Difference:
    """What one architecture measures less what another does on the same tokens, nats per token."""

    nll: float
    nll_standard_error: float
    kl: float
    kl_standard_error: float

    @property
    def perplexity_change(self) -> float:
        """Perplexity against the other's, less 1."""
        return math.expm1(self.nll)

    def to_dict(self) -> dict[str, float]:
        """Return plain values for JSON, the change of perplexity and its standard error included."""
        return {
            "perplexity_change": self.perplexity_change,
            "perplexity_change_standard_error": (1 + self.perplexity_change) * self.nll_standard_error,
            **asdict(self),
        }


def difference(mine: Measurement, other: Measurement, same_text: bool = False) -> Difference:
    """Compare two architectures token by token: what is hard for both cancels, so the error is the difference's own.

    Args:
        mine: measured under the same protocol as `other`.
        other: what to compare with.
        same_text: says that the protocols may differ, but not in their text: two criteria on one split.

    Raises:
        MeasurementError: the protocols differ.
    """
    if mine.protocol != other.protocol and not (same_text and mine.tokens == other.tokens):
        raise MeasurementError(
            f"Two measurements must be of one protocol to be compared, but are of {mine.protocol} and "
            f"{other.protocol}; measure both on the same text."
        )
    nll, kl = (
        torch.tensor(own) - torch.tensor(others)
        for own, others in ((mine.nll_blocks, other.nll_blocks), (mine.kl_blocks, other.kl_blocks))
    )
    return Difference(mine.nll - other.nll, _standard_error(nll), mine.kl - other.kl, _standard_error(kl))


def _blocks(values: Tensor, sequences: int) -> Tensor:
    """Return means over blocks of BLOCK_TOKENS or a little more, or the tokens where there is but one block."""
    per_sequence = values.double().view(sequences, -1)
    blocks = max(1, per_sequence.shape[1] // BLOCK_TOKENS)
    means = torch.stack([block.mean(dim=1) for block in per_sequence.tensor_split(blocks, dim=1)], dim=1).flatten()
    return (means if len(means) > 1 else per_sequence.flatten()).float()


def mean_with_error(values: Tensor, sequences: int) -> tuple[float, float]:
    """Return the mean of token values, of `sequences` sequences of equal length in order, and its standard error."""
    return float(values.double().mean()), _standard_error(_blocks(values, sequences))


def _standard_error(blocks: Tensor) -> float:
    return float(blocks.double().std() / math.sqrt(len(blocks)))
