"""The evaluator: architectures in, measured pairs out, each measured once and kept at once."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from evaluator.accuracy import BATCH_TOKENS, Reference, make_reference, score_tokens
from evaluator.checkpoint import DenseModel
from evaluator.measurement import Measurement, Protocol
from evaluator.pruning import CRITERIA, InputNorms, Surgeon, gather_input_norms, iterate_batches
from evaluator.splits import Texts
from evaluator.store import PairStore
from space import Architecture, RunFolderError, SettingError

# The dense model's activations between layers on the search text are kept within this, to start a measurement at the
# first layer that an architecture changes: half of the work for architectures that change one layer.
PREFIX_BYTES = 2**29


class Evaluator:
    """Measures pruned versions of one dense model under fixed texts and one criterion.

    Owns the model while it lives; not safe for several threads.

    Args:
        dense: the model.
        texts: the four splits.
        store: where pairs are kept.
        criterion: a key of `evaluator.pruning.CRITERIA`.
        statistics_file: where the calibration statistics are cached; None recomputes them.
        progress: told the tokens of each calibration batch.

    Raises:
        SettingError: the criterion is unknown.
        RunFolderError: the statistics file is damaged.
    """

    def __init__(
        self,
        dense: DenseModel,
        texts: Texts,
        store: PairStore,
        *,
        criterion: str = "wanda",
        statistics_file: Path | None = None,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        if criterion not in CRITERIA:
            raise SettingError(f"criterion must be one of {', '.join(CRITERIA)}, but is {criterion!r}; choose one.")
        self.dense = dense
        self.texts = texts
        self.store = store
        self.criterion = criterion
        self.surgeon = Surgeon(dense.layers, dense.layout, self._norms(statistics_file, progress))
        self._references: dict[str, Reference] = {}
        self._prefixes: dict[str, list[Tensor]] = {}

    def _norms(self, file: Path | None, progress: Callable[[int], None]) -> InputNorms:
        key = f"{self.dense.weights_hash}-{self.texts.fingerprint('calibrate')}"
        device = self.dense.model.device
        if file is not None and file.exists():
            try:
                saved = load_file(file)
            except SafetensorError as error:
                raise RunFolderError(
                    f"{file.name} must be intact, but {str(file)!r} is not ({error}); delete it, it is computed anew."
                ) from error
            if key in saved:
                tokens = int(saved.pop(key))
                layers: list[dict[str, Tensor]] = [{} for _ in range(self.dense.layout.layers)]
                for name, values in saved.items():
                    layer, _, path = name.partition(":")
                    layers[int(layer)][path] = values.to(device)
                return InputNorms(tuple(layers), tokens)
        batches = (batch.to(device) for batch in iterate_batches(self.texts.tokens["calibrate"], BATCH_TOKENS))
        norms = gather_input_norms(self.dense.decoder, self.dense.layers, self.dense.layout.record, batches, progress)
        if file is not None:
            tensors = {f"{i}:{path}": each.cpu() for i, own in enumerate(norms.norms) for path, each in own.items()}
            beside = file.with_suffix(".partial")
            save_file({**tensors, key: torch.tensor(norms.tokens)}, beside)
            beside.replace(file)
        return norms

    def protocol(self, split: str) -> Protocol:
        """Return the protocol of measurements on a split."""
        tokens = self.texts.tokens[split]
        return Protocol(
            weights_hash=self.dense.weights_hash,
            text=self.texts.fingerprint(split),
            text_source=self.texts.sources[split],
            split=split,
            tokens=tokens.shape[0] * (tokens.shape[1] - 1),
            sequence_length=tokens.shape[1],
            criterion=self.criterion,
            calibration=self.texts.fingerprint("calibrate"),
            dtype=self.dense.dtype,
        )

    def measure(
        self,
        architectures: Sequence[Architecture],
        split: str,
        origin: str,
        progress: Callable[[int], None] = lambda _: None,
    ) -> list[Measurement]:
        """Measure architectures, or take from the store what was measured before.

        Args:
            architectures: what to measure.
            split: the text to measure on: `search`, `validate` or `report`.
            origin: why, kept with the pair.
            progress: told 1 after each architecture.

        Raises:
            ArchitectureError: an architecture does not fit the model; nothing is measured.
            MeasurementError: a measurement is not finite; those before it are kept.
        """
        for architecture in architectures:
            architecture.check(self.dense.layout)
        protocol = self.protocol(split)
        results = []
        for architecture in architectures:
            measurement = self.store.find(architecture, protocol)
            if measurement is None:
                measurement = self._measure(architecture, split, protocol)
                self.store.add(architecture, measurement, protocol, origin)
            results.append(measurement)
            progress(1)
        return results

    def _measure(self, architecture: Architecture, split: str, protocol: Protocol) -> Measurement:
        reference = self._reference(split)
        started = time.perf_counter()
        self.surgeon.install(architecture)
        changed = architecture.changed_layers(Architecture.dense(self.dense.layout))
        prefix = self._prefixes.get(split)
        first = changed[0] if changed else 0
        replay = _replayed(self.dense.layers, first, prefix[first]) if prefix and first else contextlib.nullcontext()
        with replay:
            scores = score_tokens(self.dense, reference)
        return Measurement.from_scores(scores, len(reference.tokens), protocol, time.perf_counter() - started)

    def _reference(self, split: str) -> Reference:
        if split not in self._references:
            tokens = self.texts.tokens[split]
            self.surgeon.restore()
            self._references[split] = make_reference(self.dense, tokens)
            layout = self.dense.layout
            size = tokens.numel() * layout.hidden_size * layout.layers * self.dense.model.dtype.itemsize
            # One batch only: a prefix of several would have to be replayed batch by batch.
            if size <= PREFIX_BYTES and tokens.numel() <= BATCH_TOKENS:
                self._prefixes[split] = self._boundaries(tokens)
        return self._references[split]

    def _boundaries(self, tokens: Tensor) -> list[Tensor]:
        """Return the dense model's hidden states (sequences, sequence_length, hidden) before each layer."""
        found: list[Tensor] = []
        handles = [
            layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0])) for layer in self.dense.layers
        ]
        try:
            with torch.inference_mode():
                self.dense.decoder(tokens.to(self.dense.model.device), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def describe(self) -> dict[str, object]:
        """Return what every measurement of this evaluator depends on, by split."""
        return {split: asdict(self.protocol(split)) for split in ("search", "validate", "report")}


@contextlib.contextmanager
def _replayed(layers: nn.ModuleList, first: int, hidden: Tensor) -> Iterator[None]:
    """Let the layers before `first` return stored hidden states instead of computing them.

    The model's own forward pass still runs: only these layers' `forward` is replaced, on the instances.
    """
    for index in range(first):
        # Layers before the last only have to pass something on; the last one brings the state back.
        layers[index].forward = lambda *_, **__: hidden
    try:
        yield
    finally:
        for index in range(first):
            del layers[index].forward
