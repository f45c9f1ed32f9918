"""A tokenizer as a GGUF file carries it: a fast byte-pair tokenizer of transformers, byte-level or SentencePiece's."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

from space import ExportError

# How llama.cpp names the ways to cut text into words before the merges, by their patterns.
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BY_PATTERN = {
    _LLAMA_3: "llama-bpe",
    _LLAMA_3.replace("{1,3}", ""): "qwen2",
    _TEKKEN: "tekken",
}
_SPACE = "▁"  # of SentencePiece


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp has to know of a tokenizer."""

    model: str  # `gpt2` for byte-level merges, `llama` for SentencePiece's
    splits: str | None  # the name of how text is cut into words
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]  # of `gpt2`
    scores: tuple[float, ...]  # of `llama`
    space_before: bool  # whether text gets a space before its first word
    starts: bool  # whether text gets the token of a beginning
    special: Mapping[str, int]  # bos, eos, unknown, padding
    chat_template: str | None

    def add_to(self, writer: GGUFWriter) -> None:
        """Write it into a file's metadata."""
        writer.add_tokenizer_model(self.model)
        if self.splits is not None:
            writer.add_tokenizer_pre(self.splits)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.scores:
            writer.add_token_scores(self.scores)
        writer.add_add_space_prefix(self.space_before)
        writer.add_add_bos_token(self.starts)
        # llama.cpp takes its own guesses for those that are missing.
        add = {
            "bos": writer.add_bos_token_id,
            "eos": writer.add_eos_token_id,
            "unknown": writer.add_unk_token_id,
            "padding": writer.add_pad_token_id,
        }
        for name, token in self.special.items():
            add[name](token)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, size: int) -> Vocabulary:
    """Return a tokenizer for a GGUF file.

    Args:
        tokenizer: a fast one.
        size: rows of the model's embedding; those beyond the tokenizer's words are marked as unused.

    Raises:
        ExportError: llama.cpp has no tokenizer that does the same.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refusal("is none of the tokenizers library")
    content = json.loads(backend.to_str())
    model = content["model"]
    if model["type"] != "BPE":
        raise _refusal(f"has a model of type {model['type']}")
    byte_level = (content.get("decoder") or {}).get("type") == "ByteLevel"
    if not byte_level and not model["byte_fallback"]:
        raise _refusal("has neither byte-level merges nor bytes to fall back on")
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    tokens, types = _tokens(content, size)
    return Vocabulary(
        model="gpt2" if byte_level else "llama",
        splits=_splits(content) if byte_level else None,
        tokens=tokens,
        types=types,
        merges=tuple(" ".join(merge) for merge in merges) if byte_level else (),
        scores=() if byte_level else _scores(merges, tokens),
        space_before=_puts_space_before(content),
        starts=_starts(tokenizer),
        special={
            name: token
            for name, token in (
                ("bos", tokenizer.bos_token_id),
                ("eos", tokenizer.eos_token_id),
                ("unknown", tokenizer.unk_token_id),
                ("padding", tokenizer.pad_token_id),
            )
            if token is not None
        },
        chat_template=tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
    )


def _refusal(reason: str) -> ExportError:
    return ExportError(
        "A tokenizer must be one that llama.cpp knows to go into a GGUF file: byte-pair merges, on bytes as GPT-2, "
        f"SmolLM2, Llama 3, Qwen or Mistral Nemo split them, or SentencePiece's; this one {reason}; export to "
        "huggingface."
    )


def _tokens(content: Mapping[str, Any], size: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    words = {number: word for word, number in content["model"]["vocab"].items()}
    added = {each["id"]: each for each in content["added_tokens"]}
    fallback = content["model"]["byte_fallback"]
    tokens, types = [], []
    for number in range(size):
        if number in added:
            tokens.append(added[number]["content"])
            unknown = added[number]["content"] == content["model"]["unk_token"]
            special = TokenType.UNKNOWN if unknown and fallback else TokenType.CONTROL
            types.append(special if added[number]["special"] else TokenType.USER_DEFINED)
        elif number in words:
            tokens.append(words[number])
            is_byte = fallback and words[number].startswith("<0x") and len(words[number]) == len("<0x00>")
            types.append(TokenType.BYTE if is_byte else TokenType.NORMAL)
        else:
            tokens.append(f"[PAD{number}]")
            types.append(TokenType.UNUSED)
    if beyond := [number for number in {*words, *added} if number >= size]:
        raise _refusal(f"has a token {max(beyond)}, beyond the model's {size}")
    return tuple(tokens), tuple(int(kind) for kind in types)


def _splits(content: Mapping[str, Any]) -> str:
    """Return the name of how text is cut into words."""
    steps = content["pre_tokenizer"] or {"type": "nothing"}
    steps = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    kinds = [step["type"] for step in steps]
    last = steps[-1]
    if kinds[-1] == "ByteLevel" and not last["add_prefix_space"]:
        if kinds == ["ByteLevel"] and last["use_regex"]:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and last["use_regex"] and steps[0]["individual_digits"]:
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not last["use_regex"]:
            pattern = steps[0]["pattern"].get("Regex")
            if steps[0]["behavior"] == "Isolated" and not steps[0]["invert"] and pattern in _BY_PATTERN:
                return _BY_PATTERN[pattern]
    raise _refusal(f"cuts text into words by {' and '.join(kinds)} in a way of its own")


def _scores(merges: list[list[str]], tokens: tuple[str, ...]) -> tuple[float, ...]:
    """Return scores under which SentencePiece merges in the order of the merges: the earlier, the higher."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault("".join(merge), rank)
    return tuple(-float(ranks[token]) if token in ranks else -1e6 for token in tokens)


def _puts_space_before(content: Mapping[str, Any]) -> bool:
    steps = [content.get("normalizer"), content.get("pre_tokenizer")]
    for step in [
        inner for each in steps if each for inner in each.get("normalizers", each.get("pretokenizers", [each]))
    ]:
        if step["type"] == "Prepend" and step["prepend"] == _SPACE:
            return True
        if step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never":
            return True
    return False


def _starts(tokenizer: PreTrainedTokenizerBase) -> bool:
    found = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and found[0] == tokenizer.bos_token_id
