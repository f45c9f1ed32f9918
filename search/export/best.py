"""Exporting the winner of a run or another of its Pareto set, and hearing it speak."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from evaluator import DenseModel, Evaluator, standalone
from evaluator.checkpoint import as_model_error, model_folder, quiet_transformers
from evaluator.recovery.student import open_student
from search.config import RunConfig
from search.export import gguf, huggingface, place
from search.export.card import licence_of, record_of_run
from search.export.place import record_of
from search.folder import RunFolder
from search.session import open_evaluator
from space import Architecture, SettingError

Write = Callable[[PreTrainedModel, DenseModel, Path, Mapping[str, Any]], None]
FORMATS: dict[str, Callable[..., None]] = {
    "huggingface": huggingface.write_folder,
    "padded": partial(huggingface.write_folder, pad=True),
    "gguf": gguf.write_gguf,
}


def export_best(
    source: str | Path,
    format: str = "huggingface",  # noqa: A002  the house's name for it
    target: str | Path | None = None,
    member: str | None = None,
    types: Sequence[str] = (),
) -> Path:
    """Export the winner of a finished run, another member of its Pareto set, or a model that was exported before.

    Args:
        source: what `run_search` wrote, or the folder of an export, recovered or not.
        format: a key of `FORMATS`.
        target: folder to make; None takes export/ in the run folder (export-gguf/ of GGUF, export-FINGERPRINT/ of a
            member), beside another folder its name with the format.
        member: fingerprint of a member of the Pareto set; None exports the winner.
        types: of the files of a GGUF export, keys of `STORAGE_TYPES`; none of them takes f16.

    Returns:
        The folder.

    Raises:
        SettingError: the format, the member or a type is unknown.
        RunFolderError: the run is not finished or is damaged.
        ModelError: the source is no run and holds no model.
        ExportError: the target holds something else, the format has no such model, or the export did not verify.
    """
    write = _writer(format, types)
    run = RunFolder(Path(source))
    if not run.config_file.exists() and (run.path / "config.json").is_file():
        return _export_again(run.path, format, write, Path(target) if target else None, member)
    best = run.best()
    if member is not None:
        best |= _member(best, member)
    name = "export" + (f"-{member}" if member else "") + ("" if format == "huggingface" else f"-{format}")
    folder = Path(target) if target else run.export.with_name(name)
    place.check_target(folder)
    with run.locked(), open_evaluator(run) as judge:
        export_installed(judge, best, run.config(), folder, write)
    return folder


def _writer(name: str, types: Sequence[str]) -> Write:
    if name not in FORMATS:
        raise SettingError(f"An export's format must be one of {', '.join(FORMATS)}, but is {name!r}; choose one.")
    if types and name != "gguf":
        raise SettingError(f"--type is of GGUF files, but the format is {name}; leave it out, or add --format gguf.")
    return partial(FORMATS[name], types=types) if types else FORMATS[name]


def _export_again(folder: Path, name: str, write: Write, target: Path | None, member: str | None) -> Path:
    """Bring a model that was exported before, or a recovered one, into another format."""
    if member is not None:
        raise SettingError(f"--member is of a run with a Pareto set, but {str(folder)!r} is a model; leave it out.")
    named = folder if folder.name.strip(".") else folder.resolve()  # not where it is . or ..
    target = target or named.with_name(f"{named.name}-{name}")
    place.check_target(target)
    student = open_student(folder)
    record = {"licence": licence_of(str(folder)), "model": named.name, **record_of(folder)}
    write(student.model, student, target, record)
    return target


def _member(best: Mapping[str, Any], fingerprint: str) -> dict[str, Any]:
    """Return what best.json says of a member of the Pareto set."""
    members = {each["fingerprint"]: each for each in (best.get("pareto") or {"members": []})["members"]}
    if fingerprint not in members:
        known = f"its members are {', '.join(members)}" if members else "the run has none; search with --against"
        raise SettingError(
            f"--member must be a fingerprint of the run's Pareto set, but {fingerprint!r} is none: {known}."
        )
    own = {key: members[fingerprint][key] for key in ("fingerprint", "architecture", "cost", "measured")}
    return {**own, "predicted": None}


def export_installed(
    judge: Evaluator,
    best: Mapping[str, Any],
    config: RunConfig,
    folder: Path,
    write: Write = huggingface.write_folder,
) -> None:
    """Export the architecture of a best.json with an evaluator that holds its model.

    Args:
        judge: the evaluator.
        best: the content of best.json.
        config: the run's settings.
        folder: to make.
        write: of the format.
    """
    architecture = Architecture.from_dict(best["architecture"])
    judge.surgeon.install(architecture)
    write(standalone(judge.dense, architecture), judge.dense, folder, record_of_run(best, config))


def generate_text(model_name: str | Path, prompt: str, tokens: int = 60, seed: int | None = None) -> str:
    """Continue a prompt with an exported model, or the dense one that it was made of.

    Args:
        model_name: an export, or any causal model as `open_model` takes it.
        prompt: text to continue.
        tokens: to add.
        seed: samples with this seed; None takes the likeliest token each time.

    Raises:
        ModelError: there is no such model.
    """
    folder = model_folder(str(model_name))
    with quiet_transformers(), as_model_error(str(model_name)):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=True)
    sampling: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.2}
    with torch.random.fork_rng(), torch.inference_mode():
        if seed is not None:
            torch.manual_seed(seed)
            sampling = {"do_sample": True, "temperature": 0.8, "top_k": 50, "repetition_penalty": 1.1}
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=tokens,
            pad_token_id=tokenizer.eos_token_id or 0,
            **sampling,
        )
    return str(tokenizer.decode(output[0], skip_special_tokens=True))
