"""How near measuring comes to the speed of the model's own matrix products, and what its savings save.

    python -m tests.benchmarks.speed [--quick] [--seed N]

SmolLM2-135M on 4,096 tokens of WikiText-2 validation text. Every figure is a ratio of times taken in this run; all
times are kept with the result. Peak memory is that of a process of its own.

| figure | what is divided by what |
| --- | --- |
| `matmul_peak_fraction` | linear projections alone, the vocabulary's included, by a measurement; by sequence length |
| `estimated_fraction` | a measurement whose loss is estimated, as on search text, by a measurement |
| `time_per_flop_removed` | share of the time by share of the FLOPs that uniform widths save, all FLOPs counted |
| `switch_fraction` | installing another architecture of prepared levels by measuring it |
| `prior_fraction` | each sub-block alone at three levels, on search text, by as many measurements of the dense model |
| `peak_memory_ratio` | peak of measuring, less that with a model of 1 MB and less one batch, by the dense weights |

Attention's own products count as overhead. Matrix units (AMX) make linear projections several times faster and nothing
else, so where a processor has them, all is measured once more without: `without_matrix_units`.
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

from evaluator import DenseModel, Evaluator, PairStore, SplitSizes, open_model, prepare_texts
from evaluator.accuracy import BATCH_TOKENS, CHUNK_TOKENS
from evaluator.kernels import KernelsName
from search.environment import describe_environment
from search.proposals import prior_architectures
from space import Architecture, Budget, build_space, cost_of, sample, uniform_widths
from space.cost import FLOPS_CONTEXT
from tests.benchmarks.record import DATA, ROOT, arguments, finish

LENGTHS = (512, 2048)  # of a sequence; the first is what runs use
TOKENS = 4096
SAVED_FLOPS = 0.2
SWITCHES = 12
_WITHOUT_MATRIX_UNITS = "AVX512_CORE_BF16"


def main() -> None:
    """Measure all ratios and print them."""
    options = arguments(__doc__ or "")
    figures, details = measure_all(options.quick, options.seed)
    if torch.cpu.get_capabilities().get("amx_bf16"):
        print("The same without matrix units", flush=True)
        figures["without_matrix_units"], details["without_matrix_units"] = in_process(
            "measure_all_and_tell", int(options.quick), options.seed, ONEDNN_MAX_CPU_ISA=_WITHOUT_MATRIX_UNITS
        )
    finish("speed", figures, {"seed": options.seed} | details, options.quick)


def measure_all(quick: bool, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the figures on this processor and what they were made of."""
    turns = 2 if quick else 5
    lengths = (128,) if quick else LENGTHS
    dense = open_dense(quick)
    details: dict[str, Any] = {"environment": describe_environment(dense)}
    figures: dict[str, Any] = {"matmul_peak_fraction": {}}
    with TemporaryDirectory() as scratch:
        for length in lengths:
            judge = make_judge(dense, Path(scratch) / str(length), length, seed)
            figures["matmul_peak_fraction"][str(length)], details[f"products_{length}"] = matmul_fraction(judge, turns)
            print(f"matmul_peak_fraction at {length}: {figures['matmul_peak_fraction'][str(length)]}", file=sys.stderr)
        details["kernels"] = judge.kernels.name
        judge = make_judge(dense, Path(scratch) / "again", lengths[0], seed)
        for name, action in (
            ("estimated_fraction", lambda: estimated_fraction(judge, turns)),
            ("time_per_flop_removed", lambda: time_per_flop(judge, turns)),
            ("switch_fraction", lambda: switch_fraction(judge, seed)),
            ("prior_fraction", lambda: prior_fraction(judge, turns)),
            ("peak_memory_ratio", lambda: peak_memory(dense, quick)),
        ):
            figures[name], details[name] = action()
            print(f"{name}: {figures[name]}", file=sys.stderr)
    return figures, details


def measure_all_and_tell() -> None:
    """Measure all ratios and print them with their details, for a process that started this one."""
    print(json.dumps(measure_all(bool(int(sys.argv[1])), int(sys.argv[2]))))


def in_process(function: str, *arguments: object, **environment: str) -> Any:
    """Return what a function of this module prints in a process of its own."""
    code = f"from tests.benchmarks.speed import {function}; {function}()"
    command = [sys.executable, "-c", code, *(str(each) for each in arguments)]
    found = subprocess.run(
        command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    return json.loads(found.stdout.splitlines()[-1])


def open_dense(quick: bool) -> DenseModel:
    return open_model(str(DATA / "models" / "stories260K") if quick else "smollm2-135m")


def make_judge(dense: DenseModel, folder: Path, length: int, seed: int, kernels: KernelsName = "auto") -> Evaluator:
    """Return an evaluator whose search and validation texts are TOKENS tokens in sequences of a length each."""
    folder.mkdir(parents=True)
    count = TOKENS // length
    sizes = SplitSizes(calibrate=8, search=count, validate=count, report=1, sequence_length=length)
    text = DATA / "text" / "wikitext2.valid.txt"
    texts = prepare_texts(dense, str(text), sizes, seed, folder / "texts", None)
    return Evaluator(dense, texts, PairStore(folder / "pairs.db"), folder=folder, kernels=kernels)


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def measure(judge: Evaluator, architecture: Architecture, split: str = "search") -> None:
    """Measure once more, whatever the store knows.

    Args:
        judge: the evaluator.
        architecture: what to measure.
        split: `search`, where the loss is estimated and first layers are shared, or `validate`, where nothing is.
    """
    judge._measure(architecture, split, judge.protocol(split))


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
    products = linear_products(dense)
    taken = in_turns(turns, measurement=lambda: measure(judge, whole, "validate"), products=products)
    return round(ratio(taken, "products", "measurement"), 4), {
        "seconds": taken,
        "tokens_per_second": round(TOKENS / statistics.median(taken["measurement"]), 1),
    }


def linear_products(dense: DenseModel) -> Callable[[], None]:
    """Return all linear projections of TOKENS tokens, in the shapes of a measurement, and nothing else."""
    weights = [module.weight for module in dense.decoder.modules() if isinstance(module, torch.nn.Linear)]
    head = dense.model.get_output_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    inputs = {
        width: torch.randn(BATCH_TOKENS, width, generator=generator).to(head.dtype)
        for width in {weight.shape[1] for weight in (*weights, head)}
    }
    # Into memory that is there already: what new memory costs is no product.
    outputs = {weight.shape[0]: head.new_empty(BATCH_TOKENS, weight.shape[0]) for weight in weights}
    logits = head.new_empty(CHUNK_TOKENS, head.shape[0])

    def products() -> None:
        with torch.inference_mode():
            for _ in range(TOKENS // BATCH_TOKENS):
                for weight in weights:
                    torch.mm(inputs[weight.shape[1]], weight.t(), out=outputs[weight.shape[0]])
            for _ in range(TOKENS // CHUNK_TOKENS):
                torch.mm(inputs[head.shape[1]][:CHUNK_TOKENS], head.t(), out=logits)

    return products


def estimated_fraction(judge: Evaluator, turns: int) -> tuple[float, dict[str, Any]]:
    """Return what share of a whole measurement one takes whose loss is estimated from the tokens kept."""
    whole = Architecture.dense(judge.dense.layout)
    judge._reference("search")
    judge._prefixes.clear()
    taken = in_turns(turns, estimated=lambda: measure(judge, whole), exact=lambda: measure(judge, whole, "validate"))
    judge._references.clear()
    return round(ratio(taken, "estimated", "exact"), 4), {"seconds": taken}


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
    taken = in_turns(
        turns,
        dense=lambda: measure(judge, whole, "validate"),
        narrow=lambda: measure(judge, narrow, "validate"),
    )
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
    one = in_turns(max(turns, 3), dense=lambda: measure(judge, whole, "validate"))["dense"]
    return round(prior / (len(singles) * statistics.median(one)), 4), {
        "architectures": len(singles),
        "seconds": prior,
        "dense_seconds": one,
    }


def peak_memory(dense: DenseModel, quick: bool) -> tuple[float, dict[str, Any]]:
    """Return the peak memory of a process that opens the model and measures pruned versions, by the weights."""
    found = in_process("measure_some", int(quick))
    weights = dense.weights_bytes
    # One batch: its hidden states before and after a layer, the widest activations between, and a chunk's logits twice.
    layout, size = dense.layout, dense.model.dtype.itemsize
    batch = BATCH_TOKENS * (2 * layout.hidden_size + 3 * layout.mlp_width) * size
    batch += CHUNK_TOKENS * layout.vocabulary * (size + 4)
    found |= {"weights_bytes": weights, "batch_bytes": batch}
    return round((found["peak"] - found["before"] - batch) / weights, 3), found


def measure_some() -> None:
    """Print the peak memory of this process in bytes, before the model is opened and after measuring with it."""
    quick = bool(int(sys.argv[1]))
    length = 128 if quick else LENGTHS[0]
    with TemporaryDirectory() as scratch:
        # Libraries load the most of themselves when first used; a model of a megabyte uses all that is used here.
        tiny = make_judge(open_dense(True), Path(scratch) / "tiny", 128, 0, "compiled")
        measure(tiny, uniform_widths(tiny.dense.layout, [Budget("parameters", 0.8)]))
        before = _peak()
        dense = open_dense(quick)
        judge = make_judge(dense, Path(scratch) / "model", length, 0)
        space = build_space(dense.layout, (Budget("parameters", 0.8),))
        for architecture in space.decode(sample(space, SWITCHES, np.random.default_rng(0))):
            measure(judge, architecture)
        print(json.dumps({"before": before, "peak": _peak()}))


def _peak() -> int:
    # Not getrusage's, which begins with that of the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main()
