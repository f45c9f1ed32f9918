"""A pruned model as the draft of its dense one: which share of its tokens is accepted, and what that does for speed.

In each round the draft writes a few tokens, and one pass of the dense model reads them all. The text goes on with those
that the dense model would have written itself, up to the first that it would not, and with the token that it writes
there: greedily, so that the text is the dense model's own (arXiv 2211.17192). The writing is transformers' assisted
generation, with the same number of draft tokens in every round.

    acceptance rate        accepted draft tokens / draft tokens
    mean accepted length   tokens written / passes of the dense model, so 1 where no draft token is accepted

Both are sums over all prompts and rounds. The last rounds of a text draft fewer tokens, those that are left to write
less one, and pull the length down a little: it reaches `draft_tokens` + 1 only where the tokens are a multiple of that.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from evaluator.checkpoint import DenseModel, quiet_transformers
from space import ModelError, SettingError, TextError


@dataclass(frozen=True, slots=True)
class Drafting:
    """How a model does as the draft of a dense one, over all prompts; standard errors are over prompts."""

    acceptance_rate: float  # 0..1, of the draft tokens
    acceptance_rate_standard_error: float
    mean_accepted_length: float  # tokens that a pass of the dense model yields, its own one included
    mean_accepted_length_standard_error: float
    tokens_per_second: float  # with the draft
    tokens_per_second_plain: float  # of the dense model alone, on the same prompts in turn
    speedup: float  # of the two
    speedup_standard_error: float
    prompts: int
    tokens: int  # written with the draft, in all
    draft_tokens: int  # of a round
    # Of the prompts, 0..1. Below float32 it may be under 1: a pass over several tokens rounds otherwise than one over
    # each, so where two words are as likely as each other, another one wins.
    same_text: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def measure_drafting(
    dense: DenseModel,
    draft: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    draft_tokens: int = 5,
    progress: Callable[[int], None] = lambda _: None,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Drafting:
    """Let the dense model write each prompt's greedy continuation alone and with a draft, in turns.

    Nothing of the models' own settings but the end of a text counts, and they are as before in the end.

    Args:
        dense: the model, with nothing pruned: not one whose installed architecture `standalone` made the draft of.
        draft: a model of the same vocabulary, such as a pruned one (see `examples.check_same_tokenizer`).
        prompts: token ids of each, BOS or chat template included.
        tokens: to write for each prompt, at most: a text may end before.
        draft_tokens: of each round.
        progress: told 1 after each prompt.
        clock: seconds.

    Raises:
        ModelError: the draft has another vocabulary, or no attention left.
        TextError: there are fewer than two prompts, or one is empty.
        SettingError: there is nothing to draft, or a prompt leaves no room for so many tokens.
    """
    _check_models(dense, draft)
    _check_texts(dense, prompts, tokens, draft_tokens)
    runs = []
    with quiet_transformers(), torch.inference_mode(), _greedy(dense, draft, draft_tokens):
        # What is only slow the first time is nobody's speed.
        _write(dense, prompts[0], min(tokens, draft_tokens + 2), draft, clock)
        for number, prompt in enumerate(prompts):
            # By turns first, so that neither always finds the machine as the other has left it.
            turns = (None, draft) if number % 2 == 0 else (draft, None)
            texts = {each is draft: _write(dense, prompt, tokens, each, clock) for each in turns}
            runs.append(_Run.of(plain=texts[False], drafted=texts[True]))
            progress(1)
    return _summary(runs, draft_tokens)


@dataclass(frozen=True, slots=True)
class _Text:
    ids: list[int]  # without the prompt
    rounds: list[tuple[list[int], list[int]]]  # drafted, yielded
    seconds: float


@dataclass(frozen=True, slots=True)
class _Run:
    """What came of one prompt."""

    tokens: int
    passes: int  # of the dense model
    drafted: int
    accepted: int
    seconds: float
    plain_tokens: int
    plain_seconds: float
    same: bool

    @classmethod
    def of(cls, plain: _Text, drafted: _Text) -> "_Run":
        return cls(
            tokens=len(drafted.ids),
            passes=len(drafted.rounds),
            drafted=sum(len(candidates) for candidates, _ in drafted.rounds),
            accepted=sum(_accepted(*each) for each in drafted.rounds),
            seconds=drafted.seconds,
            plain_tokens=len(plain.ids),
            plain_seconds=plain.seconds,
            same=plain.ids == drafted.ids,
        )


def _accepted(candidates: Sequence[int], yielded: Sequence[int]) -> int:
    """Return how many of a round's draft tokens are in the text.

    transformers' own count of matches is one less where a text ends with a draft token.
    """
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(candidates, yielded, strict=False)))


class _Watch(BaseStreamer):
    """Sees what each round drafts and yields.

    Both are told by what is public: the dense model's pass reads the candidates, and the streamer is given what the
    round adds to the text. The last pass before that is the dense model's, also where the draft is the same object.
    """

    def __init__(self) -> None:
        self.rounds: list[tuple[Tensor, Tensor]] = []  # token ids drafted, yielded
        self._read = torch.empty(1, 0)  # by the last pass
        self._known = 0  # tokens of the text that the next round's pass reads before the candidates

    def before_pass(self, _: nn.Module, __: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        """Note what a pass reads."""
        self._read = inputs["input_ids"]

    def put(self, value: Tensor) -> None:
        """Take first the prompt, then what each round adds, (1, tokens)."""
        if self._known == 0:
            self._known = value.shape[-1]  # the first pass reads the prompt,
            return
        self.rounds.append((self._read[0, self._known :], value[0]))
        self._known = 1  # all others what the dense model itself wrote last

    def end(self) -> None:
        """Need nothing at the end."""


def _write(
    dense: DenseModel, prompt: Sequence[int], tokens: int, draft: PreTrainedModel | None, clock: Callable[[], float]
) -> _Text:
    """Continue a prompt; without a draft, no rounds are told."""
    model: Any = dense.model
    ids = torch.tensor([list(prompt)], device=model.device)
    watch = _Watch() if draft is not None else None
    hook = model.register_forward_pre_hook(watch.before_pass, with_kwargs=True) if watch else None
    try:
        started = clock()
        text = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, assistant_model=draft, streamer=watch
        )
        written = text[0, len(prompt) :].tolist()  # a GPU is done only when this is read
        seconds = clock() - started
    finally:
        if hook is not None:
            hook.remove()
    rounds = [(drafted.tolist(), yielded.tolist()) for drafted, yielded in watch.rounds] if watch else []
    assert watch is None or [each for _, yielded in rounds for each in yielded] == written
    return _Text(written, rounds, seconds)


@contextmanager
def _greedy(dense: DenseModel, draft: PreTrainedModel, draft_tokens: int) -> Iterator[None]:
    """Let both models generate greedily by settings of ours, whatever their own are (repetition penalty, sampling)."""
    models: tuple[Any, Any] = (dense.model, draft)
    before = [model.generation_config for model in models]
    end = before[0].eos_token_id
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        eos_token_id=dense.tokenizer.eos_token_id if end is None else end,
        # The models' own must not be taken: transformers does not tell the draft that nothing is padding, so it takes
        # what has that id in the text for padding, and drafts as if it were not there. Of the end, which stands in
        # where there is none, it does not think so.
        pad_token_id=None,
        num_assistant_tokens=draft_tokens,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,  # a round goes on however unsure the draft is
    )
    try:
        for model in models:
            model.generation_config = settings
        yield
    finally:
        for model, own in zip(models, before, strict=True):
            model.generation_config = own


def _summary(runs: Sequence[_Run], draft_tokens: int) -> Drafting:
    rate, rate_error = _ratio(runs, ["accepted"], ["drafted"])
    length, length_error = _ratio(runs, ["tokens"], ["passes"])
    speedup, speedup_error = _ratio(runs, ["tokens", "plain_seconds"], ["seconds", "plain_tokens"])
    return Drafting(
        acceptance_rate=rate,
        acceptance_rate_standard_error=rate_error,
        mean_accepted_length=length,
        mean_accepted_length_standard_error=length_error,
        tokens_per_second=_ratio(runs, ["tokens"], ["seconds"])[0],
        tokens_per_second_plain=_ratio(runs, ["plain_tokens"], ["plain_seconds"])[0],
        speedup=speedup,
        speedup_standard_error=speedup_error,
        prompts=len(runs),
        tokens=sum(run.tokens for run in runs),
        draft_tokens=draft_tokens,
        same_text=sum(run.same for run in runs) / len(runs),
    )


def _ratio(runs: Sequence[_Run], above: Sequence[str], below: Sequence[str]) -> tuple[float, float]:
    """Return a product of sums over another, and its standard error by the jackknife: leaving out each prompt in turn.

    Args:
        runs: of at least two prompts.
        above: fields whose sums are multiplied.
        below: fields by whose sums is divided.
    """
    value, without = 1.0, np.ones(len(runs))
    for names, power in ((above, 1), (below, -1)):
        for name in names:
            values = np.array([getattr(run, name) for run in runs], dtype=float)
            value *= float(values.sum()) ** power
            without *= (values.sum() - values) ** power
    return value, math.sqrt((len(runs) - 1) * float(without.var()))


def _check_models(dense: DenseModel, draft: PreTrainedModel) -> None:
    words = draft.config.get_text_config().vocab_size
    if words != dense.layout.vocabulary:
        raise ModelError(
            f"A draft must have the dense model's vocabulary of {dense.layout.vocabulary} tokens, but has {words}; "
            "take a draft that was pruned from this model."
        )
    # A cache of keys and values that no layer uses cannot tell how long the text is, and transformers stops there.
    modes = getattr(draft.config, "kv_sharing_modes", None)
    if modes is not None and None not in modes:
        raise ModelError(
            "A draft must have attention in one layer at least, but the attention of all "
            f"{len(modes)} layers is removed; take one that keeps more."
        )


def _check_texts(dense: DenseModel, prompts: Sequence[Sequence[int]], tokens: int, draft_tokens: int) -> None:
    if draft_tokens < 1:
        raise SettingError(f"draft_tokens must be at least 1, but is {draft_tokens}; raise it.")
    if tokens < 2:
        raise SettingError(f"tokens must be at least 2, so that one can be drafted, but is {tokens}; raise it.")
    if len(prompts) < 2:
        raise TextError(
            f"Drafting must be measured on at least 2 prompts, for its error, but there are {len(prompts)}; give more."
        )
    for number, prompt in enumerate(prompts, start=1):
        if not prompt:
            raise TextError(f"A prompt must hold at least one token, but number {number} is empty; begin it with BOS.")
        if len(prompt) + tokens > dense.longest_sequence:
            raise SettingError(
                f"A prompt and what is written must fit into the model's {dense.longest_sequence} positions, but "
                f"prompt {number} has {len(prompt)} tokens and {tokens} follow; write fewer or shorten the prompt."
            )
