"""Run in a fresh process after an export: loads the folder and compares its logits with stored ones, bit for bit."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import evaluator  # noqa: F401  registers our model classes


def main(folder: str, probe_file: str, device: str) -> None:
    """Exit with a reason unless the folder's model gives the probe's logits."""
    probe = load_file(Path(probe_file))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True).eval().to(device)
    with torch.inference_mode():
        logits = model(probe["tokens"].to(device), use_cache=False).logits.cpu()
    if not torch.equal(logits, probe["logits"]):
        difference = (logits.float() - probe["logits"].float()).abs().max().item()
        sys.exit(f"its logits differ by up to {difference:.3g}")


if __name__ == "__main__":
    main(*sys.argv[1:])
