"""How near measuring comes to the speed of the model's own matrix products, and what its savings save.

    python -m tests.benchmarks.speed [--quick] [--seed N]

SmolLM2-135M on 4,096 tokens of WikiText-2 validation text. Every figure is a ratio of times taken in this run; all
times are kept with the result. Peak memory is that of a process of its own.

| figure | what is divided by what |
| --- | --- |
| `matmul_peak_fraction` | linear projections alone, the vocabulary's included, by a measurement; by sequence length |
| `time_per_flop_removed` | share of the time by share of the FLOPs that uniform widths save, all FLOPs counted |
| `switch_fraction` | installing another architecture of prepared levels by measuring it |
| `prior_fraction` | measuring each sub-block alone at three levels by as many measurements of the dense model |
| `peak_memory_ratio` | peak less that before the model is read and less one batch, by the dense weights |

Attention's own products count as overhead.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from evaluator import DenseModel, Evaluator, PairStore, SplitSizes, open_model, prepare_texts
from evaluator.accuracy import BATCH_TOKENS, CHUNK_TOKENS
from search.proposals import prior_architectures
from space import Architecture, Budget, build_space, cost_of, sample, uniform_widths
from space.cost import FLOPS_CONTEXT
from tests.benchmarks.record import DATA, ROOT, arguments, finish

LENGTHS = (512, 2048)  # of a sequence; the first is what runs use
TOKENS = 4096
SAVED_FLOPS = 0.2
SWITCHES = 12


def main() -> None:
    """Measure all ratios and print them."""
    options = arguments(__doc__ or "")
    turns = 2 if options.quick else 5
    lengths = (128,) if options.quick else LENGTHS
    dense = open_dense(options.quick)
    details: dict[str, Any] = {
        "seed": options.seed,
        "threads": torch.get_num_threads(),
        "dtype": dense.dtype,
        # Matrix units make products several times faster, and nothing else: a fraction is of a kind of processor.
        "processor": sorted(name for name, has in torch.cpu.get_capabilities().items() if has is True),
        "limited_to": os.environ.get("ONEDNN_MAX_CPU_ISA"),
    }
    figures: dict[str, Any] = {"matmul_peak_fraction": {}}
    with TemporaryDirectory() as scratch:
        for length in lengths:
            judge = make_judge(dense, Path(scratch) / str(length), length, options.seed)
            figures["matmul_peak_fraction"][str(length)], details[f"products_{length}"] = matmul_fraction(judge, turns)
            print(f"matmul_peak_fraction at {length}: {figures['matmul_peak_fraction'][str(length)]}", flush=True)
        judge = make_judge(dense, Path(scratch) / "again", lengths[0], options.seed)
        for name, measure in (
            ("time_per_flop_removed", lambda: time_per_flop(judge, turns)),
            ("switch_fraction", lambda: switch_fraction(judge, options.seed)),
            ("prior_fraction", lambda: prior_fraction(judge, turns)),
            ("peak_memory_ratio", lambda: peak_memory(dense, options.quick)),
        ):
            figures[name], details[name] = measure()
            print(f"{name}: {figures[name]}", flush=True)
    finish("speed", figures, details, options.quick)


def open_dense(quick: bool) -> DenseModel:
    return open_model(str(DATA / "models" / "stories260K") if quick else "smollm2-135m")


def make_judge(dense: DenseModel, folder: Path, length: int, seed: int) -> Evaluator:
    """Return an evaluator whose search text is TOKENS tokens in sequences of a length."""
    folder.mkdir(parents=True)
    sizes = SplitSizes(calibrate=8, search=TOKENS // length, validate=1, report=1, sequence_length=length)
    text = DATA / "text" / "wikitext2.valid.txt"
    texts = prepare_texts(dense, str(text), sizes, seed, folder / "texts", None)
    return Evaluator(dense, texts, PairStore(folder / "pairs.db"), folder=folder)


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def measure(judge: Evaluator, architecture: Architecture) -> None:
    """Measure once more, whatever the store knows."""
    judge._measure(architecture, "search", judge.protocol("search"))


def in_turns(turns: int, **actions: Callable[[], object]) -> dict[str, list[float]]:
    """Time actions one after the other, again and again, after one turn that does not count."""
    for action in actions.values():
        action()
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(turns):
        for name, action in actions.items():
            taken[name].append(seconds(action))
    return taken


def ratio(taken: dict[str, list[float]], above: str, below: str) -> float:
    return statistics.median(taken[above]) / statistics.median(taken[below])


def matmul_fraction(judge: Evaluator, turns: int) -> tuple[float, dict[str, Any]]:
    """Return what share of a measurement its linear projections alone would take."""
    dense = judge.dense
    whole = Architecture.dense(dense.layout)
    judge._reference("search")
    judge._prefixes.clear()  # every measurement from the first layer on
    products = linear_products(dense)
    taken = in_turns(turns, measurement=lambda: measure(judge, whole), products=products)
    return round(ratio(taken, "products", "measurement"), 4), {
        "seconds": taken,
        "tokens_per_second": round(TOKENS / statistics.median(taken["measurement"]), 1),
    }


def linear_products(dense: DenseModel) -> Callable[[], None]:
    """Return all linear projections of TOKENS tokens, in the shapes of a measurement, and nothing else."""
    weights = [module.weight for module in dense.decoder.modules() if isinstance(module, torch.nn.Linear)]
    head = dense.model.get_output_embeddings().weight
    widths = {weight.shape[1] for weight in (*weights, head)}
    generator = torch.Generator().manual_seed(0)
    inputs = {width: torch.randn(BATCH_TOKENS, width, generator=generator).to(head.dtype) for width in widths}

    def products() -> None:
        with torch.inference_mode():
            for _ in range(TOKENS // BATCH_TOKENS):
                for weight in weights:
                    functional.linear(inputs[weight.shape[1]], weight)
            for _ in range(TOKENS // CHUNK_TOKENS):
                functional.linear(inputs[head.shape[1]][:CHUNK_TOKENS], head)

    return products


def time_per_flop(judge: Evaluator, turns: int) -> tuple[float, dict[str, Any]]:
    """Return the share of time that uniform widths save by the share of FLOPs."""
    layout = judge.dense.layout
    whole = Architecture.dense(layout)

    def flops(architecture: Architecture) -> float:
        # The closed form lets each token attend to all; causal attention computes half of that, to half a token.
        attention = 2 * FLOPS_CONTEXT * layout.layers * layout.kv_groups * layout.heads_per_group * layout.head_dim
        return cost_of(layout, architecture).flops_per_token - attention + 2 * layout.hidden_size * layout.vocabulary

    share = 1 - SAVED_FLOPS * flops(whole) / cost_of(layout, whole).flops_per_token
    narrow = uniform_widths(layout, [Budget("flops_per_token", share)])
    taken = in_turns(turns, dense=lambda: measure(judge, whole), narrow=lambda: measure(judge, narrow))
    saved_time, saved_flops = 1 - ratio(taken, "narrow", "dense"), 1 - flops(narrow) / flops(whole)
    details = {"seconds": taken, "saved_time": saved_time, "saved_flops": saved_flops, "architecture": narrow.to_dict()}
    return round(saved_time / saved_flops, 4), details


def switch_fraction(judge: Evaluator, seed: int) -> tuple[float, dict[str, Any]]:
    """Return what share of a measurement installing the next architecture takes, all levels prepared."""
    space = build_space(judge.dense.layout, (Budget("parameters", 0.8),))
    drawn = space.decode(sample(space, SWITCHES, np.random.default_rng(seed)))
    for architecture in drawn:
        judge.surgeon.install(architecture)
    installed, measured = [], []
    for architecture in drawn:
        installed.append(seconds(partial(judge.surgeon.install, architecture)))
        measured.append(seconds(partial(measure, judge, architecture)))
    fraction = statistics.median(installed) / statistics.median(measured)
    return round(fraction, 5), {"install_seconds": installed, "measure_seconds": measured}


def prior_fraction(judge: Evaluator, turns: int) -> tuple[float, dict[str, Any]]:
    """Return what share of whole measurements the prior's take, which share the dense model's first layers."""
    layout = judge.dense.layout
    space = build_space(layout, width_step=layout.mlp_width // 3)  # nothing, a third and two thirds kept
    singles = prior_architectures(space)
    whole = Architecture.dense(layout)
    for architecture in singles:
        judge.surgeon.install(architecture)
    measure(judge, singles[0])
    prior = seconds(lambda: [measure(judge, architecture) for architecture in singles])
    judge._prefixes.clear()
    one = in_turns(max(turns, 3), dense=lambda: measure(judge, whole))["dense"]
    return round(prior / (len(singles) * statistics.median(one)), 4), {
        "architectures": len(singles),
        "seconds": prior,
        "dense_seconds": one,
    }


def peak_memory(dense: DenseModel, quick: bool) -> tuple[float, dict[str, Any]]:
    """Return the peak memory of a process that opens the model and measures one pruned version, by the weights."""
    command = [sys.executable, "-c", "from tests.benchmarks.speed import measure_once; measure_once()", str(int(quick))]
    found = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in dense.model.parameters())
    # One batch: its hidden states before and after a layer, the widest activations between, and a chunk's logits twice.
    layout, size = dense.layout, dense.model.dtype.itemsize
    batch = BATCH_TOKENS * (2 * layout.hidden_size + 3 * layout.mlp_width) * size
    batch += CHUNK_TOKENS * layout.vocabulary * (size + 4)
    found |= {"weights_bytes": weights, "batch_bytes": batch}
    return round((found["peak"] - found["before"] - batch) / weights, 3), found


def measure_once() -> None:
    """Print the peak memory of this process in bytes, before the model is opened and after a measurement."""
    quick = bool(int(sys.argv[1]))
    before = _peak()
    dense = open_dense(quick)
    with TemporaryDirectory() as scratch:
        judge = make_judge(dense, Path(scratch) / "one", 128 if quick else LENGTHS[0], 0)
        measure(judge, uniform_widths(dense.layout, [Budget("parameters", 0.8)]))
    print(json.dumps({"before": before, "peak": _peak()}))


def _peak() -> int:
    # Not getrusage's, which begins with that of the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main()
