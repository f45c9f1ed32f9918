"""Instruction data to fine-tune on: read from a file or the hub, and encoded the way the model is talked to."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from evaluator.sources import HUB_PREFIX, hub_rows
from space import ModelError, SettingError, TextError

_HUB_SETS = {"gsm8k": "openai/gsm8k:main:train"}
_HUB_ROWS = 20_000  # that a sample is drawn from at most, so that a large data set is not read to its end
# Names that the field gives to an instruction and its answer.
_PAIRS = (
    ("instruction", "answer"),
    ("question", "answer"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "response"),
)
_EXPECTED = f"{', '.join(' + '.join(pair) for pair in _PAIRS)} or messages"


@dataclass(frozen=True, slots=True)
class Example:
    """An instruction and how it is answered."""

    instruction: str
    answer: str


@dataclass(frozen=True, slots=True)
class Sample:
    """An example as token ids, of which those from index `first` on are learned."""

    tokens: tuple[int, ...]
    first: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """Samples in the order of their examples, and how many examples were too long to be among them."""

    samples: tuple[Sample, ...]
    too_long: int


def read_examples(source: str, limit: int | None = None, seed: int = 0) -> list[Example]:
    """Read instructions and answers, by any of the names that are common for them.

    Args:
        source: a .jsonl or .parquet file, `gsm8k`, or `hub:DATASET[:CONFIG[:SPLIT]]`.
        limit: examples to draw at random, left in their order; None for all. A smaller draw of the same seed is part
            of a larger one. Of a data set of the hub, the first 20,000 rows are drawn from.
        seed: of the draw.

    Raises:
        TextError: the source cannot be read, or any row is not an example.
        SettingError: the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise SettingError(f"limit must be at least 1 example, but is {limit}; change it, or leave it out for all.")
    found = [_example(row, place) for place, row in _rows(source, limit)]
    if not found:
        raise TextError(f"Instruction data must hold at least one example, but {source!r} holds none; give another.")
    if limit is None or limit >= len(found):
        return found
    drawn = np.random.default_rng(seed).permutation(len(found))[:limit]
    return [found[index] for index in sorted(drawn)]


def _rows(source: str, limit: int | None) -> Iterator[tuple[str, Any]]:
    """Yield where each row is, in words, and the row."""
    if source in _HUB_SETS or source.startswith(HUB_PREFIX):
        name = _HUB_SETS.get(source, source.removeprefix(HUB_PREFIX))
        wanted = None if limit is None else max(limit, _HUB_ROWS)
        for number, row in enumerate(islice(hub_rows(source, name), wanted), 1):
            yield f"row {number} of {source!r}", row
        return
    path = Path(source)
    if path.suffix not in (".jsonl", ".parquet"):
        raise TextError(
            f"Instruction data must be a .jsonl or .parquet file, {' or '.join(_HUB_SETS)} or hub:DATASET, but is "
            f"{source!r}; rename or convert it."
        )
    if not path.is_file():
        raise TextError(f"A file of instruction data must exist, but there is no {source!r}; check the path.")
    yield from _json_rows(path) if path.suffix == ".jsonl" else _table_rows(path)


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        reason = "is not" if isinstance(error, UnicodeDecodeError) else f"gave: {error.strerror}"
        raise TextError(
            f"A .jsonl file must be readable UTF-8 text, but {str(path)!r} {reason}; convert or repair it."
        ) from None
    for number, line in enumerate(content.split("\n"), 1):  # JSON allows the other ends of lines inside of strings
        if not line.strip():
            continue
        place = f"line {number} of {str(path)!r}"
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep"
            raise TextError(f"Each line must be JSON, but {place} is not ({reason}); repair or remove it.") from None
        yield place, row


def _table_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        import pandas as pd  # late, see `evaluator.sources`

        table = pd.read_parquet(path)
    except ImportError:
        raise TextError(
            f"A .parquet file such as {str(path)!r} needs the package `pyarrow`; pip install 'secateur[hub]'."
        ) from None
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise TextError(
            f"A .parquet file must be a readable table, but {str(path)!r} gave: {reason}; repair it."
        ) from None
    for number, row in enumerate(table.to_dict("records"), 1):
        yield f"row {number} of {str(path)!r}", row


def _example(row: Any, place: str) -> Example:
    """Return a row as an example; `place` says where it is, for the error."""
    if not isinstance(row, Mapping):
        raise TextError(f"An example must be an object with fields, but {place} is {type(row).__name__}; repair it.")
    if "messages" in row:
        return _of_messages(row["messages"], place)
    for pair in _PAIRS:
        if not all(name in row for name in pair):
            continue
        instruction, answer = (_text(row[name], name, place) for name in pair)
        more = row.get("input") if pair[0] == "instruction" else None
        if isinstance(more, str) and more.strip():
            instruction = f"{instruction}\n\n{more}"
        return Example(instruction, answer)
    fields = ", ".join(map(str, row)) or "none"
    raise TextError(f"An example must have the fields {_EXPECTED}, but {place} has {fields}; rename or add them.")


def _of_messages(messages: Any, place: str) -> Example:
    """Return a conversation of one question and its answer; what the system is told is part of the instruction."""
    if isinstance(messages, np.ndarray):  # as a column of a table
        messages = messages.tolist()
    turns = messages if isinstance(messages, Sequence) and not isinstance(messages, str) else ()
    told = [(turn.get("role"), turn.get("content")) for turn in turns if isinstance(turn, Mapping)]
    roles = [str(role) for role, _ in told]
    if len(told) != len(turns) or roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        raise TextError(
            "messages must be one user and one assistant turn, after a system turn or none, but those in "
            f"{place} are {', '.join(roles) or 'no turns'}; split longer conversations, or remove it."
        )
    *asked, answer = (_text(content, f"{role} turn", place) for role, content in told)
    return Example("\n\n".join(asked), answer)


def _text(value: Any, name: str, place: str) -> str:
    if not isinstance(value, str) or not value.strip() or re.search("[\ud800-\udfff]", value):
        is_what = "empty" if isinstance(value, str) and not value.strip() else f"no text: {value!r:.40}"
        raise TextError(f"An example's {name} must be text, but in {place} it is {is_what}; repair or remove it.")
    return value


def encode_prompt(tokenizer: PreTrainedTokenizerBase, instruction: str) -> list[int]:
    """Return the token ids after which the model answers: of its chat template, or BOS and the instruction's line.

    Raises:
        ModelError: the chat template cannot be used.
    """
    if tokenizer.chat_template:
        return _chat(tokenizer, [{"role": "user", "content": instruction}], add_generation_prompt=True)
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [*begin, *_ids(tokenizer, f"{instruction}\n")]


def encode_example(tokenizer: PreTrainedTokenizerBase, example: Example, longest: int) -> Sample | None:
    """Return an example as tokens, the answer and the token that ends it to be learned; None where it does not fit.

    Args:
        tokenizer: of the model that learns.
        example: what to encode.
        longest: tokens that a sample may have.

    Raises:
        ModelError: the tokenizer has no token that ends an answer, or its chat template cannot be used.
    """
    prompt = encode_prompt(tokenizer, example.instruction)
    answer = _ids(tokenizer, example.answer)
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": example.instruction}, {"role": "assistant", "content": example.answer}]
        whole = _chat(tokenizer, turns)
        if whole[: len(prompt)] == prompt:  # not where the template puts other words before an answer it is given
            answer = whole[len(prompt) :]
    answer = _ended(tokenizer, answer)
    return Sample((*prompt, *answer), len(prompt)) if len(prompt) + len(answer) <= longest else None


def encode_examples(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], longest: int) -> Encoded:
    """Return all examples that fit as tokens.

    Args:
        tokenizer: of the model that learns.
        examples: what to encode.
        longest: tokens that a sample may have.

    Raises:
        TextError: none fits.
        ModelError: as `encode_example`.
    """
    samples = [encode_example(tokenizer, example, longest) for example in examples]
    fitting = tuple(sample for sample in samples if sample is not None)
    if not fitting:
        raise TextError(
            f"At least one example must fit {longest} tokens, but none of the {len(examples)} does; allow more tokens, "
            "or give shorter examples."
        )
    return Encoded(fitting, len(samples) - len(fitting))


def _ended(tokenizer: PreTrainedTokenizerBase, answer: list[int]) -> list[int]:
    """Return an answer up to the token that ends it: the template's own where it has one, else EOS."""
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = [place for place, token in enumerate(answer, 1) if token in special]
    if ends:
        return answer[: ends[-1]]  # templates put a new line after it, which no one waits for
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "A tokenizer must have a token that ends an answer (eos_token), but this one has none; set it in its "
            "tokenizer_config.json."
        )
    return [*answer, tokenizer.eos_token_id]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _chat(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], *, add_generation_prompt: bool = False
) -> list[int]:
    try:
        ids: Any = tokenizer.apply_chat_template(turns, add_generation_prompt=add_generation_prompt, return_dict=False)
    except (TemplateError, ImportError, ValueError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ModelError(
            f"A chat template must take one question and its answer, but the tokenizer's gave: {reason}; repair its "
            "chat_template, or remove it."
        ) from error
    return list(ids)


def check_same_tokenizer(
    dense_tokenizer: PreTrainedTokenizerBase, own_tokenizer: PreTrainedTokenizerBase, dense_name: str, own_name: str
) -> None:
    """Check that two models mean the same by each token id.

    Raises:
        ModelError: a word's id differs, or only one of them has the word.
    """
    dense, own = dense_tokenizer.get_vocab(), own_tokenizer.get_vocab()
    differing = {word for word, _ in dense.items() ^ own.items()}
    if differing:
        word = min(differing)
        raise ModelError(
            f"A pruned model must have its dense model's vocabulary, but {word!r} is token {own.get(word, 'none')} of "
            f"{own_name} and {dense.get(word, 'none')} of {dense_name} (words that differ: {len(differing)}); take the "
            "model that it was made from."
        )
