"""Exporting the winner of a run or another of its Pareto set, and hearing it speak."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluator import Evaluator, standalone
from evaluator.checkpoint import quiet_transformers
from search.export import huggingface
from search.folder import RunFolder
from search.session import open_evaluator
from space import Architecture, ModelError, SettingError

FORMATS: dict[str, Callable[..., None]] = {"huggingface": huggingface.write_folder}


def export_best(
    run_folder: str | Path,
    format: str = "huggingface",  # noqa: A002  the house's name for it
    target: str | Path | None = None,
    member: str | None = None,
) -> Path:
    """Export the winner of a finished run, or another member of its Pareto set.

    Args:
        run_folder: what `run_search` wrote.
        format: a key of `FORMATS`.
        target: folder to make; None takes export/ in the run folder, export-FINGERPRINT/ for a member.
        member: fingerprint of a member of the Pareto set; None exports the winner.

    Returns:
        The folder.

    Raises:
        SettingError: the format or the member is unknown.
        RunFolderError: the run is not finished or is damaged.
        ExportError: the target holds something else, or the export did not verify.
    """
    if format not in FORMATS:
        raise SettingError(f"An export's format must be one of {', '.join(FORMATS)}, but is {format!r}; choose one.")
    run = RunFolder(Path(run_folder))
    best = run.best()
    if member is not None:
        best |= _member(best, member)
    folder = Path(target) if target else run.export if member is None else run.export.with_name(f"export-{member}")
    with run.locked(), open_evaluator(run) as judge:
        export_installed(judge, best, folder, format)
    return folder


def _member(best: Mapping[str, Any], fingerprint: str) -> dict[str, Any]:
    """Return what best.json says of a member of the Pareto set."""
    members = {each["fingerprint"]: each for each in (best.get("pareto") or {"members": []})["members"]}
    if fingerprint not in members:
        known = f"its members are {', '.join(members)}" if members else "the run has none; search with --against"
        raise SettingError(
            f"--member must be a fingerprint of the run's Pareto set, but {fingerprint!r} is none: {known}."
        )
    return {key: members[fingerprint][key] for key in ("fingerprint", "architecture", "cost", "measured")}


def export_installed(
    judge: Evaluator,
    best: dict[str, Any],
    folder: Path,
    format: str = "huggingface",  # noqa: A002
) -> None:
    """Export the architecture of a best.json with an evaluator that holds its model."""
    architecture = Architecture.from_dict(best["architecture"])
    judge.surgeon.install(architecture)
    record = {key: best[key] for key in ("model", "weights_hash", "architecture", "cost", "measured", "environment")}
    FORMATS[format](standalone(judge.dense, architecture), judge.dense, folder, record, _card(best))


def _card(best: dict[str, Any]) -> str:
    share = best["cost"]["parameters"] / best["dense_cost"]["parameters"]
    # Members of a Pareto set that did not win were not measured on the report text.
    split = "report" if "report" in best["measured"] else "validate"
    measured = best["measured"][split]
    dense = best["baselines"]["dense"]["measured"][split]
    return f"""# {best["model"]}, pruned to {share:.1%} of its decoder's parameters

Found by [Secateur](https://pypi.org/project/secateur/): an architecture search with an accuracy predictor.

| | dense | this model |
| --- | --- | --- |
| decoder parameters | {best["dense_cost"]["parameters"]:,} | {best["cost"]["parameters"]:,} |
| perplexity ({best["texts"][split]}) | {dense["perplexity"]:.2f} ± {dense["perplexity_standard_error"]:.2f} | \
{measured["perplexity"]:.2f} ± {measured["perplexity_standard_error"]:.2f} |

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
import evaluator  # of secateur; elsewhere pass trust_remote_code=True to both, the folder carries its code

model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```
"""


def generate_text(folder: str | Path, prompt: str, tokens: int = 60, seed: int | None = None) -> str:
    """Continue a prompt with an exported model.

    Args:
        folder: an export, or any causal model's folder.
        prompt: text to continue.
        tokens: to add.
        seed: samples with this seed; None takes the likeliest token each time.

    Raises:
        ModelError: the folder holds no model.
    """
    if not (Path(folder) / "config.json").is_file():
        raise ModelError(
            f"A model folder must hold a config.json, but {str(folder)!r} does not; give the folder of an export."
        )
    with quiet_transformers():
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
