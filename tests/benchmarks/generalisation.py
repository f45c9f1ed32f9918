"""How much of what the exact optimum of additive scores wins on its own text is left on other text.

    python -m tests.benchmarks.generalisation [--quick]

SmolLM2-135M at 80 % of the decoder's parameters: each sub-block alone as the benchmark `search` measured it (its kept
measurements, no model is run) on four sequences of 512 tokens, two of WikiText-2 training text and two of C4. The
optimum is found on three of them and judged on the fourth, by the same sums, against uniform pruning with whole ends;
four times. How the sequences are put together into a score is varied.

| figure | meaning |
| --- | --- |
| `won` | change of the sum from uniform with whole ends to the optimum, on the text that it was found on, by score |
| `held` | the same on the sequence that was left out |
| `best_possible` | of the optimum for the left-out sequence itself |
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from evaluator import Pair, PairStore
from predictor import AdditivePrior, expect_elsewhere
from search.baselines import fixed_allocations
from search.config import load_config
from search.exact import column_scores, lowest_sums
from space import SearchSpace, genes_of
from tests.benchmarks.record import arguments, finish, restore
from tests.space.layouts import SMOLLM2_135M

NAME, SEQUENCES = "widths_80", 4
Blocks = NDArray[np.float64]  # (architectures, sequences, blocks)


def arithmetic(blocks: Blocks) -> NDArray[np.float64]:
    """Return the mean over all tokens, what the search takes."""
    return blocks.mean(axis=(1, 2))


def geometric(blocks: Blocks) -> NDArray[np.float64]:
    """Return the geometric mean over sequences, so that none outweighs the others."""
    return np.exp(np.log(np.maximum(blocks.mean(axis=2), 1e-6)).mean(axis=1))


def cut_off(blocks: Blocks) -> NDArray[np.float64]:
    """Return the mean of blocks, none more than four times an architecture's median."""
    most = 4 * np.maximum(np.median(blocks, axis=(1, 2), keepdims=True), 1e-9)
    return np.minimum(blocks, most).mean(axis=(1, 2))


def one_sequence(blocks: Blocks) -> NDArray[np.float64]:
    """Return the mean over the first sequence alone."""
    return arithmetic(blocks[:, :1])


SCORES: dict[str, Callable[[Blocks], NDArray[np.float64]]] = {
    "arithmetic": arithmetic,
    "geometric": geometric,
    "cut_off": cut_off,
    "one_sequence": one_sequence,
}


def main() -> None:
    """Print and keep the figures."""
    options = arguments(__doc__ or "")
    pairs = measured_alone(options.seed)
    space = load_config(None, {"model": "smollm2-135m", "budget": "parameters=0.8"}).search_space(SMOLLM2_135M)
    blocks = np.array([np.reshape(pair.measurement.kl_blocks, (SEQUENCES, -1)) for pair in pairs])
    won: dict[str, list[float]] = {}
    held: dict[str, list[float]] = {}
    possible = []
    for left_out in range(1 if options.quick else SEQUENCES):
        own = np.roll(np.arange(SEQUENCES), -left_out)[1:]
        other = prior_of(pairs, arithmetic(blocks[:, [left_out]]))
        plain = prior_of(pairs, arithmetic(blocks[:, own]))
        priors = {name: prior_of(pairs, score(blocks[:, own])) for name, score in SCORES.items()}
        architectures = [pair.architecture for pair in pairs]
        priors["drawn_together"] = expect_elsewhere(plain, architectures, blocks[:, own].mean(axis=2), 1.0)
        for name, prior in priors.items():
            found = optimum(space, prior)
            won.setdefault(name, []).append(change(space, plain, found))
            held.setdefault(name, []).append(change(space, other, found))
        possible.append(change(space, other, optimum(space, other)))
    figures = {
        "won": {name: round(float(np.mean(values)), 4) for name, values in won.items()},
        "held": {name: round(float(np.mean(values)), 4) for name, values in held.items()},
        "best_possible": round(float(np.mean(possible)), 4),
    }
    finish("generalisation", figures, {"seed": options.seed, "won": won, "held": held}, options.quick)


def measured_alone(seed: int) -> list[Pair]:
    """Return the sub-blocks measured alone that the benchmark `search` keeps."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"{NAME}-{seed}" / "measurements.db"
        file.parent.mkdir()
        restore(file, "search", quick=False)
        store = PairStore(file)
        [key] = [key for key, protocol in store.protocols().items() if protocol.split == "search"]
        pairs = store.pairs(key, ["prior"])
        store.close()
    return pairs


def prior_of(pairs: list[Pair], values: NDArray[np.float64]) -> AdditivePrior:
    """Return the additive prior of sub-blocks alone (architectures,)."""
    damages = np.maximum(values, 0.0).tolist()
    return AdditivePrior.from_pairs(SMOLLM2_135M, [pair.architecture for pair in pairs], damages)


def optimum(space: SearchSpace, prior: AdditivePrior) -> NDArray[np.float64]:
    """Return the genes (1, layers, 4) of the lowest sum within the budget."""
    return space.genes(next(lowest_sums(space, column_scores(space, prior))))


def change(space: SearchSpace, prior: AdditivePrior, found: NDArray[np.float64]) -> float:
    """Return by what share a sum is above that of uniform pruning with whole ends."""
    ends = genes_of([fixed_allocations(space)["uniform_whole_ends"]])
    return float(prior.terms(found).sum() / prior.terms(ends).sum() - 1)


if __name__ == "__main__":
    main()
