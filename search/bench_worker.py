"""A model in a process of its own, timed on demand, for `search.bench`: its memory is its own, and it waits its turn.

Speaks JSON lines: one when it is ready, then one for each line that it reads, until there is no more to read.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Measure = Callable[[], tuple[float, float]]  # seconds of reading the prompt, and of writing the tokens behind it


def main(asked: str) -> None:
    """Serve timings of what a JSON object names: `model`, `prompt`, `tokens`, `threads`, `dtype`."""
    settings = json.loads(asked)
    opened = _gguf if settings["model"].endswith(".gguf") else _transformers
    measure = opened(**settings)
    measure()  # the first pass of a shape takes longer
    _say({"ready": True})
    for _ in sys.stdin:
        prefill, decode = measure()
        _say({"prefill": prefill, "decode": decode, "peak_bytes": _peak_bytes()})


def _peak_bytes() -> int:
    """Return what this process ever held, its libraries and the weights that it mapped included."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    # Elsewhere what counts begins with what the process had that started this one.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _say(values: dict[str, Any]) -> None:
    print(json.dumps(values), flush=True)


def _gguf(model: str, prompt: int, tokens: int, threads: int, dtype: str) -> Measure:
    from search.export.llamacpp import LlamaCpp

    opened = LlamaCpp(Path(model), prompt + tokens + 1, threads)
    del dtype  # a file has its own
    return lambda: opened.seconds([*range(10, 10 + prompt)], tokens)


def _transformers(model: str, prompt: int, tokens: int, threads: int, dtype: str) -> Measure:
    import torch
    from transformers import AutoModelForCausalLM

    import evaluator  # noqa: F401  registers our model classes
    from evaluator.checkpoint import quiet_transformers

    torch.set_num_threads(threads)
    with quiet_transformers():
        kept: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), use_safetensors=True)
    given = torch.arange(10, 10 + prompt)[None] % kept.config.vocab_size
    kept.eval()

    def measure() -> tuple[float, float]:
        with torch.inference_mode():
            started = time.perf_counter()
            found = kept(given, use_cache=True, logits_to_keep=1)
            read = time.perf_counter()
            for _ in range(tokens):
                next_token = found.logits[:, -1:].argmax(-1)
                found = kept(next_token, past_key_values=found.past_key_values, use_cache=True)
            return read - started, time.perf_counter() - read

    return measure


if __name__ == "__main__":
    main(sys.argv[1])
