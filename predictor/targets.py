"""What a predictor predicts: a measured quantity as a damage, which is 0 for the dense model and adds up over layers.

| target | damage | learned as |
| --- | --- | --- |
| `kl` (or any divergence) | the value | its logarithm |
| `nll` | value - dense | its logarithm |
| `perplexity` | log value - log dense | its logarithm |
| `accuracy` (or any score that is better when higher) | dense - value | it is |
| `latency` (or any cost) | log dense - log value, what is saved | it is |

A logarithm ranks architectures at the budget, whose damages differ by a few percent, and those far from it alike; where
chance makes damages negative, as a few hundred test items do, there is none.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from predictor.dataset import FloatArray
from space import PredictorError

FLOOR = 1e-6  # below every measurement's noise, above the logarithm's end
_KINDS = ("kl", "nll", "perplexity", "accuracy", "latency")
_LOGARITHMIC = ("kl", "nll", "perplexity")


@dataclass(frozen=True)
class Target:
    """A measured quantity.

    Args:
        kind: one of the table above; any divergence is "kl", any score "accuracy", any cost "latency".
        dense: what the dense model measures; 0 for "kl".
        name: what people call it; None takes the kind.

    Raises:
        PredictorError: the kind is unknown, or the dense value is none that it can have.
    """

    kind: str = "kl"
    dense: float = 0.0
    name: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise PredictorError(f"A target must be one of {', '.join(_KINDS)}, but is {self.kind!r}; choose one.")
        ratio = self.kind in ("perplexity", "latency")
        if not np.isfinite(self.dense) or (ratio and self.dense <= 0) or (self.kind == "kl" and self.dense != 0):
            rule = {"kl": "0", "nll": "finite", "accuracy": "finite"}.get(self.kind, "above 0")
            raise PredictorError(
                f"The dense model's {self.kind} must be {rule}, but is {self.dense}; give what it measures."
            )

    @property
    def title(self) -> str:
        """What people call it."""
        return self.name or self.kind

    @property
    def shown(self) -> str:
        """The same as it is written in a sentence."""
        return {"kl": "KL", "nll": "NLL"}.get(self.title, self.title)

    @property
    def logarithmic(self) -> bool:
        """Whether the logarithm of the damage is learned."""
        return self.kind in _LOGARITHMIC

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher value is a better one."""
        return self.kind == "accuracy"

    def damage(self, values: FloatArray) -> FloatArray:
        """Return the damages (n,) of measured values (n,)."""
        if self.kind == "perplexity":
            found = np.log(values / self.dense)
        elif self.kind == "latency":
            found = np.log(self.dense / values)
        else:
            found = self.dense - values if self.kind == "accuracy" else values - self.dense
        return np.maximum(found, 0.0) if self.logarithmic else np.asarray(found)

    def values(self, damage: FloatArray) -> FloatArray:
        """Return the values (n,) of damages (n,)."""
        if self.kind in ("perplexity", "latency"):
            return self.dense * np.exp(damage if self.kind == "perplexity" else -damage)
        return self.dense - damage if self.kind == "accuracy" else self.dense + damage

    def learned(self, damage: FloatArray) -> FloatArray:
        """Return what is learned of damages (n,): their logarithms, or they themselves."""
        return np.log(np.maximum(damage, FLOOR)) if self.logarithmic else damage

    def damage_of(self, learned: FloatArray) -> FloatArray:
        """Return the damages (n,) of what was predicted in the unit of `learned`."""
        return np.exp(learned) if self.logarithmic else learned

    def check(self, values: Sequence[float], fingerprints: Sequence[str]) -> None:
        """Check that measured values can be of this target.

        Raises:
            PredictorError: a value is not finite, or none that the target can have.
        """
        least = {"kl": 0.0, "nll": 0.0}.get(self.kind, -np.inf)
        for index, (value, fingerprint) in enumerate(zip(values, fingerprints, strict=True)):
            wrong = self.kind in ("perplexity", "latency") and value <= 0
            if not np.isfinite(value) or value < least or wrong:
                rule = {
                    "accuracy": "finite",
                    "kl": "a finite number of at least 0",
                    "nll": "a finite number of at least 0",
                }
                raise PredictorError(
                    f"A measured {self.kind} must be {rule.get(self.kind, 'a finite number above 0')}, but that of "
                    f"architecture {fingerprint} (pair {index}) is {value}; measure it again or leave it out."
                )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Rebuild a target from `to_dict`."""
        return cls(**values)
