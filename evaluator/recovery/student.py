"""Opening a pruned model's folder to fine-tune it, and measuring it against the dense model it comes from."""

import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from evaluator.accuracy import Reference, score_tokens
from evaluator.calibration_set import fingerprint
from evaluator.checkpoint import DenseModel, as_model_error, hash_weights, quiet_transformers
from evaluator.measurement import Measurement, Protocol
from space import Layout, ModelError

OWN_TYPE = "secateur_"  # what the `model_type` of our exports begins with


def open_student(folder: str | Path, *, device: str = "cpu") -> DenseModel:
    """Open a pruned model in the form of a dense one, in the dtype it was saved in; its layout is the dense model's.

    Args:
        folder: an export, or any folder of a causal model of a family that we know.
        device: a torch device.

    Raises:
        ModelError: the folder holds no model, or it cannot be read.
        FamilyError: its family has no record.
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise ModelError(
            f"A pruned model must be a folder with a config.json, but {str(folder)!r} holds none; give the "
            "folder of an export."
        )
    with quiet_transformers(), as_model_error(str(folder)):
        config = AutoConfig.from_pretrained(path)
        values = {**config.to_dict(), "model_type": config.model_type.removeprefix(OWN_TYPE)}
        layout = Layout.from_config(values)
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", device_map=device, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(path)
    model.eval().requires_grad_(False)
    return DenseModel(str(folder), model, tokenizer, layout, hash_weights(model))


def measure_student(
    student: DenseModel,
    reference: Reference,
    source: str,
    recovery: str,
    progress: Callable[[int], None] = lambda _: None,
) -> Measurement:
    """Measure a pruned model on a text.

    Args:
        student: in the form of a dense model.
        reference: the dense model's predictions on the text.
        source: of the text, as people call it.
        recovery: how the model was recovered, in words.
        progress: told the tokens of each batch.
    """
    tokens: Tensor = reference.tokens
    protocol = Protocol(
        weights_hash=student.weights_hash,
        text=fingerprint(tokens),
        text_source=source,
        split="report",
        tokens=reference.predicted,
        sequence_length=tokens.shape[1],
        criterion="none",
        calibration="none",
        dtype=student.dtype,
        recovery=recovery,
    )
    started = time.perf_counter()
    scores = score_tokens(student, reference, progress=progress)
    return Measurement.from_scores(scores, len(tokens), protocol, time.perf_counter() - started)
