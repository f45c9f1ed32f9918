"""Whether exports are the model that was measured, in both clients, and how much smaller and faster they are.

    python -m tests.benchmarks.exports [--quick] [--seed N] [--part same|text|speed]

SmolLM2-135M, pruned by Wanda. `same`, in float32: 30 architectures over the whole space (first attention removed, last
MLP removed, whole blocks removed, one KV group everywhere, odd ends, and random ones with odd widths and without), each
exported as a folder and as GGUF, opened again and compared. `speed`: architectures drawn at a budget. What is measured
is kept in runs/benchmark-exports, and goes on there.

| figure | what it is |
| --- | --- |
| `architectures` | compared in `same` |
| `hf_max_logit_difference` | of folders opened again by transformers; each was also opened in a fresh process |
| `gguf_max_logit_difference` | of log-probabilities by llama.cpp with float32 weights and KV cache, fresh and cached |
| `text_lines`, `text_lines_different` | real lines that the GGUF file's tokenizer read, and otherwise than ours |
| `size_ratio` | bytes of the weights' file, pruned to dense, by client, what is gone and the decoder's FLOPs kept |
| `prefill_speedup`, `decode_speedup` | in one run, in turns, with standard error: 512 tokens read, 64 written |
| `speedup_per_flop_removed` | share of the prefill's time that is gone, by the share of the decoder's FLOPs removed |
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from evaluator import DenseModel, Evaluator, PairStore, Texts, open_model, standalone
from evaluator.pruning import Surgeon
from evaluator.sources import tokenise
from search.bench import BenchSettings, bench
from search.environment import describe_environment
from search.export import gguf, huggingface
from search.export.gguf_model import Source
from search.export.llamacpp import LlamaCpp
from search.export.place import record_of
from search.export.storage import STORAGE_TYPES
from search.folder import write_json
from search.progress import Reporter
from search.settings import DTypeName
from space import Architecture, Budget, Criterion, build_space, cost_of, sample
from tests.benchmarks.record import DATA, ROOT, finish

COMPARED, LINES = 30, 1000
KEPT_FLOPS = (0.8, 0.6)  # shares of the dense decoder's
KINDS = ("widths", "whole blocks")  # what is gone: uneven widths and sub-blocks, or nothing but blocks
TYPES = ("f16", "q8_0")
_OTHER_SCRIPT = re.compile(r"[\u0370-\u1fff\u2e80-\ud7ff\uf900-\uffff]")


class Benchmark:
    """The measurements of one seed, kept as they are made."""

    def __init__(self, seed: int, quick: bool) -> None:
        self.seed, self.quick = seed, quick
        self.folder = ROOT / "runs" / ("benchmark-exports-quick" if quick else "benchmark-exports")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = self.folder / f"measured-{seed}.json"
        self.kept: dict[str, Any] = json.loads(self._file.read_text()) if self._file.exists() and not quick else {}
        self.name = str(DATA / "models" / "stories260K") if quick else "smollm2-135m"

    def once(self, key: str, measure: Callable[[], Any]) -> Any:
        """Return what was measured under a key, measuring it the first time."""
        if key not in self.kept:
            self.kept[key] = measure()
            write_json(self._file, self.kept)
            print(f"{key}: {json.dumps(self.kept[key])[:200]}", file=sys.stderr, flush=True)
        return self.kept[key]

    def opened(self, dtype: DTypeName) -> tuple[DenseModel, Surgeon]:
        """Return the dense model and what prunes it, calibrated on WikiText-2 train."""
        dense = open_model(self.name, dtype=dtype)
        length = min(512, dense.longest_sequence)
        tokens = tokenise(dense, str(DATA / "text" / "wikitext2.train-first1mb.txt"), 16 * length).view(16, length)
        store = PairStore(self.folder / "pairs.db")
        texts = Texts({"calibrate": tokens}, {"calibrate": "WikiText-2 train"})
        judge = Evaluator(dense, texts, store, criterion=Criterion("wanda", "wanda", "none"))
        return dense, judge.surgeon

    def same(self) -> dict[str, Any]:
        """Compare exports of many architectures with the model in memory."""
        dense, surgeon = self.opened("float32")
        everyone = architectures(dense, 6 if self.quick else COMPARED, np.random.default_rng([self.seed, 1]))
        rows = []
        for number, (name, architecture) in enumerate(everyone):
            key = f"same {number} {architecture.fingerprint}"
            rows.append(self.once(key, lambda own=architecture: self._compared(dense, surgeon, own)) | {"name": name})
        return {
            "architectures": len(rows),
            "hf_max_logit_difference": max(row["hf"] for row in rows),
            "gguf_max_logit_difference": max(row["gguf"] for row in rows),
            "gguf_beyond_0.001": [[row["gguf"], row["float32_rounding"]] for row in rows if row["float32_rounding"]],
            "forms": {form: sum(row["form"] == form for row in rows) for form in ("own code", "plain")},
            "llama_cpp": {kind: sum(row["llama_cpp"] == kind for row in rows) for kind in ("llama", "deci")},
        }

    def _compared(self, dense: DenseModel, surgeon: Surgeon, architecture: Architecture) -> dict[str, Any]:
        surgeon.install(architecture)
        model, place = standalone(dense, architecture), self.folder / "compared"
        tokens = torch.randint(dense.layout.vocabulary, (2, 64), generator=torch.Generator().manual_seed(self.seed))
        with torch.inference_mode():
            expected = dense.model(tokens, use_cache=False).logits
            huggingface.write_folder(model, dense, place, {})  # opened in a fresh process there
            again = AutoModelForCausalLM.from_pretrained(place, dtype="auto").eval()
            difference = float((again(tokens, use_cache=False).logits - expected).abs().max())
        form = record_of(place)["form"]
        gguf.write_gguf(model, dense, place, {}, ("f32",))
        told = record_of(place)
        [check] = told["checks"].values()
        surgeon.restore()
        return {
            "hf": difference,
            "gguf": check["max_logit_difference"],
            "float32_rounding": check.get("float32_rounding"),
            "form": form,
            "llama_cpp": told["llama_cpp"],
        }

    def text(self) -> dict[str, Any]:
        """Compare the tokenizers on real lines."""
        lines = real_lines(60 if self.quick else LINES, np.random.default_rng([self.seed, 2]))
        return self.once(f"text {len(lines)}", lambda: self._read(lines))

    def _read(self, lines: Sequence[str]) -> dict[str, Any]:
        dense = open_model(self.name)
        file = self.folder / "text.gguf"
        gguf.write_file(Source(dense.model, dense.layout.record), dense.tokenizer, file, STORAGE_TYPES["f16"], {})
        opened = LlamaCpp(file, 256, 1)
        different = [line for line in lines if opened.tokenised(line) != dense.tokenizer(line)["input_ids"]]
        file.unlink()
        return {
            "text_lines": len(lines),
            "text_lines_other_scripts": sum(bool(_OTHER_SCRIPT.search(line)) for line in lines),
            "text_lines_different": len(different),
            "examples": different[:5],
        }

    def speed(self) -> dict[str, Any]:
        """Time dense and pruned exports in turns, in each client."""
        files, kept = self._exports()
        settings = BenchSettings(16, 4, 2) if self.quick else BenchSettings(seed=self.seed)
        found: dict[str, Any] = {
            name: {} for name in ("size_ratio", "prefill_speedup", "decode_speedup", "speedup_per_flop_removed")
        }
        for client, (models, dtype) in files.items():
            own = replace(settings, dtype=dtype)
            dense, *pruned = self.once(f"speed {client} {own}", lambda own=own, models=models: self._timed(models, own))
            for (what, share), row in zip(kept, pruned, strict=True):
                name = f"{client}, {what}, {share:.3f} of the FLOPs"
                found["size_ratio"][name] = round(row["file_bytes"] / dense["file_bytes"], 4)
                for phase in ("prefill", "decode"):
                    found[f"{phase}_speedup"][name] = [round(value, 4) for value in row[f"{phase}_speedup"]]
                gone = 1 - 1 / row["prefill_speedup"][0]
                found["speedup_per_flop_removed"][name] = round(gone / (1 - share), 3)
        return found

    def _timed(self, models: Sequence[Path], settings: BenchSettings) -> list[dict[str, Any]]:
        found = bench([str(each) for each in models], settings, Reporter())
        return [
            each.to_dict() | {"model": str(place.relative_to(self.folder))}
            for each, place in zip(found, models, strict=True)
        ]

    def _exports(self) -> tuple[dict[str, tuple[list[Path], DTypeName]], list[tuple[str, float]]]:
        """Return the dense and the pruned models by client, and what the pruned ones keep of the FLOPs."""
        dense, surgeon = self.opened("auto")
        layout = dense.layout
        whole = Architecture.dense(layout)
        chosen, kept = [whole], []
        for what in KINDS:
            for share in KEPT_FLOPS:
                space = build_space(layout, (Budget("flops_per_token", share),), whole_blocks=what == "whole blocks")
                [architecture] = space.decode(sample(space, 1, np.random.default_rng([self.seed, 3])))
                chosen.append(architecture)
                flops = [cost_of(layout, each).flops_per_token for each in (architecture, whole)]
                kept.append((what, flops[0] / flops[1]))
        folders: list[Path] = []
        files: dict[str, list[Path]] = {name: [] for name in TYPES}
        for architecture in chosen:
            place = self.folder / f"timed-{architecture.fingerprint}"
            if not (place / "gguf").exists():
                surgeon.install(architecture)
                model = standalone(dense, architecture)
                huggingface.write_folder(model, dense, place / "folder", {})
                gguf.write_gguf(model, dense, place / "gguf", {}, TYPES)
                surgeon.restore()
            folders.append(place / "folder")
            for name in TYPES:
                files[name] += (place / "gguf").glob(f"*-{name.upper()}.gguf")
        dtypes: tuple[DTypeName, ...] = ("auto", "float32")
        clients = {f"transformers {dense.dtype if dtype == 'auto' else dtype}": (folders, dtype) for dtype in dtypes}
        return {**clients, **{f"llama.cpp {name.upper()}": (own, "auto") for name, own in files.items()}}, kept


def architectures(dense: DenseModel, count: int, rng: np.random.Generator) -> list[tuple[str, Architecture]]:
    """Return named corners of the space, and random architectures up to a count."""
    layout, whole = dense.layout, Architecture.dense(dense.layout)
    last, odd = layout.layers - 1, layout.mlp_width // 2 - 1
    narrow, blocks = whole, whole
    for layer in range(layout.layers):
        narrow = narrow.replace(layer, kv_groups=1, mlp_width=layout.mlp_width // 2)
    for layer in range(1, layout.layers, 3):
        blocks = blocks.replace(layer, kv_groups=0, mlp_width=0)
    ends = whole.replace(0, kv_groups=1, mlp_width=odd).replace(last, kv_groups=1, mlp_width=odd)
    found = [
        ("first attention removed", whole.replace(0, kv_groups=0)),
        ("last MLP removed", whole.replace(last, mlp_width=0)),
        ("whole blocks removed", blocks),
        ("one KV group everywhere", narrow),
        ("odd ends", ends),
    ]
    while len(found) < count:
        step = (1, 32)[len(found) % 2] if layout.mlp_width >= 32 else 1
        drawn = whole
        for layer in range(layout.layers):
            width = step * int(rng.integers(1, layout.mlp_width // step + 1))
            groups = int(rng.integers(layout.kv_groups + 1))
            drawn = drawn.replace(layer, kv_groups=groups, mlp_width=0 if rng.random() < 0.2 else width)
        found.append((f"random, widths in steps of {step}", drawn))
    return found[:count]


def real_lines(count: int, rng: np.random.Generator) -> list[str]:
    """Return lines of real text: all that have letters beyond Latin ones, and of the others as many as are missing."""
    text = DATA / "text"
    lines = [line for file in ("wikitext2.test.txt", "wikitext2.valid.txt") for line in _lines(text / file)]
    lines += re.split(r"(?<=[.!?])\s+", (text / "wikipedia.txt").read_text(encoding="utf-8"))
    lines += [part for line in _lines(text / "c4.jsonl") for part in json.loads(line)["text"].splitlines()]
    lines = [line for line in dict.fromkeys(lines) if line.strip()]
    special = [line for line in lines if _OTHER_SCRIPT.search(line)]
    others = [line for line in lines if not _OTHER_SCRIPT.search(line)]
    special = special[: count // 2]
    return special + [others[place] for place in rng.choice(len(others), count - len(special), replace=False)]


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").split("\n")[:-1]


def main() -> None:
    """Measure what is missing and print all figures that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small version in a minute or two, not recorded")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=("same", "text", "speed"), action="append")
    options = parser.parse_args()
    benchmark = Benchmark(options.seed, options.quick)
    figures: dict[str, Any] = {}
    for part in options.part or ("same", "text", "speed"):
        figures |= getattr(benchmark, part)()
    dense = open_model(benchmark.name)
    details = {"seed": options.seed, "environment": describe_environment(dense), "measured": benchmark.kept}
    finish("exports", figures, details, options.quick or bool(options.part))


if __name__ == "__main__":
    main()
