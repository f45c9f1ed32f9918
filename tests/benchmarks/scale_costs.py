"""What each step of a search costs at a size that we cannot run: FLOPs, bytes, memory and seconds, by arithmetic.

`Machine` is what a GPU and its network do, `Code` is what Secateur does with them: `AS_IS` as the code stands, and
changes of it. `Costs` brings them together for one model. Every formula names the code whose work it counts.

| symbol | meaning |
| --- | --- |
| m, h | MLP channels and hidden size: W of a down projection is (h, m), its second moments H are (m, m) |
| K | channels that a level keeps, of m |
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from evaluator.accuracy import BATCH_TOKENS
from evaluator.slopes import FORWARD_PASSES
from search.proposals import prior_architectures, rounding_architectures
from space import Architecture, Layout, build_space, cost_of

LLAMA_70B = Layout.from_config(
    {
        "model_type": "llama",
        "num_hidden_layers": 80,
        "hidden_size": 8192,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 28672,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    }
)
_BF16, _FP32, _FP64 = 2, 4, 8  # bytes
_GENERATED_STEPS = 1280  # 2 batches of documents of 128 tokens, 2 of 512: `evaluator.generation` on a GPU
_GENERATED_BATCH = 256
_WIDTH_PASSES = 6  # over a float32 projection that `slopes` makes to compare one choice with another


@dataclass(frozen=True)
class Machine:
    """A GPU with its share of node, network and storage. Sources are in docs/internet-scale.md."""

    memory_bytes: float = 80e9
    usable: float = 0.9  # of the memory, beside what libraries take
    bf16: float = 989e12  # FLOPs a second, dense
    fp32: float = 67e12
    fp64: float = 67e12  # by tensor cores
    efficiency: float = 0.4  # of bf16 that a forward pass reaches
    solver_efficiency: float = 0.5  # of fp32 and fp64 that products, factorisations and solves reach
    memory_bandwidth: float = 3.35e12  # bytes a second
    network: float = 50e9  # bytes a second, to other nodes
    to_device: float = 55e9  # bytes a second, from its node's memory
    files: float = 5e9  # bytes a second, of one process that reads and parses files its node has in memory
    storage_per_gpu: float = 2e12 / 16_384  # bytes a second that shared storage gives, by the GPUs of the cluster
    failures_per_hour: float = 419 / (54 * 24 * 16_384)
    dollars_per_hour: float = 3.0

    def storage(self, gpus: int) -> float:
        """Bytes a second that the cluster's storage gives to all: one GPU's node has a fast disk at least."""
        return max(self.files, gpus * self.storage_per_gpu)


@dataclass(frozen=True)
class Code:
    """How Secateur does it. The defaults are the code as it stands."""

    # A group's GPUs one after the other, each with its layers (accelerate's device map), or all at once.
    layout: Literal["device_map", "tensor_parallel"] = "device_map"
    parallel_efficiency: float = 0.8  # of all at once
    # The solve of each width begins with its own factorisation; or one factor serves all widths of a sub-block.
    factors: Literal["each_width", "each_block"] = "each_width"
    # Prepared levels: remade whenever wanted, as if no disk held them; or made once, by all, and fetched.
    levels: Literal["remade", "shared"] = "remade"
    width_step: int | None = None  # None: 128
    slopes: Literal["one_worker", "all_workers"] = "one_worker"  # or sequences, then layers, shared out
    calibration: Literal["one_worker", "all_workers"] = "one_worker"
    weights: Literal["storage", "broadcast"] = "storage"  # each worker reads them, or one that hands them on
    # Who reads the statistics when it opens the model: every worker all of them; or none, and tasks their layers'.
    statistics: Literal["everywhere", "where_needed"] = "everywhere"
    claims: Literal["polled", "pushed"] = "polled"  # looked for five times a second, or handed out
    forgotten: float = 600.0  # seconds until what a lost worker had begun is free again
    store_seconds: float = 0.0043  # of a pair's transactions; measured by the benchmark
    look_seconds: float = 0.0020  # of one look for work that another has: find and a claim in vain; measured too
    chains: int = 1  # rounds that go on at the same time, each waiting for its own measurements alone,
    drivers: Literal["one", "each_chain"] = "one"  # and whether each has a process that fits and plans for it


AS_IS = Code()


@dataclass(frozen=True)
class Costs:
    """Seconds of a search's steps for one model on one machine by one way of doing it."""

    layout: Layout = LLAMA_70B
    machine: Machine = Machine()
    code: Code = AS_IS
    sequence_length: int = 512
    search: int = 8  # sequences, and so on: `search.settings.TextConfig`
    validate: int = 16
    report: int = 32
    calibrate: int = 128
    kept: float = 0.8  # share of the channels that a measured architecture keeps

    @cached_property
    def flops_per_token(self) -> float:
        """Of a forward pass through the dense model, vocabulary projection included."""
        decoder = cost_of(self.layout, Architecture.dense(self.layout)).flops_per_token
        return float(decoder + 2 * self.layout.hidden_size * self.layout.vocabulary)

    @cached_property
    def weights_bytes(self) -> int:
        """Of the dense model."""
        return cost_of(self.layout, Architecture.dense(self.layout)).weight_bytes

    @cached_property
    def statistics_bytes(self) -> int:
        """Of what calibration keeps for least squares: second moments of what down and output projections read."""
        queries = self.layout.heads * self.layout.head_dim
        return self.layout.layers * _FP32 * (self.layout.mlp_width**2 + queries**2)

    @cached_property
    def widths(self) -> int:
        """MLP widths of a layer that solves are made for: neither none nor all channels."""
        step = self.code.width_step
        return len(build_space(self.layout, width_step=step).choices[1]) - 2

    @cached_property
    def level_bytes(self) -> float:
        """Of one prepared MLP, of the widths' mean: its down projection."""
        return 0.5 * _BF16 * self.layout.hidden_size * self.layout.mlp_width

    @cached_property
    def singles(self) -> int:
        """Sub-blocks measured alone, what rounding alone is worth, and the dense model."""
        space = build_space(self.layout, width_step=self.code.width_step)
        return len(prior_architectures(space)) + len(rounding_architectures(space)) + 1

    @cached_property
    def measuring_bytes(self) -> float:
        """Memory of measuring: the dense weights and the installed ones, twice as `speed.json` found."""
        return 2.0 * self.weights_bytes

    @cached_property
    def slopes_bytes(self) -> float:
        """Memory of slopes: dense weights, readers in dense shape, their gradients in bf16 and float32, activations."""
        queries = self.layout.heads * self.layout.head_dim
        readers = self.layout.layers * self.layout.hidden_size * (self.layout.mlp_width + queries)
        values = 10 * self.layout.hidden_size + 4 * self.layout.mlp_width  # kept for a layer's backward pass
        activations = _BF16 * self.sequence_length * self.layout.layers * values
        gradients = _BF16 + _FP32 if self.code.slopes == "one_worker" else 0  # else folded layer by layer
        return self.weights_bytes + readers * (_BF16 + gradients) + activations

    @property
    def group(self) -> int:
        """GPUs of one worker: a power of two that holds what it does."""
        wanted = max(self.measuring_bytes, self.slopes_bytes)
        gpus = 1
        while gpus * self.machine.memory_bytes * self.machine.usable < wanted:
            gpus *= 2
        return gpus

    @property
    def speed(self) -> float:
        """GPUs' worth of speed that a worker has in a forward pass."""
        return 1.0 if self.code.layout == "device_map" else max(1.0, self.code.parallel_efficiency * self.group)

    def forward(self, tokens: float, share: float = 1.0) -> float:
        """Seconds of tokens through a share of the layers: FLOPs, or reading the weights once for each batch."""
        flops = tokens * share * self.flops_per_token / (self.machine.bf16 * self.machine.efficiency)
        batches = max(1.0, tokens / BATCH_TOKENS)
        reading = batches * share * self.weights_bytes / self.machine.memory_bandwidth
        return max(flops, reading) / self.speed

    @cached_property
    def solve_flops(self) -> float:
        """Float64 FLOPs of one MLP level at the share kept: `least_squares.resolve`."""
        channels = self.layout.mlp_width
        return _solve_flops(self.kept * channels, channels, self.layout.hidden_size)

    @cached_property
    def all_widths_flops(self) -> float:
        """Float64 FLOPs of all widths of one MLP, one solve each, on a grid of `widths`."""
        channels, rows = self.layout.mlp_width, self.layout.hidden_size
        return sum(
            _solve_flops(channels * (number + 1) / (self.widths + 1), channels, rows) for number in range(self.widths)
        )

    @cached_property
    def factor_flops(self) -> float:
        """The same by one factor of H with channels in the order in which they go.

        Of nested sets of channels the factor of each is a leading block of the factor of all, and so is what solving
        forward gives. One factorisation and two forward solves, of W H and of the gradients, so tell every slope.
        """
        channels, rows = float(self.layout.mlp_width), self.layout.hidden_size
        return channels**3 / 3 + 2 * channels**2 * rows + 2 * channels**2 * rows

    def level_seconds(self) -> float:
        """Seconds until one MLP level is on its device: made of its layer's statistics, or fetched."""
        if self.code.levels == "shared":  # from the memory of the node that made it, over the network
            return self.level_bytes / self.machine.network + self._loading
        return self.statistics_seconds + self.solve_flops / self._solving

    @cached_property
    def statistics_seconds(self) -> float:
        """Seconds of reading one layer's statistics from files that the node has in memory, onto the device."""
        size = self.statistics_bytes / self.layout.layers
        return size / self.machine.files + size / self.machine.to_device

    def levels_once(self) -> list[float]:
        """Seconds of making all levels, a task a layer; none where they are remade whenever wanted."""
        if self.code.levels == "remade":
            return []
        columns = 2 * self.layout.mlp_width**2 / 3 * self.layout.hidden_size  # a mean solve backwards
        if self.code.factors == "each_width":
            flops = self.all_widths_flops
        else:
            flops = self.factor_flops + self.widths * columns
        return [self.statistics_seconds + flops / self._solving] * self.layout.layers

    def measure(self, sequences: int, changed: float, share: float = 1.0) -> float:
        """Seconds of a measurement.

        Args:
            sequences: of the text.
            changed: share of the MLPs that differ from what is installed.
            share: of the layers that are run: those before the first change are not.
        """
        tokens = sequences * (self.sequence_length - 1)
        switching = 2 * changed * self.weights_bytes / self.machine.memory_bandwidth
        return changed * self.layout.layers * self.level_seconds() + switching + self.forward(tokens, share)

    def slopes(self, workers: int) -> list[list[float]]:
        """Seconds of slopes at an architecture, `evaluator.slopes`: of tasks side by side, batch after batch.

        Shared out, each of up to as many workers as there are sequences takes its own backward passes; gradients of a
        layer go to the worker that has its factor or its levels, and what each tells is added.
        """
        backward = self.forward(FORWARD_PASSES * self.search * (self.sequence_length - 1))
        block = self.layout.hidden_size * self.layout.mlp_width  # weights of a down projection
        own = self.layout.layers * self.level_seconds()
        telling = self.statistics_seconds
        if self.code.factors == "each_width":
            comparing = self.widths * _WIDTH_PASSES * _FP32 * block / self.machine.memory_bandwidth
            telling += self.all_widths_flops / self._solving + comparing
        else:
            telling += self.factor_flops / self._solving
        if self.code.levels == "shared":  # or all that were made are read again, by who has them
            distance = self.level_seconds() if self.code.slopes == "one_worker" else self._loading
            telling = min(
                telling, self.widths * (distance + _WIDTH_PASSES * _FP32 * block / self.machine.memory_bandwidth)
            )
        if self.code.slopes == "one_worker":
            return [[own + backward + self.layout.layers * telling]]
        sequences, tellers = min(workers, self.search), min(workers, self.layout.layers)
        layers = -(-self.layout.layers // tellers)
        gathering = sequences * _BF16 * block / self.machine.network
        return [[own + backward / sequences] * sequences, [layers * (telling + gathering)] * tellers]

    def generating(self) -> float:
        """Seconds in which the model writes its text: each step reads all weights."""
        step = _GENERATED_BATCH * self.flops_per_token / (self.machine.bf16 * self.machine.efficiency)
        return _GENERATED_STEPS * (step + self.weights_bytes / self.machine.memory_bandwidth) / self.speed

    def calibrating(self, workers: int) -> list[list[float]]:
        """Seconds of statistics: a forward pass, X'X in float32, and files written layer by layer; as `slopes`.

        Shared out, workers sum over parts of the text, send their sums on, and write layers' files side by side.
        """
        tokens = self.calibrate * self.sequence_length
        queries = self.layout.heads * self.layout.head_dim
        moments = 2 * tokens * self.layout.layers * (self.layout.mlp_width**2 + queries**2)
        seconds = self.forward(tokens) + moments / (self.machine.fp32 * self.machine.solver_efficiency * self._moments)
        if self.code.calibration == "one_worker":
            return [[seconds + self.statistics_bytes / self.machine.files]]
        many, writers = min(workers, self.calibrate), min(workers, self.layout.layers)
        sending = self.statistics_bytes / self.machine.network
        writing = -(-self.layout.layers // writers) * self.statistics_bytes / self.layout.layers / self.machine.files
        return [[seconds / many + sending] * many, [writing] * writers]

    @property
    def _moments(self) -> float:
        """GPUs that multiply X'X at once: that of the layer, or all of a worker's."""
        return 1.0 if self.code.layout == "device_map" else float(self.group)

    @property
    def _loading(self) -> float:
        """Seconds of a level from its node's memory to a device."""
        return self.level_bytes / self.machine.to_device

    @property
    def _solving(self) -> float:
        return self.machine.fp64 * self.machine.solver_efficiency


def _solve_flops(kept: float, channels: int, rows: int) -> float:
    """FLOPs of a factorisation of (kept, kept), W H on the kept columns, and two triangular solves."""
    return kept**3 / 3 + 2 * kept * channels * rows + 2 * kept**2 * rows
