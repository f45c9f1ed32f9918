"""Export as a Hugging Face folder: safetensors, tokenizer, and the modelling file that knows uneven layers."""

import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from evaluator import PRUNED, DenseModel, pruned_model
from evaluator.accuracy import BATCH_TOKENS
from evaluator.checkpoint import quiet_transformers
from space import ExportError

MARK = "secateur.json"  # names the folder as an export of ours, so that it may be replaced
_MODELLING_FILE = "modeling_secateur"
_PROBE_TOKENS = 128


def write_folder(
    model: PreTrainedModel, in_memory: DenseModel, target: Path, record: Mapping[str, Any], card: str
) -> None:
    """Write a pruned model as a folder, and check it in a fresh process.

    The folder is written beside and renamed into place when the check has passed. An older export of ours at `target`
    is replaced; anything else there is left alone.

    Args:
        model: the pruned model as it is to be opened.
        in_memory: what was measured, whose logits the folder must give: with the same architecture installed.
        target: folder to make.
        record: written as secateur.json.
        card: text of README.md.

    Raises:
        ExportError: the target is something else, or the folder does not give the logits of the model in memory.
    """
    if target.exists() and not (target / MARK).exists():
        raise ExportError(
            f"An export must go to a new folder or replace an export of ours, but {str(target)!r} holds something "
            "else; choose another with --out."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with quiet_transformers():
            _save(model, in_memory, beside)
        (beside / MARK).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (beside / "README.md").write_text(card, encoding="utf-8")
        verify(in_memory, beside)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    beside.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _save(model: PreTrainedModel, in_memory: DenseModel, folder: Path) -> None:
    if type(model) in [own for _, own in PRUNED.values()]:
        model.config.auto_map = {
            "AutoConfig": f"{_MODELLING_FILE}.{type(model.config).__name__}",
            "AutoModelForCausalLM": f"{_MODELLING_FILE}.{type(model).__name__}",
        }
    if in_memory.model.generation_config is not None:
        model.generation_config = in_memory.model.generation_config
    model.save_pretrained(folder)
    in_memory.tokenizer.save_pretrained(folder)
    if hasattr(model.config, "auto_map"):
        shutil.copyfile(inspect.getfile(pruned_model), folder / f"{_MODELLING_FILE}.py")


def verify(in_memory: DenseModel, folder: Path) -> None:
    """Load a folder in a fresh process and compare its logits with those of the model in memory, bit for bit.

    Raises:
        ExportError: it does not load, or a logit differs.
    """
    rng = torch.Generator().manual_seed(0)
    length = min(_PROBE_TOKENS, in_memory.longest_sequence, BATCH_TOKENS)
    tokens = torch.randint(in_memory.layout.vocabulary, (1, length), generator=rng)
    with torch.inference_mode():
        logits: Tensor = in_memory.model(tokens.to(in_memory.model.device), use_cache=False).logits.cpu()
    with tempfile.TemporaryDirectory() as scratch:
        probe = Path(scratch) / "probe.safetensors"
        save_file({"tokens": tokens, "logits": logits.contiguous()}, probe)
        command = [sys.executable, "-m", "search.export.verify", str(folder), str(probe), str(in_memory.model.device)]
        # The same packages as here, wherever they were imported from; as many threads, since sums depend on them.
        paths = [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        }
        outcome = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if outcome.returncode:
        reason = (outcome.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ExportError(
            f"An export must load in a fresh process with the logits of the model in memory, but {str(folder)!r} "
            f"does not: {reason}; report this, and keep the run folder."
        )
