"""Run in a fresh process after an export: asks llama.cpp what a GGUF file's model and tokenizer say."""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from search.export.llamacpp import LlamaCpp
from space import ExportError


def main(request: str, answer: str) -> None:
    """Write what is asked for in a JSON file as tensors into another."""
    asked = json.loads(Path(request).read_text(encoding="utf-8"))
    prompts, text = asked["prompts"], list(asked["prompts"][-1])
    context = len(text) + asked["written"] + 1
    try:
        opened = LlamaCpp(Path(asked["file"]), max(context, 256), asked["threads"], exact=True)
    except ExportError as error:
        sys.exit(str(error))
    size, plain = asked["vocabulary"], asked["plain"]
    found = {"fresh": np.stack([opened.log_probabilities(prompt, size, plain) for prompt in prompts])}
    cached = []
    for _ in range(asked["written"]):
        cached.append(opened.log_probabilities(text, size, plain, cached=True))
        text.append(int(cached[-1].argmax()))
    found |= {"cached": np.stack(cached), "text": np.array(text, dtype=np.int64)}
    found |= {
        f"line {number}": np.array(opened.tokenised(line), dtype=np.int64) for number, line in enumerate(asked["lines"])
    }
    save_file(found, answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
