"""Self-data distillation's data: the dense model writes the reference answers again in its own words.

A pruned model is fine-tuned on what its dense model would say, not on what others wrote: the distribution that it lost
is the one that it gets back. A rewrite takes its reference's place only where it can be trusted.

Source: arXiv 2410.09982 (self-data distilled fine-tuning), after arXiv 2402.13669 (SDFT).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
)

from evaluator.checkpoint import DenseModel
from evaluator.decoding import Draw, Progress, contiguous_inputs
from evaluator.generation import BATCH_TOKENS
from evaluator.recovery.answers import CALCULATION, LAST_LINE, MARK, Reason, judge
from evaluator.recovery.examples import Example, encode_prompt
from space import SettingError

_GPU_BATCH_TOKENS = 131_072  # on a GPU, which takes as long for one sequence as for many
_STOP_EVERY, _STOP_TAIL = 8, 32  # steps between looks for a finished answer, and the tokens looked at

# Tried on SmolLM2-135M-Instruct, 32 examples of GSM8K, greedily: share kept by the final number alone, and with the
# working checked (of GSM8K's own answers 0.992 pass that check).
#   Below are a question and a reference solution ... Write the solution in your own words, step by step   0.59, 0.12
#   {question} This is an example of a good response ... Now answer with a response of your own            0.44, 0.19
#   Paraphrase the solution: say each of its steps in a sentence of your own, in the same order ...        0.66, 0.19
#   Rewrite this solution in your own words as full sentences. Keep each step and each number ...          0.69, 0.28
#   the same, drawn at temperature 0.6                                                                     0.50, 0.12
# With the number in the request ("End with the line #### 42") 0.81 of 64 have it, many of them with nonsense before it.
_REQUEST = """Here is a question and its solution.

Question: {instruction}

Solution:
{answer}

Rewrite this solution in your own words as full sentences. Keep each step and each number, and keep the last line as \
it is."""
_REQUEST_WITHOUT_NUMBER = """Here is an instruction and its answer.

Instruction: {instruction}

Answer:
{answer}

Rewrite this answer in your own words. Write nothing but the answer."""
_PLAIN_CUE = "\n\nAnswer in your own words:\n"  # what a model without a chat template goes on from


@dataclass(frozen=True, slots=True)
class SelfData:
    """Examples with the dense model's answers, in the order of the originals and as many as these.

    Args:
        examples: each with the rewrite where it was kept, else as it was.
        reasons: why each rewrite was not kept; None where it was.
    """

    examples: tuple[Example, ...]
    reasons: tuple[Reason | None, ...]

    @property
    def kept(self) -> tuple[bool, ...]:
        """Whether each answer is the dense model's."""
        return tuple(reason is None for reason in self.reasons)

    @property
    def share_kept(self) -> float:
        """Share of the answers that are the dense model's, 0..1."""
        return sum(self.kept) / len(self.kept) if self.kept else 0.0

    @property
    def counts(self) -> dict[Reason, int]:
        """How many rewrites were not kept, by reason, the most frequent first."""
        return dict(Counter(reason for reason in self.reasons if reason is not None).most_common())


def rewrite(
    dense: DenseModel,
    examples: Sequence[Example],
    *,
    most_tokens: int = 256,
    seed: int = 0,
    temperature: float = 0.0,
    check_working: bool = False,
    cache: Path,
    progress: Progress = lambda _: None,
) -> SelfData:
    """Let the dense model write each answer again, and keep those rewrites that are right.

    Where the reference ends in a final answer after ####, the rewrite must end in the same one; of others it is only
    known that they are finished, and neither empty nor an echo. The reference stays where a rewrite has another final
    answer (`wrong_answer`), none (`unparsable`), no end within the tokens (`unfinished`), no words (`empty`) or only
    those of the reference or the instruction (`echo`), or where the prompt does not fit the model (`too_long`); and,
    where the working is checked, without numbers on the way to the answer or the answer itself (`no_working`), or with
    an equation that is not true (`wrong_working`).

    Batches are saved as they are done, so that an interrupted run goes on where it stopped; each has its own seed, so
    the answers do not depend on where it was interrupted.

    Args:
        dense: the model before it was pruned.
        examples: instructions with their reference answers.
        most_tokens: of a rewrite; longer ones are not finished.
        seed: of the draws; none are made at temperature 0.
        temperature: by which logits are divided; 0 takes the likeliest token.
        check_working: whether the way to a final number is looked at, which in the paper it is not. A small model often
            copies the number and writes nonsense before it; learning that did no harm in `tests.benchmarks.recovery`,
            and three times as many rewrites were kept.
        cache: folder for the batches.
        progress: told the tokens of each step; at the end they are `most_tokens` for each example.

    Raises:
        SettingError: a number is out of range.
        ModelError: the chat template cannot be used.

    Source: arXiv 2410.09982, section 3.
    """
    if most_tokens < 1:
        raise SettingError(f"most_tokens must be at least 1, but is {most_tokens}; change it.")
    if not 0 <= temperature < float("inf"):
        raise SettingError(f"temperature must be a number from 0 on, but is {temperature}; change it.")
    cache.mkdir(parents=True, exist_ok=True)
    prompts = [_prompt(dense.tokenizer, example) for example in examples]
    written: dict[int, _Written] = {}
    for number, batch in enumerate(_batches(dense, prompts, most_tokens)):
        part = [(prompts[index], MARK in examples[index].answer) for index in batch]
        salt = f"{seed} {number}" if temperature else ""
        own = _batch(dense, part, most_tokens, temperature, salt, cache, progress)
        written |= zip(batch, own, strict=True)
    progress((len(examples) - len(written)) * most_tokens)
    judged = [
        judge(example, *written[index], check_working) if index in written else (example, "too_long")
        for index, example in enumerate(examples)
    ]
    return SelfData(tuple(example for example, _ in judged), tuple(reason for _, reason in judged))


def _prompt(tokenizer: PreTrainedTokenizerBase, example: Example) -> list[int]:
    """Return the token ids that ask for a rewrite."""
    mark = MARK in example.answer
    text = (_REQUEST if mark else _REQUEST_WITHOUT_NUMBER).format(
        instruction=example.instruction,
        answer=CALCULATION.sub("", example.answer) if mark else example.answer,
    )
    return encode_prompt(tokenizer, text if tokenizer.chat_template else text + _PLAIN_CUE)


def _batches(dense: DenseModel, prompts: Sequence[Sequence[int]], most_tokens: int) -> list[list[int]]:
    """Return the indices of what is written at once: prompts of about the same length, none too long for the model."""
    together = _GPU_BATCH_TOKENS if dense.model.device.type == "cuda" else BATCH_TOKENS
    sizes = {index: len(prompt) + most_tokens for index, prompt in enumerate(prompts)}
    found: list[list[int]] = []
    for index in sorted(sizes, key=lambda index: sizes[index]):
        if sizes[index] > dense.longest_sequence:
            break
        if not found or (len(found[-1]) + 1) * sizes[index] > together:
            found.append([])
        found[-1].append(index)
    return found


_Written = tuple[str, bool]  # text, and whether the model had ended it


def _batch(
    dense: DenseModel,
    prompts: list[tuple[list[int], bool]],
    most_tokens: int,
    temperature: float,
    salt: str,
    cache: Path,
    progress: Progress,
) -> list[_Written]:
    """Return what follows each prompt, written now or before."""
    ends = _end_tokens(dense)
    recipe = json.dumps([dense.weights_hash, prompts, ends, most_tokens, temperature, salt])
    file = cache / f"rewrites-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.safetensors"
    told = 0
    if not file.exists():
        watch = _Watch(dense.tokenizer, [marked for _, marked in prompts], progress)
        tokens = _decode(dense, [ids for ids, _ in prompts], ends, most_tokens, temperature, _seed(salt), watch)
        beside = file.with_suffix(".partial")
        save_file({"tokens": tokens}, beside)
        beside.replace(file)
        told = watch.told
    progress(len(prompts) * most_tokens - told)
    rows = load_file(file)["tokens"].tolist()
    lengths = [next((place for place, token in enumerate(row) if token in ends), None) for row in rows]
    texts = dense.tokenizer.batch_decode(
        [row[:length] for row, length in zip(rows, lengths, strict=True)], skip_special_tokens=True
    )
    return [(str(text), length is not None) for text, length in zip(texts, lengths, strict=True)]


def _decode(
    dense: DenseModel,
    prompts: list[list[int]],
    ends: list[int],
    most_tokens: int,
    temperature: float,
    seed: int,
    watch: "_Watch",
) -> Tensor:
    """Return what follows each prompt (prompts, new tokens), filled up with an end token."""
    width = max(map(len, prompts))
    # Padded on the left, so that all answers grow at the same end.
    rows = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    drawing = LogitsProcessorList([TemperatureLogitsWarper(temperature), Draw(seed)] if temperature else [])
    model: Any = dense.model
    with torch.inference_mode(), contiguous_inputs(model.get_output_embeddings()):
        tokens = model.generate(
            torch.tensor(rows, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            max_new_tokens=most_tokens,
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else 0,
            do_sample=False,  # but among what the processors leave,
            repetition_penalty=1.0,  # which the model's own settings must not add to
            logits_processor=drawing,
            stopping_criteria=StoppingCriteriaList([watch]),
        )
    assert isinstance(tokens, Tensor)
    return tokens[:, width:].cpu().contiguous()


class _Watch(StoppingCriteria):
    """Tells the progress of each step, and stops an answer after the line with its final number.

    A model that was not taught to end its answers would go on to the next question.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, marked: list[bool], progress: Progress) -> None:
        self._tokenizer = tokenizer
        self._marked = marked
        self._progress = progress
        self._steps = 0
        self.told = 0  # tokens

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        self._steps += 1
        self._progress(len(input_ids))
        self.told += len(input_ids)
        done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        if self._steps % _STOP_EVERY == 0 and any(self._marked):
            tails = self._tokenizer.batch_decode(input_ids[:, -min(self._steps, _STOP_TAIL) :])
            found = [marked and bool(LAST_LINE.search(tail)) for tail, marked in zip(tails, self._marked, strict=True)]
            done |= torch.tensor(found, device=input_ids.device)
        return done


def _end_tokens(dense: DenseModel) -> list[int]:
    """Return the tokens that end an answer, the tokenizer's first: some chat models have one more in their settings."""
    own = getattr(dense.model.generation_config, "eos_token_id", None)
    found = [dense.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return [int(token) for token in dict.fromkeys(found) if token is not None]


def _seed(salt: str) -> int:
    return int.from_bytes(hashlib.sha256(f"rewrite {salt}".encode()).digest()[:6])
