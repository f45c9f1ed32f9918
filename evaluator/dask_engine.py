"""Measuring on the workers of a Dask scheduler.

Workers need no access to the store or to this machine's files: what they measure by is brought to them once, see
`evaluator.room`, and each result comes back and is let go as soon as it is there. A worker that dies costs the
measurement that it was at, which Dask gives to another; one that comes later, or again, is furnished when it first
says that it has no room.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from evaluator import room
from evaluator.measurement import Measurement
from space import Architecture, EngineError, SecateurError, SettingError

if TYPE_CHECKING:
    from distributed import Client, Future

    from evaluator.evaluator import Evaluator

_CONNECT_SECONDS = 10.0
_FIRST_WORKER_SECONDS = 60.0
_LOST_SECONDS = 600.0  # without any worker, after which a run does not wait for another
_POLL_SECONDS = 10.0  # after which one says that nothing is finished yet
_EACH = 2  # measurements that a worker has been given: one to do and one to go on with
_MOST_TRIES = 2  # times that Dask may give an architecture up, each after some workers died of it


class DaskEngine:
    """Measures on the workers of a scheduler.

    Args:
        address: of the scheduler, as in `tcp://10.0.0.1:8786`, or the file that it wrote. What else Dask needs to know,
            as certificates for `tls://`, is in its own configuration.

    Raises:
        SettingError: Dask is not installed.
        EngineError: there is no scheduler, or it has no workers.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._client = _connect(address)
        self._room: tuple[Evaluator, room.Room] | None = None
        self._brought = False
        try:
            self._wait_for_workers()
        except BaseException:
            self.close()
            raise

    def measure(
        self, judge: "Evaluator", architectures: Iterable[Architecture], split: str
    ) -> Generator[tuple[Architecture, Measurement] | None, None, None]:
        """Measure architectures; see `evaluator.engine.Engine`.

        Raises:
            EngineError: a worker is not what it should be, or none is left.
            SecateurError: what a worker found that measuring would find here as well.
        """
        running: dict[Future[Any], Architecture] = {}
        again: list[Architecture] = []
        tries: Counter[Architecture] = Counter()
        waiting, protocol = iter(architectures), judge.protocol(split).to_json()
        try:
            while True:
                free = max(0, _EACH * self._workers() - len(running))
                for architecture in islice(chain(_taken(again), waiting), free):
                    key = self._furnished(judge)
                    running[self._submit(key, architecture.to_json(), split, protocol)] = architecture
                if not running and not again and (first := next(waiting, None)) is not None:
                    again.append(first)  # while there are no workers
                if not running and not again:
                    return
                done = self._done(list(running))
                if not done:
                    yield None
                for future in done:
                    architecture = running.pop(future)
                    found = self._result(future, architecture, tries)
                    if found is None:
                        again.append(architecture)
                    else:
                        yield architecture, found
        finally:
            if running:
                with suppress(Exception):  # a scheduler that is gone has nothing to cancel
                    self._client.cancel(list(running), force=True)

    def _submit(self, *arguments: str) -> "Future[Any]":
        # Not pure: the same may be asked again after a worker said that it has no room.
        return self._client.submit(room.measure, *arguments, pure=False)

    def _workers(self) -> int:
        """Return how many workers there are now."""
        with _as_engine_error(self.address):
            count = len(self._client.nthreads())
        if count:
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > _LOST_SECONDS:
            raise EngineError(
                f"A Dask scheduler must have workers, but {self.address} has had none for {_LOST_SECONDS:.0f} seconds; "
                "start some and repeat the command, it goes on from here."
            )
        return count

    def _wait_for_workers(self) -> None:
        self._seen = time.monotonic()
        try:
            self._client.wait_for_workers(1, timeout=_FIRST_WORKER_SECONDS)
        except TimeoutError:
            raise EngineError(
                f"A Dask scheduler must have workers, but {self.address} has none; start some, as in "
                f"`dask worker {self.address} --nworkers 2 --nthreads 1`."
            ) from None

    def _done(self, running: "list[Future[Any]]") -> "list[Future[Any]]":
        """Return what is finished, after a while if nothing is."""
        from distributed import wait

        if not running:
            time.sleep(1.0)
            return []
        with suppress(TimeoutError), self._client.as_current():
            wait(running, timeout=_POLL_SECONDS, return_when="FIRST_COMPLETED")
        return [future for future in running if future.done()]

    def _result(
        self, future: "Future[Any]", architecture: Architecture, tries: Counter[Architecture]
    ) -> Measurement | None:
        """Return what a worker measured; None where it is to be asked for again."""
        from distributed import KilledWorker

        try:
            found = cast("dict[str, Any] | None", future.result())
        except SecateurError:
            raise
        except KilledWorker as error:
            tries[architecture] += 1
            if tries[architecture] < _MOST_TRIES:
                return None
            raise EngineError(
                f"A worker must outlive a measurement, but several died at {architecture.fingerprint} "
                f"({str(error).splitlines()[0]}); give them more memory and repeat the command, it goes on from here."
            ) from None
        except Exception as error:
            raise _explained(self.address, error) from error
        finally:
            future.release()
        if found is None:
            self._brought = False  # before the next is asked for
            return None
        return Measurement(**{**found, **{name: tuple(found[name]) for name in ("nll_blocks", "kl_blocks")}})

    def _furnished(self, judge: "Evaluator") -> str:
        """Return the key of an evaluator's room, after every machine has it."""
        if self._room is None or self._room[0] is not judge:
            self._room, self._brought = (judge, room.Room.of(judge)), False
        described = self._room[1]
        while not self._brought:
            self._brought = not self._bring(described)
        return described.key

    def _bring(self, described: room.Room) -> bool:
        """Bring a room's files to a worker of each machine that lacks some; return whether one did."""
        lacking = self._run(room.lacking, described.key, described.names, room.conditions())
        # Workers of a machine share a room, so that one of them is given it.
        receivers = {address.rpartition(":")[0]: address for address, names in lacking.items() if names}.values()
        for name in described.names:
            some = [address for address in receivers if name in lacking[address]]
            if some:
                self._run(room.furnish, described.key, name, described.content(name), workers=some)
        return bool(receivers)

    def _run(self, function: Callable[..., Any], *arguments: Any, workers: list[str] | None = None) -> dict[str, Any]:
        """Return what a function returns on workers; of one that dies meanwhile, nothing."""
        with _as_engine_error(self.address):
            found = self._client.run(function, *arguments, workers=workers, on_error="return")
        for result in found.values():
            if isinstance(result, SecateurError):
                raise result
            if isinstance(result, Exception) and not _is_of_connections(result):
                raise _explained(self.address, result) from result
        return {address: result for address, result in found.items() if not isinstance(result, Exception)}

    def forget(self) -> None:
        """Remove what was brought to the workers; a run that is finished needs it no more."""
        if self._room is not None:
            with suppress(Exception):  # it is removed some other day
                self._run(room.forget, self._room[1].key)

    def close(self) -> None:
        """Let the scheduler go."""
        with suppress(Exception):  # it is gone already
            self._client.close()


def _connect(address: str) -> "Client":
    try:
        from distributed import Client, Security
    except ImportError:
        raise SettingError(
            "engine: dask needs Dask's distributed, which is not installed; pip install 'secateur[distributed]'."
        ) from None
    # What it has to say of connections that break is said here, once and in a sentence.
    for name in ("distributed", "distributed.client", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    place = {"address": address} if "://" in address else {"scheduler_file": address}
    if "scheduler_file" in place and not Path(address).is_file():
        raise EngineError(
            "A Dask scheduler must be given by its address, as in tcp://10.0.0.1:8786, or by the file that it wrote, "
            f"but {address!r} is neither; see where `dask scheduler` says that it listens."
        )
    if address.startswith("tls://") and Security().get_connection_args("client").get("ssl_context") is None:
        raise EngineError(
            f"A Dask scheduler of tls:// must be shown a certificate, but Dask's configuration has none for {address}; "
            "set distributed.comm.tls there, with ca-file, client.cert and client.key."
        )
    try:
        return Client(**place, timeout=_CONNECT_SECONDS, set_as_default=False, name="secateur")
    except Exception as error:
        raise EngineError(
            f"A Dask scheduler must be within reach, but {address} is not ({_first_line(error)}); start one with "
            "`dask scheduler`, or correct --address."
        ) from error


@contextmanager
def _as_engine_error(address: str) -> Iterator[None]:
    """Say of whatever Dask raises that its scheduler is not there any more."""
    try:
        yield
    except SecateurError:
        raise
    except Exception as error:
        raise _gone(address, error) from error


def _explained(address: str, error: Exception) -> EngineError:
    """Return what is said of an error that no measurement raises here."""
    from distributed.client import FutureCancelledError

    if isinstance(error, FutureCancelledError) or _is_of_connections(error):
        return _gone(address, error)
    if isinstance(error, ImportError | AttributeError):
        return EngineError(
            f"A worker must have secateur installed as it is here, but one of {address} has not ({_first_line(error)});"
            " install the same there."
        )
    return EngineError(
        f"A worker must be able to measure, but one of {address} is not ({type(error).__name__}: "
        f"{_first_line(error)}); put it right and repeat the command, it goes on from here."
    )


def _is_of_connections(error: Exception) -> bool:
    """Return whether an error says that another process does not answer, not that a disk is full."""
    return isinstance(error, ConnectionError | TimeoutError) or (isinstance(error, OSError) and error.errno is None)


def _gone(address: str, error: Exception) -> EngineError:
    return EngineError(
        f"A Dask scheduler must stay within reach, but {address} has not ({_first_line(error)}); start it again and "
        "repeat the command, it goes on from here."
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _taken(some: list[Architecture]) -> Iterator[Architecture]:
    while some:
        yield some.pop(0)
