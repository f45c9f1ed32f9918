"""Speed, memory and size of models as their clients run them: dense against pruned, in turns, each in a process.

Folders run in transformers and GGUF files in llama.cpp. In each round every model reads the same prompt and writes as
many tokens, in another order, so what else the machine does meets all of them; a ratio is of times of one round.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from gguf import GGUFReader
from rich.box import SIMPLE_HEAD
from rich.table import Table

from evaluator import choose_dtype, open_model
from evaluator.checkpoint import model_folder
from evaluator.timing import Timing, timing_of
from search.export import gguf, llamacpp
from search.export.gguf_model import Source
from search.export.huggingface import fresh_environment
from search.export.place import record_of
from search.export.storage import STORAGE_TYPES, StorageType
from search.folder import RunFolder
from search.progress import Reporter
from search.settings import DTypeName
from space import ModelError, SettingError


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What is timed, and how often."""

    prompt: int = 512  # tokens that are read
    tokens: int = 64  # that are written behind them
    rounds: int = 7
    threads: int | None = None  # None takes what torch takes
    dtype: DTypeName = "auto"  # that folders run in
    seed: int = 0  # of the orders

    def __post_init__(self) -> None:
        """Check what is given.

        Raises:
            SettingError: an amount is too small, or the dtype unknown.
        """
        for name, least in (("prompt", 1), ("tokens", 2), ("rounds", 2)):
            if getattr(self, name) < least:
                raise SettingError(f"--{name} must be at least {least}, but is {getattr(self, name)}; give more.")
        if self.dtype not in get_args(DTypeName):
            names = ", ".join(get_args(DTypeName))
            raise SettingError(f"--dtype must be one of {names}, but is {self.dtype!r}; choose one.")


@dataclass(frozen=True, slots=True)
class Speed:
    """What a model takes."""

    model: str
    client: str  # transformers or llama.cpp
    file_bytes: int  # of the weights
    peak_bytes: int  # of the process
    prefill: Timing  # seconds of the prompt
    decode: Timing  # seconds of a token
    prefill_speedup: tuple[float, float] | None  # against the first model, with its standard error
    decode_speedup: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def bench(models: Sequence[str | Path], settings: BenchSettings, reporter: Reporter | None = None) -> list[Speed]:
    """Time models; where there is one alone, against the dense model that it was made of.

    Args:
        models: folders (or names) of models, runs, whose export is taken, and GGUF files; the first is what the others
            are compared with.
        settings: what is timed.
        reporter: tells a person about the progress; None is quiet.

    Returns:
        What each takes, in the order given, the dense model first where it was added.

    Raises:
        ModelError: a model cannot be opened, or its dense model is not known.
        SettingError: llama.cpp is not installed.
    """
    reporter = reporter or Reporter(quiet=True)
    names = [str(RunFolder(Path(model)).export if (Path(model) / "best.json").is_file() else model) for model in models]
    if any(name.endswith(".gguf") for name in names) and not llamacpp.is_installed():
        raise SettingError(
            f"GGUF files are timed by llama.cpp, but its package xllamacpp is not installed; {llamacpp.INSTALL}."
        )
    for name in names:
        if name.endswith(".gguf") and not Path(name).is_file():
            raise ModelError(f"A GGUF file must be there to be timed, but {name!r} is not; check the path.")
    threads = settings.threads or torch.get_num_threads()
    dtype = str(choose_dtype(settings.dtype)).removeprefix("torch.")
    with ExitStack() as stack:
        if len(names) == 1:
            names = [stack.enter_context(_dense_of(names[0], reporter)), *names]
        places = [name if name.endswith(".gguf") else model_folder(name) for name in names]
        asked = {"prompt": settings.prompt, "tokens": settings.tokens, "threads": threads, "dtype": dtype}
        with reporter.stage("Opening", len(places), "models") as advance:
            workers = []
            for place in places:
                workers.append(stack.enter_context(_worker({"model": place, **asked})))
                advance(1)
        found = _rounds(workers, names, settings, reporter)
        sizes = [_file_bytes(Path(place)) for place in places]
    return [
        _speed(name, size, own, found[0] if index else None, settings)
        for index, (name, size, own) in enumerate(zip(names, sizes, found, strict=True))
    ]


def _rounds(
    workers: Sequence[subprocess.Popen[str]], names: Sequence[str], settings: BenchSettings, reporter: Reporter
) -> list[list[dict[str, float]]]:
    """Return what each model took in each round."""
    rng = np.random.default_rng(settings.seed)
    found: list[list[dict[str, float]]] = [[] for _ in workers]
    with reporter.stage("Timing", settings.rounds * len(workers), "visits") as advance:
        for _ in range(settings.rounds):
            for number in rng.permutation(len(workers)).tolist():
                worker = workers[number]
                assert worker.stdin is not None
                worker.stdin.write("go\n")
                worker.stdin.flush()
                found[number].append(_answer(worker, names[number]))
                advance(1)
    return found


@contextmanager
def _worker(asked: Mapping[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """Open a model in a process, until it is ready."""
    command = [sys.executable, "-m", "search.bench_worker", json.dumps(asked)]
    environment = {**fresh_environment(), "OMP_NUM_THREADS": str(asked["threads"])}
    with tempfile.TemporaryFile("w+") as errors:
        worker = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )
        try:
            try:
                _answer(worker, asked["model"])
            except ModelError as error:
                errors.seek(0)
                said = errors.read().strip().splitlines()
                raise ModelError(f"{error} ({said[-1][:300]})" if said else str(error)) from None
            yield worker
        finally:
            worker.kill()
            worker.communicate()


def _answer(worker: subprocess.Popen[str], name: str) -> dict[str, float]:
    assert worker.stdout is not None
    for line in worker.stdout:
        if line.startswith("{"):  # whatever else a library prints
            found: dict[str, float] = json.loads(line)
            return found
    raise ModelError(f"A model must run in its client to be timed, but {name!r} does not; export it anew.")


def _speed(
    name: str,
    file_bytes: int,
    own: Sequence[Mapping[str, float]],
    first: Sequence[Mapping[str, float]] | None,
    settings: BenchSettings,
) -> Speed:
    # The first token of llama.cpp comes with the prompt.
    written = settings.tokens - 1 if name.endswith(".gguf") else settings.tokens
    return Speed(
        model=name,
        client="llama.cpp" if name.endswith(".gguf") else "transformers",
        file_bytes=file_bytes,
        peak_bytes=int(max(each["peak_bytes"] for each in own)),
        prefill=timing_of([each["prefill"] for each in own]),
        decode=timing_of([each["decode"] / written for each in own]),
        prefill_speedup=_ratio(first, own, "prefill") if first else None,
        decode_speedup=_ratio(first, own, "decode") if first else None,
    )


def speed_table(found: Sequence[Speed], settings: BenchSettings) -> Table:
    """Return a table for the terminal.

    Args:
        found: what `bench` returned.
        settings: what was timed.
    """
    table = Table(box=SIMPLE_HEAD, caption=f"a prompt of {settings.prompt} tokens, {settings.tokens} written behind it")
    for title in ("model", "client", "file,\nMB", "memory,\nMB", "prefill,\ntokens/s", "decode,\ntokens/s"):
        words = title in ("model", "client")
        table.add_column(title, justify="left" if words else "right", overflow="fold", no_wrap=title != "model")
    for each in found:
        table.add_row(
            Path(each.model).name,
            each.client,
            f"{each.file_bytes / 1e6:,.1f}",
            f"{each.peak_bytes / 1e6:,.0f}",
            _rate(settings.prompt, each.prefill, each.prefill_speedup),
            _rate(1, each.decode, each.decode_speedup),
        )
    return table


def _rate(tokens: int, timing: Timing, speedup: tuple[float, float] | None) -> str:
    rate = tokens / timing.seconds
    error, digits = rate * timing.standard_error / timing.seconds, 0 if rate >= 100 else 1
    told = f"{rate:,.{digits}f} ± {error:,.{digits}f}"
    return told if speedup is None else f"{told}\n×{speedup[0]:.2f} ± {speedup[1]:.2f}"


def _ratio(first: Sequence[Mapping[str, float]], own: Sequence[Mapping[str, float]], what: str) -> tuple[float, float]:
    ratios = [a[what] / b[what] for a, b in zip(first, own, strict=True)]
    found = timing_of(ratios)
    return found.seconds, found.standard_error


def _file_bytes(place: Path) -> int:
    files = [place] if place.is_file() else list(place.glob("*.safetensors"))
    return sum(file.stat().st_size for file in files)


@contextmanager
def _dense_of(name: str, reporter: Reporter) -> Iterator[str]:
    """Yield the dense model of an export, for the same client; a GGUF file of it is written for the while."""
    path = Path(name)
    model = record_of(path if path.is_dir() else path.parent).get("model")
    if model is None:
        raise ModelError(
            f"A model that is timed alone must be an export, which says what it was made of, but {name!r} does not; "
            "give the dense model before it."
        )
    if not name.endswith(".gguf"):
        yield model
        return
    storage = _storage_of(path)
    with tempfile.TemporaryDirectory() as scratch, reporter.stage(f"Writing {model} as {storage.name}", 1, "") as told:
        file = Path(scratch) / f"{Path(model).name}-{storage.name}.gguf"
        dense = open_model(model)
        gguf.write_file(Source(dense.model, dense.layout.record), dense.tokenizer, file, storage, {})
        told(1)
        yield str(file)


def _storage_of(file: Path) -> StorageType:
    field = GGUFReader(file).get_field("general.file_type")
    for storage in STORAGE_TYPES.values():
        if field is not None and field.contents() == storage.file_type:
            return storage
    raise ModelError(
        f"A GGUF file that is timed alone must be of a type that can be written here, but {str(file)!r} is not; give "
        "the dense model's file before it."
    )
