"""Run in a fresh process after an export: loads the folder and compares logits, weights and what a cache changes."""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import evaluator  # noqa: F401  registers our model classes

_PROMPT, _WRITTEN = 16, 8  # tokens
# A cache sums in another order: a token that it takes may be this many units in the last place behind the best.
_UNITS = 64


def main(folder: str, probe_file: str, device: str) -> None:
    """Exit with a reason unless the folder's model gives the probe's logits, with as many weights and any cache."""
    probe = load_file(Path(probe_file))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True).eval().to(device)
    tokens = probe["tokens"].to(device)
    with torch.inference_mode():
        logits = model(tokens, use_cache=False).logits.cpu()
    difference = (logits.float() - probe["logits"].float()).abs().max().item()
    same = torch.equal(logits, probe["logits"]) if not probe["tolerance"] else difference <= probe["tolerance"]
    if not same:
        sys.exit(f"its logits differ by up to {difference:.3g}")
    found = sum(weight.numel() for weight in model.parameters())
    if found != probe["weights"]:
        sys.exit(f"it has {found:,} weights instead of {int(probe['weights']):,}")
    behind = _behind_with_cache(model, tokens[:, :_PROMPT])
    if not behind <= _UNITS * probe["unit"]:
        sys.exit(f"with a cache it writes tokens whose logits are {behind:.3g} below the best without")


def _behind_with_cache(model: Any, prompt: Tensor) -> float:
    """Return how far tokens that are written with a cache are behind the best, by logits without one."""
    cache, text, rest = None, prompt, prompt
    with torch.inference_mode():
        for _ in range(_WRITTEN):
            found = model(rest, past_key_values=cache, use_cache=True)
            cache, rest = found.past_key_values, found.logits[:, -1:].argmax(-1)
            text = torch.cat([text, rest], dim=1)
        logits = model(text[:, :-1], use_cache=False).logits[0, prompt.shape[1] - 1 :].float()
    taken = logits.gather(1, text[0, prompt.shape[1] :, None])[:, 0]
    return float((logits.amax(1) - taken).max())


if __name__ == "__main__":
    main(*sys.argv[1:])
