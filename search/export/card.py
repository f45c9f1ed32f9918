"""The card of an export: what was removed where, what it costs, how good it is by which measurement, how to load it.

Everything on it is said by secateur.json, so a card can be made anew when the model goes into another format.
"""

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from evaluator import PACKAGED_MODELS
from search.comparison import BASELINES, METRIC_NAMES
from search.config import WHERE, RunConfig
from search.export.picture import PICTURE
from space import METRICS, Architecture, Layout

_SHOWN = ("uniform", "uniform_whole_ends", "block_influence", "global_threshold", "owl")  # of the baselines


def record_of_run(best: Mapping[str, Any], config: RunConfig) -> dict[str, Any]:
    """Return what an export tells of the run that it comes from.

    Args:
        best: the content of best.json; of a member of the Pareto set with its own architecture, cost and measurements.
        config: the run's settings.
    """
    taken = ("model", "weights_hash", "seed", "budgets", "layout", "fingerprint", "architecture", "cost", "dense_cost")
    record = {key: best[key] for key in (*taken, "measured", "texts", "environment")}
    record["predicted"] = best.get("predicted")
    record["aim"] = best.get("aim")  # whose items are not to be reported, wherever the export goes
    record["baselines"] = {
        name: {key: own[key] for key in ("fingerprint", "cost", "measured", "winner_less_this") if key in own}
        for name, own in best["baselines"].items()
    }
    record["calibration"] = {
        key: value for key, value in (best.get("calibration") or {}).items() if key in ("hash", "recipe", "seed")
    }
    protocols = best.get("protocols") or {}
    record["criterion"] = next((own["criterion"] for own in protocols.values()), None)
    record["settings"] = json.loads(config.model_dump_json(by_alias=True, exclude={*WHERE, "database"}))
    record["command"] = shlex.join(
        ["secateur", "run", "--model", best["model"]]
        + [word for budget in config.budget for word in ("--budget", budget)]
        + (["--seed", str(best["seed"])] if best["seed"] else [])
    )
    record["licence"] = licence_of(best["model"])
    return record


def licence_of(model: str) -> str | None:
    """Return the licence of a base model where it is known here: of a built-in one, or by the card in its folder."""
    if model in PACKAGED_MODELS:
        return PACKAGED_MODELS[model].licence
    card = Path(model).expanduser() / "README.md"
    if not card.is_file():
        return None
    head = card.read_text(encoding="utf-8", errors="replace").split("---")
    if len(head) < 3 or head[0].strip():
        return None
    try:
        found = yaml.safe_load(head[1])
    except yaml.YAMLError:
        return None
    return str(found["license"]) if isinstance(found, dict) and found.get("license") else None


def card_of(record: Mapping[str, Any]) -> str:
    """Return the text of README.md.

    Args:
        record: what secateur.json says; whatever it lacks is left out.
    """
    return "\n".join([*_front_matter(record), *_title(record), *_sections(record)]).rstrip("\n") + "\n"


def _front_matter(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a hub reads."""
    pruned, gguf = bool(record.get("architecture")), record.get("format") == "gguf"
    values: dict[str, Any] = {"tags": [*["pruned"] * pruned, "secateur", *["gguf"] * gguf]}
    values["pipeline_tag"] = "text-generation"
    if record.get("licence"):
        values["license"] = record["licence"]
    if record.get("model") and not Path(record["model"]).is_absolute():
        values["base_model"] = record["model"]
    if record.get("format") == "huggingface":
        values["library_name"] = "transformers"
    yield from ("---", yaml.safe_dump(values, sort_keys=False).rstrip("\n"), "---", "")


def _title(record: Mapping[str, Any]) -> Iterator[str]:
    name = Path(record.get("model") or "A model").name
    cost, dense = record.get("cost"), record.get("dense_cost")
    share = f" to {cost['parameters'] / dense['parameters']:.1%} of its decoder's parameters" if cost and dense else ""
    yield from (f"# {name}" + f", pruned{share}" * bool(record.get("architecture")), "")
    yield "Made by [Secateur](https://pypi.org/project/secateur/): an architecture search with an accuracy predictor."
    yield ""


def _sections(record: Mapping[str, Any]) -> Iterator[str]:
    for section in (_removed, _costs, _quality, _recovered, _merged, _loading, _made):
        lines = list(section(record))
        if lines:
            yield from (*lines, "")


def _removed(record: Mapping[str, Any]) -> Iterator[str]:
    if not record.get("layout") or not record.get("architecture"):
        return
    layout, layers = Layout.from_dict(record["layout"]), Architecture.from_dict(record["architecture"]).layers
    yield from ("## What was removed", "")
    yield f"![What is kept of each layer's attention and MLP]({PICTURE})"
    gone = [
        (name, [index for index, layer in enumerate(layers) if not getattr(layer, gene)])
        for name, gene in (("attention", "kv_groups"), ("MLP", "mlp_width"))
    ]
    yield ""
    for name, where in gone:
        yield f"- {name} removed in layers: {', '.join(map(str, where)) or 'none'}"
    groups, width = sum(layer.kv_groups for layer in layers), sum(layer.mlp_width for layer in layers)
    yield f"- KV groups kept: {groups:,} of {layout.layers * layout.kv_groups:,}"
    yield f"- MLP channels kept: {width:,} of {layout.layers * layout.mlp_width:,}"
    if any(layer.attention_sparsity or layer.mlp_sparsity for layer in layers):
        yield "- some of the weights that are kept are zeros; they take their memory and time as others do"


def _costs(record: Mapping[str, Any]) -> Iterator[str]:
    cost, dense = record.get("cost"), record.get("dense_cost")
    if not cost or not dense:
        return
    yield from ("## Cost", "", "| | dense | this model | share |", "| --- | --- | --- | --- |")
    for metric in METRICS:
        share = cost[metric] / dense[metric]
        yield f"| {METRIC_NAMES[metric]} | {dense[metric]:,} | {cost[metric]:,} | {share:.1%} |"
    for name, file in (record.get("files") or {}).items():
        if name.endswith((".safetensors", ".gguf")):
            yield f"| size of {name}, bytes | | {file['bytes']:,} | |"


def _quality(record: Mapping[str, Any]) -> Iterator[str]:
    measured, baselines = record.get("measured"), record.get("baselines")
    if not measured or not baselines:
        return
    # Members of a Pareto set that did not win were not measured on the report text.
    split = "report" if "report" in measured else "validate"
    text = (record.get("texts") or {}).get(split, split)
    apart = ", which nothing was learned from or chosen by" if split == "report" else ", which the finalists met too"
    yield from ("## Quality", "", f"Measured on {text}{apart}; ± is one standard error.")
    yield from (
        "",
        "| | decoder parameters | perplexity | KL from the dense model | this model's perplexity against it |",
    )
    yield "| --- | --- | --- | --- | --- |"
    for name in ("dense", *_SHOWN):
        if name in baselines and split in baselines[name]["measured"]:
            yield _quality_row(BASELINES[name], baselines[name], split)
    yield _quality_row("**this model**", record, split)
    predicted = record.get("predicted")
    if predicted and "search" in measured:
        yield ""
        yield (
            f"Predicted before it was measured, on the search text: {predicted['target']} {predicted['value']:.3f} "
            f"({predicted['lower']:.3f} to {predicted['upper']:.3f} with 90 %); measured there: "
            f"{measured['search']['kl']:.3f} ± {measured['search']['kl_standard_error']:.3f}."
        )


def _quality_row(label: str, model: Mapping[str, Any], split: str) -> str:
    found = model["measured"][split]
    less = (model.get("winner_less_this") or {}).get(split)
    change = f"{less['perplexity_change']:+.1%} ± {less['perplexity_change_standard_error']:.1%}" if less else ""
    return (
        f"| {label} | {model['cost']['parameters']:,} | {found['perplexity']:.2f} ± "
        f"{found['perplexity_standard_error']:.2f} | {found['kl']:.3f} ± {found['kl_standard_error']:.3f} | {change} |"
    )


def _recovered(record: Mapping[str, Any]) -> Iterator[str]:
    found = record.get("recovery")
    if not found or "recipe" not in found:
        return
    recipe = found["recipe"]
    how = f"low-rank additions of rank {recipe['rank']}" if recipe["rank"] else "all weights"
    before = " What is measured above was measured before." if any(_quality(record)) else ""
    yield from ("## Recovery", "")
    yield (
        f"Fine-tuned for {found['steps']} steps of about {recipe['step_tokens']} tokens ({how}, learning rate "
        f"{recipe['learning_rate']:g}, {recipe['distillation']:.0%} of the loss distilled from the dense model); the "
        f"weights are those of step {found['best_step']}.{before}"
    )
    if "measured" in found:
        measured = found["measured"]
        yield from (
            "",
            f"| perplexity ({measured['text']}) | dense | pruned | recovered |",
            "| --- | --- | --- | --- |",
        )
        yield (
            "| | "
            + " | ".join(
                f"{measured[name]['perplexity']:.2f} ± {measured[name]['perplexity_standard_error']:.2f}"
                for name in ("dense", "before", "after")
            )
            + " |"
        )


def _merged(record: Mapping[str, Any]) -> Iterator[str]:
    if merged := record.get("merged"):
        names = ", ".join(Path(folder).resolve().name for folder in merged["of"])
        yield from ("## Merged", "", f"{merged['method']} of {names}.")


def _loading(record: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## How to load it", "")
    if record.get("format") == "gguf":
        yield from _loading_gguf(record)
        return
    own = record.get("form") == "own code"
    yield "```python"
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer"
    if own:
        yield "import evaluator  # of secateur; elsewhere pass trust_remote_code=True to both, the folder has its code"
    yield ""
    yield 'model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")'
    yield 'tokenizer = AutoTokenizer.from_pretrained("FOLDER")'
    yield "```"
    if record.get("form") == "padded":
        yield ""
        yield (
            "Its layers are padded with zeros to the widest, so that the stock class of transformers and whatever "
            "reads it run this model; it takes the memory and time of a model that wide. The export with its own code "
            "and the GGUF export are as small and fast as the cost above says."
        )


def _loading_gguf(record: Mapping[str, Any]) -> Iterator[str]:
    names = [name for name in record.get("files") or {} if name.endswith(".gguf")]
    name = names[0] if names else "FILE.gguf"
    yield from ("```sh", f"llama-cli -m {name}", f"llama-server -m {name}", "```", "")
    yield f"llama.cpp runs it as `{record['llama_cpp']}`."
    yield from ("", "| file | bytes | KL from the weights before they were stored so |", "| --- | --- | --- |")
    for each in names:
        check = record["checks"].get(each)
        kl = f"{check['kl']:.2g} nats over 13 positions" if check else "not opened here: llama.cpp was not installed"
        yield f"| {each} | {record['files'][each]['bytes']:,} | {kl} |"


def _made(record: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## How it was made", "")
    if record.get("command"):
        yield from ("```sh", record["command"], "```", "", "All settings are in secateur.json (`settings`).", "")
    if record.get("criterion"):
        yield f"- pruning criterion: {record['criterion']}"
    calibration = record.get("calibration") or {}
    if calibration.get("hash"):
        sources = ", ".join(f"{name} ({weight:.0%})" for name, weight in (calibration.get("recipe") or {})["sources"])
        yield f"- calibration set {calibration['hash']}: {sources}"
    if record.get("model"):
        known_hash = f", SHA-256 of its weights {record['weights_hash']}…" if "weights_hash" in record else ""
        yield f"- base model: {record['model']}{known_hash}"
    yield f"- licence of the base model: {record.get('licence') or 'not known here; see where it comes from'}"
    environment = record.get("environment") or {}
    known = [
        f"{name} {environment[name]}" for name in ("secateur", "git", "torch", "transformers") if name in environment
    ]
    if known:
        yield f"- made with {', '.join(known)}"
    for name, file in (record.get("files") or {}).items():
        if name.endswith((".safetensors", ".gguf")):
            yield f"- SHA-256 of {name}: {file['sha256']}"
