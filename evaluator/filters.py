"""Which units of text are good enough to calibrate on: a unit is a document of the model's own, or a packed sequence.

Each filter looks at what the ones before it left: exact duplicates, near ones, other languages, and last the units that
the model itself finds least likely, by rank, so that a known share is dropped.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from evaluator.accuracy import unit_losses
from evaluator.checkpoint import DenseModel
from space import SettingError

_SHINGLE = 5  # tokens in a row that two units share where they are alike
_PERMUTATIONS = 128  # of a MinHash: its estimate of the Jaccard similarity errs by 0.04 at 0.7


@dataclass(frozen=True, slots=True)
class Filters:
    """What to leave out.

    Args:
        perplexity: share of the units that is dropped, those of the highest perplexity under the dense model; 0 for
            none. The paper's is 0.2.
        duplicates: whether a unit that came before is left out.
        near: Jaccard similarity of 5-grams of tokens from which on a unit counts as seen before; None for none.
        language: ISO 639-1 code that units must be in; None for any.
        shortest: tokens that a document of a given text must have.

    Raises:
        SettingError: a number is out of range.

    Source: arXiv 2410.17711, section 4, for perplexity; arXiv 2107.06499 for duplicates.
    """

    perplexity: float = 0.0
    duplicates: bool = True
    near: float | None = None
    language: str | None = None
    shortest: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.perplexity < 1:
            raise SettingError(f"A share of 0 to below 1 can be dropped by perplexity, but it is {self.perplexity}.")
        if self.near is not None and not 0 < self.near < 1:
            raise SettingError(f"near must be a Jaccard similarity between 0 and 1, but is {self.near}; change it.")
        if self.shortest < 0:
            raise SettingError(f"shortest must be at least 0 tokens, but is {self.shortest}; change it.")

    def needed(self, count: int) -> int:
        """Return the units, all others filtered, of which `count` are left by perplexity."""
        return int(np.ceil(round(count / (1 - self.perplexity), 6)))


class Sieve:
    """Remembers what it has seen, so that units may come in several batches.

    Args:
        dense: whose tokenizer decodes, and which judges.
        filters: what to leave out.

    Raises:
        SettingError: a library for a filter is not installed, or does not know the language.
    """

    def __init__(self, dense: DenseModel, filters: Filters) -> None:
        self._dense = dense
        self._filters = filters
        self._seen: set[bytes] = set()
        self._index = _near_index(filters.near) if filters.near is not None else None
        self._classify = _classifier(filters.language) if filters.language is not None else None
        self.dropped = {"duplicates": 0, "near_duplicates": 0, "language": 0, "perplexity": 0}

    def pass_on(self, units: Tensor) -> Tensor:
        """Return those units (n, size) that are neither seen before nor in another language, in order."""
        return units[[self._is_new(unit) and self._is_spoken(unit) for unit in units]]

    def _is_new(self, unit: Tensor) -> bool:
        key = unit.numpy().tobytes()
        if self._filters.duplicates and key in self._seen:
            self.dropped["duplicates"] += 1
            return False
        self._seen.add(key)
        if self._index is not None and not self._index(unit):
            self.dropped["near_duplicates"] += 1
            return False
        return True

    def _is_spoken(self, unit: Tensor) -> bool:
        if self._classify is None:
            return True
        text = str(self._dense.tokenizer.decode(unit, skip_special_tokens=True))
        if self._classify(text) == self._filters.language:
            return True
        self.dropped["language"] += 1
        return False

    def likeliest(self, units: Tensor, count: int, progress: Callable[[int], None] = lambda _: None) -> Tensor:
        """Return the `count` units (count, size) of the lowest perplexity, in the order in which they came.

        Args:
            units: (n, size), at least as many.
            count: of those that stay.
            progress: told the tokens that were judged.
        """
        if not self._filters.perplexity:
            return units[:count]
        losses = unit_losses(self._dense, units, progress)
        self.dropped["perplexity"] += len(units) - count
        return units[losses.argsort(stable=True)[:count].sort().values]


def _near_index(threshold: float) -> Callable[[Tensor], bool]:
    """Return what says of a unit that none of those before is near it."""
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError:
        raise SettingError(
            "Near duplicates are found with the package `datasketch`, which is not installed; pip install "
            "'secateur[filters]', or leave near_duplicates out."
        ) from None
    index = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
    hashes: list[MinHash] = []

    def is_new(unit: Tensor) -> bool:
        own = MinHash(num_perm=_PERMUTATIONS, seed=1)
        own.update_batch({bytes(row) for row in unit.unfold(0, min(_SHINGLE, len(unit)), 1).contiguous().numpy()})
        # The index finds candidates; what they are is decided by the estimate itself.
        if any(hashes[near].jaccard(own) >= threshold for near in index.query(own)):
            return False
        index.insert(len(hashes), own)
        hashes.append(own)
        return True

    return is_new


def _classifier(language: str) -> Callable[[str], str]:
    """Return what says in which language a text is, of all that are known.

    Raises:
        SettingError: the library is not installed, or does not know the language that is asked for.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise SettingError(
            "Languages are told apart with the package `py3langid`, which is not installed; pip install "
            "'secateur[filters]', or leave language out."
        ) from None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    known = sorted(map(str, identifier.nb_classes))
    if language not in known:
        raise SettingError(f"language must be one of {', '.join(known)}, but is {language!r}; choose one.")

    def classify(text: str) -> str:
        return str(identifier.classify(text)[0])

    return classify
