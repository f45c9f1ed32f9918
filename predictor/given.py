"""What a predictor is given besides architectures: checked, and turned into features."""

from collections.abc import Sequence

import numpy as np

from predictor.dataset import FloatArray
from predictor.expansion import Expansion, Surroundings
from predictor.features import features
from predictor.prior import AdditivePrior
from predictor.stream import ResidualStream
from predictor.targets import Target
from space import Architecture, Layout, PredictorError


def seen(
    prior: AdditivePrior,
    around: Surroundings | None,
    target: Target,
    genes: FloatArray,
    few_tokens: FloatArray | None,
    stream: ResidualStream | None = None,
) -> FloatArray:
    """Return the features of architectures (architectures, layers, genes)."""
    choices = prior.choices(genes)
    terms = prior.terms_of(choices)
    expanded = None if around is None else around.of(choices, terms)
    joint = None if stream is None else stream.joint(terms, choices.removed_layers)
    return features(terms, target.logarithmic, few_tokens, expanded, joint)


def check_expansions(expansions: Sequence[Expansion], layout: Layout, target: Target) -> None:
    """Refuse expansions of another model, or where the target has none."""
    if expansions and not target.logarithmic:
        raise PredictorError(
            f"Expansions must be of a target that is learned by its logarithm, but this one is {target.title} "
            f"({target.kind}); leave them out."
        )
    for each in expansions:
        if each.layout != layout:
            raise PredictorError(
                "Expansions must be of the predictor's model, but one is of another; take its slopes on this model."
            )


def one_protocol(protocol: str | Sequence[str]) -> str:
    """Return the protocol that all pairs share, or refuse them."""
    if isinstance(protocol, str):
        return protocol
    found = sorted(set(protocol))
    if len(found) != 1:
        raise PredictorError(
            f"The pairs of a predictor must be of one protocol, but are of {len(found)} ({', '.join(found)}); "
            "fit one predictor for each."
        )
    return found[0]


def by_fingerprint(architectures: Sequence[Architecture], few: Sequence[float] | None) -> dict[str, float] | None:
    """Return what each architecture measured on few tokens, by its fingerprint."""
    if few is None:
        return None
    if len(few) != len(architectures):
        raise PredictorError(
            f"Each architecture must come with one measurement on few tokens, but there are {len(architectures)} "
            f"architectures and {len(few)} measurements; give one for each."
        )
    return {each.fingerprint: float(value) for each, value in zip(architectures, few, strict=True)}


def few_damages(target: Target, values: Sequence[float]) -> FloatArray:
    """Return measurements on few tokens (n,) in the unit of what is learned."""
    found = np.asarray(values, dtype=np.float64)
    if not np.isfinite(found).all():
        raise PredictorError(
            f"A measurement on few tokens must be finite, but one of {len(found)} is not; measure it again."
        )
    return target.learned(target.damage(found))
