"""A pruned model as the draft of its dense model, on instructions or on beginnings of a text."""

from pathlib import Path
from typing import Any

import numpy as np

from evaluator import DenseModel, open_model
from evaluator.openings import OPENINGS
from evaluator.recovery.drafting import measure_drafting
from evaluator.recovery.examples import check_same_tokenizer, encode_prompt, read_examples
from evaluator.recovery.student import open_student
from evaluator.sources import is_hub, tokenise
from search.environment import describe_environment
from search.export.place import record_of
from search.progress import Reporter
from search.recovery import dtype_name
from space import SettingError, TextError

_BEGINNING = 64  # tokens of a text that are continued
_SPARE = 16  # times the beginnings needed that are drawn from of a hub's text, which is read no further


def draft_folder(
    folder: Path,
    dense_name: str | None,
    prompts: str | None,
    count: int,
    tokens: int,
    draft_tokens: int,
    seed: int,
    device: str,
    reporter: Reporter,
) -> dict[str, Any]:
    """Measure a pruned model's folder as the draft of its dense model.

    Args:
        folder: of the pruned model.
        dense_name: the dense model; None takes what the export says.
        prompts: examples (see `read_examples`), or a text; None takes openings of our own.
        count: prompts to draw.
        tokens: to write for each.
        draft_tokens: that the draft proposes at once.
        seed: of the draw.
        device: a torch device.
        reporter: tells a person about the progress.

    Raises:
        SettingError: the dense model is not known.
        ModelError: a model cannot be opened, or the two have different vocabularies.
        TextError: there are too few prompts.
    """
    student = open_student(folder, device=device)
    name = dense_name or record_of(folder).get("model")
    if name is None:
        raise SettingError(
            f"The dense model must be known to draft for it, but {str(folder)!r} names none; add --dense."
        )
    dense = open_model(name, dtype=dtype_name(student), device=device)
    check_same_tokenizer(dense.tokenizer, student.tokenizer, dense.name, student.name)
    ids = prompt_ids(dense, prompts, count, seed)
    with reporter.stage("Writing with and without a draft", len(ids), "prompts") as advance:
        found = measure_drafting(dense, student.model, ids, tokens, draft_tokens, advance)
    return {**found.to_dict(), "dense": dense.name, "draft": str(folder), "environment": describe_environment(dense)}


def prompt_ids(dense: DenseModel, source: str | None, count: int, seed: int) -> list[list[int]]:
    """Return the token ids of prompts: instructions as the model is talked to, or beginnings of a text.

    Raises:
        TextError: there are too few.
    """
    rng = np.random.default_rng([seed, 43])
    if source is None:
        start = dense.tokenizer.bos_token_id
        begin = [] if start is None else [start]
        texts = [OPENINGS[index] for index in rng.permutation(len(OPENINGS))[:count].tolist()]
        found = [begin + dense.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    elif source.endswith((".jsonl", ".parquet")) or source == "gsm8k" or source.startswith("hub:"):
        found = [encode_prompt(dense.tokenizer, each.instruction) for each in read_examples(source, count, seed)]
    else:
        stream = tokenise(dense, source, _SPARE * count * _BEGINNING if is_hub(source) else None)
        places = rng.permutation(len(stream) // _BEGINNING)[:count] * _BEGINNING
        found = [stream[place : place + _BEGINNING].tolist() for place in places.tolist()]
    if len(found) < count:
        raise TextError(
            f"There must be {count} prompts to continue, but {source or 'our own openings'} gave {len(found)}; give "
            "more text, or lower --count."
        )
    return found
