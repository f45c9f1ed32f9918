"""Choosing: the first pairs, what a round measures, the winner."""

from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np

from evaluator import Pair, difference
from predictor import AdditivePrior, ResidualStream
from search.baselines import SMOOTH
from search.exact import column_scores, lowest_sums
from search.proposals import TOWARDS_ANCHOR, Score, averages, evolve, mutate, nearest, profiles, rounded
from search.settings import SearchConfig
from space import Architecture, Indices, SearchSpace, land, sample

_GUIDED_SWAPS = 16
_ANCHORS = 1  # smooth architectures that averages are drawn towards; the second best is far worse
_CONSENSUS = 4  # finalists whose mean may win
_DRAWS = 8  # for each average wanted: some come twice or were measured before


def prior_score(space: SearchSpace, prior: AdditivePrior, stream: ResidualStream | None = None) -> Score:
    """Return the additive prior as a score of encoded architectures, with what a stream says of layers together."""
    if stream is not None:
        return lambda indices: stream.expected(prior, space.genes(indices))
    return lambda indices: prior.terms(space.genes(indices)).sum(axis=1)


def first_pairs(
    space: SearchSpace,
    prior: AdditivePrior,
    baselines: Mapping[str, Architecture],
    settings: SearchConfig,
    seed: int,
    stream: ResidualStream | None = None,
    best: Sequence[Architecture] = (),
) -> dict[str, list[Architecture]]:
    """Return what the predictor is first fitted on, by origin.

    Four kinds, each seeing what the others do not: `guided` lies around the best measured, where there are any, else
    around the additive prior's optima, from very near to far, and comes first, so that a search that is cut short has
    something to show; `random` covers the budget surface and is the honest baseline of a search; `profile` varies
    smoothly with depth, the uniform baselines among them; `allocated` are the other baselines, as the space can have
    them.

    Args:
        space: the search space.
        prior: the additive prior.
        baselines: by name, see `search.baselines`.
        settings: how many of each.
        seed: of all draws.
        stream: how the dense model's residual stream moves; None leaves the prior as it is.
        best: measured architectures of the space, best first.
    """
    rngs = [np.random.default_rng([seed, stream]) for stream in (1, 2, 3, 6)]
    found = {}
    if settings.guided_pairs:
        near = space.encode(best)
        found["guided"] = _around_optima(space, prior, stream, settings.guided_pairs, rngs[2], near)
    found["random"] = sample(space, settings.random_pairs, rngs[0])
    if settings.profile_pairs:
        fixed = [nearest(space, baselines[name], rngs[1]) for name in SMOOTH if name in baselines]
        drawn = profiles(space, settings.profile_pairs, rngs[1])
        found["profile"] = np.concatenate([*fixed, drawn])[: settings.profile_pairs]
    if uneven := [each for name, each in baselines.items() if name not in ("dense", *SMOOTH)]:
        found["allocated"] = np.concatenate([nearest(space, each, rngs[3]) for each in uneven])
    known: set[str] = set()
    fresh = {}
    for origin, indices in found.items():
        fresh[origin] = [each for each in unique(space, indices) if each.fingerprint not in known]
        known |= {each.fingerprint for each in fresh[origin]}
    return fresh


def _around_optima(
    space: SearchSpace,
    prior: AdditivePrior,
    stream: ResidualStream | None,
    count: int,
    rng: np.random.Generator,
    near: Indices,
) -> Indices:
    best = evolve(space, prior_score(space, prior, stream), rng)
    # The sums alone have an exact optimum as well: what a search by additive scores would begin with.
    exact = islice(lowest_sums(space, column_scores(space, prior)), 1)
    moved = [best[:1], *exact][:count]
    centres = near if len(near) else best[: max(1, count // 2)]
    for index in range(len(moved), count):
        parent = centres[[index % len(centres)]]
        moved.append(mutate(space, parent, rng, most_swaps=1 + index * _GUIDED_SWAPS // count))
    return np.concatenate(moved)


def unique(space: SearchSpace, indices: Indices) -> list[Architecture]:
    """Return the distinct architectures in order of first appearance."""
    return list({architecture.fingerprint: architecture for architecture in space.decode(indices)}.values())


def averages_of(pairs: Sequence[Pair], space: SearchSpace, count: int, seed: Sequence[int]) -> list[Architecture]:
    """Return averages of the best measured that were not measured themselves, `count` of them where there are so many.

    Args:
        pairs: what was measured so far; those of origin `profile` are what averages are drawn towards.
        space: the search space.
        count: how many to return.
        seed: of the draws.
    """
    best = space.encode(lowest(pairs, space, len(pairs)))
    anchors = space.encode(lowest([pair for pair in pairs if pair.origin == "profile"], space, _ANCHORS))
    drawn = averages(space, best, anchors, _DRAWS * count, np.random.default_rng(seed))
    known = {pair.architecture.fingerprint for pair in pairs}
    return [each for each in unique(space, drawn) if each.fingerprint not in known][:count]


def finalists(pairs: Sequence[Pair], space: SearchSpace, count: int) -> list[Architecture]:
    """Return what is measured on new text: the best, up to half of them averages, a smooth one, the best of the rest.

    The best of all owes its rank most to the search text, what was found with less choosing owes it less.

    Args:
        pairs: measured on the search text.
        space: the search space.
        count: how many to return.
    """
    chosen: list[Architecture] = []
    for origin, most in ((None, 1), ("averaged", count // 2), ("profile", 1), (None, count)):
        known = {architecture.fingerprint for architecture in chosen}
        fresh = [p for p in pairs if origin in (None, p.origin) and p.architecture.fingerprint not in known]
        chosen += lowest(fresh, space, min(most, count - len(chosen)))
    return chosen


def consensus(pairs: Sequence[Pair], space: SearchSpace, seed: Sequence[int]) -> list[Architecture]:
    """Return the mean of the best, as it is and drawn towards the best smooth architecture.

    Of many near the optimum, which one a text puts first is chance; what the best have in common is not.

    Args:
        pairs: the finalists as measured on new text, smooth ones with origin `profile`.
        space: the search space.
        seed: of the last steps onto the budget.
    """
    best = space.encode(lowest(pairs, space, _CONSENSUS)).mean(axis=0)
    smooth = lowest([pair for pair in pairs if pair.origin == "profile"], space, 1)
    means = [(1 - weight) * best + weight * space.encode(smooth)[0] for weight in TOWARDS_ANCHOR] if smooth else [best]
    rows = np.concatenate([rounded(space, mean)[None] for mean in means])
    return unique(space, land(space, rows, np.random.default_rng(seed)))


def winner(pairs: Sequence[Pair], space: SearchSpace, shift: float) -> Architecture:
    """Return the architecture of lowest KL, or a smoother one that is not clearly worse.

    Of what lies within `shift` standard errors of the lowest, the difference taken block by block, that nearest to the
    smooth architecture wins: on other text than the measured one the smoother holds better.

    Args:
        pairs: measured on text that no search has seen, the smooth one with origin `profile`.
        space: the search space.
        shift: how much other text may differ, as in `predictor.shrinkage`; 0 takes the lowest.

    Source: the rule of one standard error, Breiman et al., Classification and Regression Trees (1984), section 3.4.3.
    """
    inside = {pair.architecture: pair for pair in pairs if space.allows(pair.architecture)}
    best = inside[lowest(pairs, space, 1)[0]]
    smooth = lowest([pair for pair in pairs if pair.origin == "profile"], space, 1)
    if not smooth:
        return best.architecture
    anchor = space.encode(smooth)[0].astype(float)

    def distance(pair: Pair) -> tuple[float, float, str]:
        away = np.abs(space.encode([pair.architecture])[0] - anchor).sum()
        return float(away), pair.measurement.kl, pair.architecture.fingerprint

    def close(pair: Pair) -> bool:
        found = difference(pair.measurement, best.measurement)
        return pair is best or found.kl <= shift * found.kl_standard_error

    return min(filter(close, inside.values()), key=distance).architecture


def lowest(pairs: Sequence[Pair], space: SearchSpace, count: int) -> list[Architecture]:
    """Return the architectures of lowest measured KL within the budgets and the space, best first."""
    ordered = sorted(pairs, key=lambda pair: (pair.measurement.kl, pair.architecture.fingerprint))
    inside = (pair.architecture for pair in ordered if space.allows(pair.architecture))
    return list(islice(inside, count))
