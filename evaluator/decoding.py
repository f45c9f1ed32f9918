"""Drawing tokens: documents of one size, all at once, by transformers' generation with a cache of keys and values."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from evaluator.checkpoint import DenseModel
from space import SettingError

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn.

    Args:
        temperature: by which logits are divided.
        top_p: share of the probability that is drawn from.
        top_k: most likely tokens that are drawn from; 0 for all.
        repetition_penalty: of tokens that the document has already; 1 for none.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


def start_of(dense: DenseModel) -> int | None:
    """Return the token that begins a text."""
    start: int | None = dense.tokenizer.bos_token_id
    return dense.model.config.bos_token_id if start is None else start


def decode(
    dense: DenseModel, prompts: list[list[int]], size: int, sampling: Sampling, seed: int, progress: Progress
) -> Tensor:
    """Return documents (prompts, size), each beginning with its prompt, which BOS precedes while they are written.

    Args:
        dense: the model.
        prompts: token ids of each; none may be empty where the model has no BOS.
        size: tokens of each document.
        sampling: how tokens are drawn.
        seed: of the draws.
        progress: told the tokens written by each step.

    Raises:
        SettingError: the model has learned its positions, and there are not so many.
    """
    start = start_of(dense)
    begin = [] if start is None else [start]
    longest, shortest = max(map(len, prompts)), min(map(len, prompts))
    _check_positions(dense, size, len(begin) + longest - shortest)
    # Padded on the left, so that all documents grow at the same end.
    rows = [[0] * (longest - len(prompt)) + begin + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(begin + prompt) for prompt in prompts]
    model: Any = dense.model
    with torch.inference_mode(), contiguous_inputs(model.get_output_embeddings()):
        tokens = model.generate(
            torch.tensor(rows, device=dense.model.device),
            attention_mask=torch.tensor(mask, device=dense.model.device),
            max_new_tokens=size - shortest,
            min_new_tokens=size - shortest,
            eos_token_id=None,  # what follows the end of one text is the next text, packed as in training
            pad_token_id=dense.tokenizer.eos_token_id or 0,
            do_sample=False,  # but among what the processors leave,
            repetition_penalty=1.0,  # which the model's own settings must not add to
            logits_processor=_processors(sampling, seed),
            stopping_criteria=StoppingCriteriaList([_Watch(progress)]),
        )
    assert isinstance(tokens, Tensor)
    progress(len(prompts) * shortest)  # that were not to be written
    firsts = [longest - len(prompt) + len(begin) for prompt in prompts]
    return torch.stack([row[first : first + size] for row, first in zip(tokens.cpu(), firsts, strict=True)])


@contextlib.contextmanager
def contiguous_inputs(head: nn.Module) -> Iterator[None]:
    """Lay a projection's inputs in a row for a while: of a slice, it would be copied for each document."""
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    try:
        yield
    finally:
        handle.remove()


def _check_positions(dense: DenseModel, size: int, more: int) -> None:
    """Refuse documents that end beyond the last position that a model has learned; others go on from what they know."""
    if dense.layout.record.learned_positions and size + more > dense.longest_sequence:
        raise SettingError(
            f"Documents of this model must be of {dense.longest_sequence - more} tokens at most, with the token that "
            f"begins a text and prefixes of different lengths before them, but are to be of {size}; write shorter ones."
        )


def _processors(sampling: Sampling, seed: int) -> LogitsProcessorList:
    """Return what draws a token, in transformers' order."""
    found = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        found.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature != 1:
        found.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        found.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        found.append(TopPLogitsWarper(sampling.top_p))
    found.append(Draw(seed))
    return found


class _Watch(StoppingCriteria):
    """Stops nothing; tells the progress of each step."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        self._progress(len(input_ids))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class Draw(LogitsProcessor):
    """Leaves one token of each document possible, drawn by its probability.

    `torch.multinomial`, by which transformers draws, makes a random number for each word of the vocabulary: a fifth of
    the time of a step of 32 documents. Here it is one for each document, found in the cumulated probabilities.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)  # on the processor, so that every device draws the same

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        cumulated = scores.float().softmax(dim=-1).cumsum(dim=-1)
        drawn = torch.rand(len(scores), 1, generator=self._generator).to(scores.device) * cumulated[:, -1:]
        # The first whose sum is above what was drawn, so that none of probability 0 is taken.
        chosen = torch.searchsorted(cumulated, drawn, right=True).clamp_max(scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)
