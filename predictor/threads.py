"""One thread for all numerics: pairs are few, so more threads cost more than they bring, and sums keep their order."""

import contextlib
import functools
from collections.abc import Iterator

from threadpoolctl import ThreadpoolController


@functools.cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # looking for the libraries takes milliseconds, so once


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let numpy's and scikit-learn's libraries use one thread for a while."""
    with _controller().limit(limits=1):
        yield
