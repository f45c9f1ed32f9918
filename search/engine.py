"""Where a run measures: in its own process, or on the workers of a Dask scheduler."""

from collections.abc import Iterator
from contextlib import contextmanager

from evaluator import Engine
from search.config import RunConfig


@contextmanager
def open_engine(config: RunConfig) -> Iterator[Engine | None]:
    """Yield what a run measures by for a while; None is the run's own process.

    Raises:
        SettingError: it is not installed.
        EngineError: its machines cannot be reached.
    """
    if config.engine == "local":
        yield None
        return
    from evaluator.dask_engine import DaskEngine  # late: Dask is an extra

    assert config.address is not None  # or the settings are refused
    engine = DaskEngine(config.address)
    try:
        yield engine
    finally:
        engine.close()
