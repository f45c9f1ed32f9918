"""Who measures: this process, or others that it asks. Either way this process claims, keeps and gives back."""

import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Protocol

from evaluator import measurement
from evaluator.claims import FORGOTTEN_SECONDS
from evaluator.measurement import Measurement
from evaluator.store import PairStore
from space import Architecture, SecateurError

if TYPE_CHECKING:
    from evaluator.evaluator import Evaluator

# After which claims are made again, lest other machines take them for forgotten.
_RENEW_SECONDS = FORGOTTEN_SECONDS / 10


class Engine(Protocol):
    """Measures what an evaluator would measure, on other machines or in other processes."""

    def measure(
        self, judge: "Evaluator", architectures: Iterable[Architecture], split: str
    ) -> Generator[tuple[Architecture, Measurement] | None, None, None]:
        """Measure architectures.

        Args:
            judge: whose model, texts, statistics and criterion it is measured by.
            architectures: taken one by one, as there is room for more.
            split: the text to measure on.

        Yields:
            What was measured, in the order in which it was finished; nothing is held back. None from time to time when
            nothing is finished.
        """
        ...

    def forget(self) -> None:
        """Take back what was brought to other machines."""

    def close(self) -> None:
        """Let them go."""


def spread(
    engine: Engine,
    judge: "Evaluator",
    architectures: Iterable[Architecture],
    split: str,
    protocol: measurement.Protocol,
    origin: str,
) -> Generator[tuple[Architecture, Measurement | None], None, None]:
    """Yield measurements in the store, and those that an engine makes, each kept before it is told.

    Args:
        engine: measures what is not in the store.
        judge: the evaluator that asks.
        architectures: to measure.
        split: the text to measure on.
        protocol: of that.
        origin: why, kept with the pair.

    Yields:
        Each architecture, with no measurement where another process measures it at this moment.
    """
    store = judge.store
    claimed: set[Architecture] = set()
    told: list[tuple[Architecture, Measurement | None]] = []  # of what the engine is not asked for

    def wanted() -> Iterator[Architecture]:
        for architecture in architectures:
            known = store.find(architecture, protocol)
            if known is None and store.claim(architecture, protocol):
                claimed.add(architecture)
                # Between the look and the claim another process may have finished.
                known = store.find(architecture, protocol)
                if known is None:
                    yield architecture
                    continue
                _release(store, claimed, architecture, protocol)
            told.append((architecture, known))

    renewed = time.monotonic()
    try:
        with closing(engine.measure(judge, wanted(), split)) as results:
            for found in results:
                if time.monotonic() - renewed > _RENEW_SECONDS:
                    renewed = time.monotonic()
                    for architecture in claimed:
                        store.claim(architecture, protocol)
                if found is not None:
                    architecture, measured = found
                    store.add(architecture, measured, protocol, origin)
                    _release(store, claimed, architecture, protocol)
                    judge.measured += 1
                    yield architecture, measured
                while told:
                    yield told.pop()
        yield from told
    finally:
        with suppress(SecateurError):  # of a database that is gone: claims end by themselves, and what stopped is told
            for architecture in list(claimed):
                _release(store, claimed, architecture, protocol)


def _release(
    store: PairStore, claimed: set[Architecture], architecture: Architecture, protocol: measurement.Protocol
) -> None:
    store.release(architecture, protocol)
    claimed.discard(architecture)
