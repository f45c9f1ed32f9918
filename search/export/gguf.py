"""Export as GGUF files in a folder, each checked by llama.cpp in a fresh process where it is installed."""

import copy
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGUFReader, GGUFWriter
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evaluator import DenseModel
from evaluator.checkpoint import quiet_transformers
from search.export import llamacpp, place
from search.export.card import card_of
from search.export.gguf_model import Source
from search.export.huggingface import check_promise, fresh_environment
from search.export.picture import PICTURE, draw_layers
from search.export.storage import STORAGE_TYPES, StorageType, storage_type, stored
from space import ExportError, SettingError

_PROBED = (2, 5, 11, 23, 47)  # tokens of the prompts that a file is asked with
_WRITTEN = 8  # tokens that it continues the longest with
_LEAST = -60.0  # natural logarithm of a probability below which single precision tells nothing
EXACT = 1e-3  # nats by which a log-probability of float32 weights may differ
_ROUNDINGS = 4.0  # or so many times what float32 itself is off, where that is more
_TEXT = (
    "The old gardener cut the rose bush down to three strong canes, and in June it bloomed as never before. Nobody in "
    "the village had believed that so little wood could carry so many flowers, but he only smiled and said that a plant"
)
_LINES = (
    "The old gardener cut 12 roses at 7:45, didn't he?  (He'd said: \"never!\")",
    "    indented\tand tabbed, with trailing spaces   ",
    "Größe, façade, naïve – 3.14159 × 10^5 €",
    "Привет, мир! 你好,世界。 こんにちは 안녕하세요 مرحبا שלום",
    "for i in range(1000):\n\n    x[i] += 2**i  # 🙂👩‍🚀",
)


def write_gguf(
    model: PreTrainedModel,
    in_memory: DenseModel,
    target: Path,
    record: Mapping[str, Any],
    types: Sequence[str] = ("f16",),
) -> None:
    """Write a pruned model as GGUF, one file for each type of storage, and check each.

    Args:
        model: the pruned model as transformers runs it.
        in_memory: in whose form it is held, with tokenizer and layout.
        target: folder to make; an older export of ours there is replaced.
        record: written as secateur.json, and told on the card.
        types: of storage, keys of `STORAGE_TYPES`.

    Raises:
        SettingError: a type is unknown, or needs llama.cpp, which is not installed.
        ExportError: the target is something else, llama.cpp has no such model or tokenizer, or what it computes with a
            file is not what the model in memory does.
    """
    chosen = {each.name: each for each in map(storage_type, types)}
    needing = [each.name for each in chosen.values() if each.by_llama_cpp]
    if needing and not llamacpp.is_installed():
        raise SettingError(
            f"The types {', '.join(needing)} are written by llama.cpp, but its package xllamacpp is not installed; "
            f"install it ({llamacpp.INSTALL}) or choose of "
            f"{', '.join(name for name, each in STORAGE_TYPES.items() if not each.by_llama_cpp)}."
        )
    with quiet_transformers():
        source = Source(model, in_memory.layout.record)
    check_promise(record, sum(weight.numel() for weight in model.parameters()))
    stem = re.sub(r"[^\w.-]+", "-", Path(record.get("model") or "model").name)
    stem += "-pruned" * bool(record.get("architecture"))

    def fill(folder: Path) -> dict[str, Any]:
        files = {folder / f"{stem}-{name}.gguf": storage for name, storage in chosen.items()}
        told = {"general.name": stem, "general.description": "Made by Secateur"}
        if record.get("licence"):
            told["general.license"] = record["licence"]
        for file, storage in files.items():
            write_file(source, in_memory.tokenizer, file, storage, told)
            _check_weights(source, file)
        checks = {}
        if llamacpp.is_installed():
            probe = Probe(source, in_memory.tokenizer)
            if all(storage.tolerance is None for storage in files.values()):
                # What a coarse type costs is no proof of anything; the same model in a finer one is.
                proof, fine = folder / "proof.gguf", STORAGE_TYPES["f16"]
                write_file(source, in_memory.tokenizer, proof, fine, told)
                probe.check(proof, fine)
                proof.unlink()
            checks = {file.name: probe.check(file, storage) for file, storage in files.items()}
        draw_layers(record, folder / PICTURE)
        return {"format": "gguf", "llama_cpp": MODEL_ARCH_NAMES[source.architecture], "checks": checks}

    place.write(target, fill, record, card_of)


def write_file(
    source: Source, tokenizer: PreTrainedTokenizerBase, file: Path, storage: StorageType, told: Mapping[str, str]
) -> None:
    """Write a GGUF file.

    Args:
        source: the model.
        tokenizer: its tokenizer.
        file: to make.
        storage: how weights are stored.
        told: more metadata: keys with their texts.

    Raises:
        ExportError: llama.cpp has no such tokenizer.
    """
    writer = GGUFWriter(file, MODEL_ARCH_NAMES[source.architecture])
    try:
        for key, text in told.items():
            writer.add_string(key, text)
        writer.add_file_type(storage.file_type)
        source.describe(writer, tokenizer)
        for name, tensor in source.tensors():
            content, kind = stored(tensor, storage.kind_of(name, len(source.blocks)))
            writer.add_tensor(name, content, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _check_weights(source: Source, file: Path) -> None:
    found = sum(int(np.prod(tensor.shape)) for tensor in GGUFReader(file).tensors)
    expected = sum(tensor.numel() for _, tensor in source.tensors())
    if found != expected:
        raise ExportError(
            f"A GGUF file must hold all {expected:,} weights of the model, but {file.name} holds {found:,}; report "
            "this, and export to huggingface."
        )


class Probe:
    """What a model in memory says, to compare what llama.cpp says of its file.

    Args:
        source: the model.
        tokenizer: its tokenizer.
    """

    def __init__(self, source: Source, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        model = source.model
        # Files of float32 weights are computed in float32, so the model in memory is as well.
        self._model = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
        self._vocabulary = int(model.config.vocab_size)
        longest = max(1, min(max(_PROBED), source.context_length - _WRITTEN))
        self._tokens = tokenizer(_TEXT)["input_ids"][:longest]
        self._lengths = sorted({min(length, len(self._tokens)) for length in _PROBED})
        self._plain = tokenizer("a")["input_ids"][-1]

    def _log_probabilities(self, model: PreTrainedModel, tokens: Sequence[int]) -> NDArray[np.float64]:
        """Return natural log-probabilities (positions, vocabulary) behind the prompts and what was written."""
        lengths = [*self._lengths, *range(len(self._tokens), len(self._tokens) + _WRITTEN)]
        given = torch.tensor([list(tokens)], device=model.device)
        with torch.inference_mode(), quiet_transformers():
            logits: Tensor = model(given, use_cache=False).logits[0].cpu().double()
        found: NDArray[np.float64] = logits.log_softmax(-1)[[length - 1 for length in lengths]].numpy()
        return found

    def _rounding(self, said: NDArray[np.float64], expected: NDArray[np.float64], text: Sequence[int]) -> float:
        """Return how far float32 in memory is from float64, or infinity where the file is much further from it.

        Activations of a model that was cut to pieces may be so large that float32 errs by more than `EXACT` by itself.
        """
        precise = self._log_probabilities(copy.deepcopy(self._model).double(), text)
        own, theirs = (float(np.abs(each - precise)[precise > _LEAST].max()) for each in (expected, said))
        return own if theirs <= _ROUNDINGS * own else np.inf

    def check(self, file: Path, storage: StorageType) -> dict[str, float]:
        """Let llama.cpp read a file in a fresh process and return how far it is from the model in memory.

        Returns:
            `kl` in nats, `max_logit_difference` between log-probabilities, `same_best`: at what share of the positions,
            fresh and from the KV cache, the likeliest token is the same; `float32_rounding` where it was asked for.

        Raises:
            ExportError: the file does not load, or is another model or tokenizer.
        """
        found = self._asked(file)
        said = np.concatenate([found["fresh"], found["cached"]])
        text = found["text"][:-1].tolist()
        expected = self._log_probabilities(self._model, text)
        known = expected > _LEAST
        difference = float(np.abs(said - expected)[known].max())
        kl = float(np.where(known, np.exp(expected) * (expected - said), 0.0).sum(1).mean())
        best = expected.argmax(1) == said.argmax(1)
        told = {"kl": max(kl, 0.0), "max_logit_difference": difference, "same_best": float(best.mean())}
        reason = None
        if not np.isfinite(kl) or (storage.tolerance is not None and kl > storage.tolerance):
            reason = f"its next-token distribution is {kl:.3g} nats from the model's"
        elif storage is STORAGE_TYPES["f32"] and not difference <= EXACT:
            rounding = self._rounding(said, expected, text)
            told["float32_rounding"] = rounding
            if rounding == np.inf:
                reason = f"its log-probabilities differ by up to {difference:.3g}"
        for number, line in enumerate(_LINES):
            if found[f"line {number}"].tolist() != self._tokenizer(line)["input_ids"]:
                reason = f"its tokenizer reads {line!r} otherwise"
        if reason:
            raise ExportError(
                f"A GGUF file must be the model in memory to llama.cpp, but {file.name} is not: {reason}; report this, "
                "and export to huggingface."
            )
        return told

    def _asked(self, file: Path) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as scratch:
            request, answer = Path(scratch) / "request.json", Path(scratch) / "answer.safetensors"
            asked = {
                "file": str(file),
                "prompts": [self._tokens[:length] for length in self._lengths],
                "vocabulary": self._vocabulary,
                "plain": self._plain,
                "written": _WRITTEN,
                "lines": _LINES,
                "threads": torch.get_num_threads(),
            }
            request.write_text(json.dumps(asked), encoding="utf-8")
            command = [sys.executable, "-m", "search.export.verify_gguf", str(request), str(answer)]
            outcome = subprocess.run(command, capture_output=True, text=True, check=False, env=fresh_environment())
            if outcome.returncode or not answer.exists():
                reason = (outcome.stderr.strip().splitlines() or [f"it ended with {outcome.returncode}"])[-1]
                raise ExportError(
                    f"A GGUF file must load in llama.cpp in a fresh process, but {file.name} does not: {reason}; "
                    "report this, and export to huggingface."
                )
            return load_file(answer)
