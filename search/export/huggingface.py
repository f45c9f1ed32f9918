"""Export as a Hugging Face folder: safetensors, tokenizer, and the modelling file that knows uneven layers.

Where all layers are alike, or whole blocks are gone, the folder is one of the family's stock class and needs no file.
"""

import inspect
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
from evaluator.plain import even, padded
from search.export import place
from search.export.card import card_of
from search.export.picture import PICTURE, draw_layers
from space import ExportError
from space.cost import BYTES_PER_VALUE

_MODELLING_FILE = "modeling_secateur"
_PROBE_TOKENS = 128
# Padded layers sum zeros in another order: so many units in the last place of the largest logit may differ.
_UNITS_PADDED = 64


def write_folder(
    model: PreTrainedModel, in_memory: DenseModel, target: Path, record: Mapping[str, Any], pad: bool = False
) -> None:
    """Write a pruned model as a folder, and check it in a fresh process.

    Args:
        model: the pruned model as it is to be opened.
        in_memory: what was measured, whose logits the folder must give: with the same architecture installed.
        target: folder to make; an older export of ours there is replaced.
        record: written as secateur.json, and told on the card.
        pad: whether uneven layers are padded with zeros, so that the family's stock class runs them.

    Raises:
        ExportError: the target is something else, the model cannot be padded, or the folder does not give the logits
            of the model in memory.
    """
    own = _is_ours(model)
    with quiet_transformers():
        plain = even(model) if own else None
        form = "plain" if plain is not None or not own else "padded" if pad else "own code"
        chosen = plain if plain is not None else padded(model) if form == "padded" else model

    if form != "padded":
        check_promise(record, _weights(chosen))

    def fill(folder: Path) -> dict[str, Any]:
        with quiet_transformers():
            _save(chosen, in_memory, folder)
        draw_layers(record, folder / PICTURE)
        verify(in_memory, folder, _weights(chosen), exact=form != "padded")
        return {"format": "huggingface", "form": form, "weights": _weights(chosen)}

    place.write(target, fill, record, card_of)


def check_promise(record: Mapping[str, Any], weights: int) -> None:
    """Check that a model has as many weights as its record promises, where it does.

    Args:
        record: with the closed-form cost.
        weights: of the model.

    Raises:
        ExportError: it has more or fewer.
    """
    promised = (record.get("cost") or {}).get("weight_bytes")
    if promised is not None and promised != BYTES_PER_VALUE * weights:
        raise ExportError(
            f"A model must have the {promised // BYTES_PER_VALUE:,} weights that its cost counts, but has {weights:,}; "
            "report this, and keep the run folder."
        )


def _is_ours(model: PreTrainedModel) -> bool:
    return type(model) in [kind for _, kind in PRUNED.values()]


def _weights(model: PreTrainedModel) -> int:
    """Return how many weights a model has, shared ones once."""
    return sum(weight.numel() for weight in model.parameters())


def _save(model: PreTrainedModel, in_memory: DenseModel, folder: Path) -> None:
    own = _is_ours(model)
    if own:
        model.config.auto_map = {
            "AutoConfig": f"{_MODELLING_FILE}.{type(model.config).__name__}",
            "AutoModelForCausalLM": f"{_MODELLING_FILE}.{type(model).__name__}",
        }
    if in_memory.model.generation_config is not None:
        model.generation_config = in_memory.model.generation_config
    model.save_pretrained(folder)
    in_memory.tokenizer.save_pretrained(folder)
    if own:
        shutil.copyfile(inspect.getfile(pruned_model), folder / f"{_MODELLING_FILE}.py")


def verify(in_memory: DenseModel, folder: Path, weights: int, exact: bool = True) -> None:
    """Load a folder in a fresh process: its logits must be those of the model in memory, its cache must change nothing.

    Args:
        in_memory: the model, with the architecture installed.
        folder: to load.
        weights: how many it must hold.
        exact: whether logits must be equal bit for bit.

    Raises:
        ExportError: it does not load, a logit differs, or there are more or fewer weights.
    """
    rng = torch.Generator().manual_seed(0)
    length = min(_PROBE_TOKENS, in_memory.longest_sequence, BATCH_TOKENS)
    tokens = torch.randint(in_memory.layout.vocabulary, (1, length), generator=rng)
    with torch.inference_mode():
        logits: Tensor = in_memory.model(tokens.to(in_memory.model.device), use_cache=False).logits.cpu()
    unit = torch.finfo(logits.dtype).eps * logits.abs().max().float()
    with tempfile.TemporaryDirectory() as scratch:
        probe = Path(scratch) / "probe.safetensors"
        save_file(
            {
                "tokens": tokens,
                "logits": logits.contiguous(),
                "weights": torch.tensor(weights),
                "tolerance": torch.tensor(0.0) if exact else _UNITS_PADDED * unit,
                "unit": unit,
            },
            probe,
        )
        command = [sys.executable, "-m", "search.export.verify", str(folder), str(probe), str(in_memory.model.device)]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False, env=fresh_environment())
    if outcome.returncode:
        reason = (outcome.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ExportError(
            f"An export must load in a fresh process with the logits of the model in memory, but {str(folder)!r} "
            f"does not: {reason}; report this, and keep the run folder."
        )


def fresh_environment() -> dict[str, str]:
    """Return the environment of a process that checks an export."""
    # The same packages as here, wherever they were imported from; as many threads, since sums depend on them.
    paths = [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
