"""A model as the harness asks it: by its own class for transformers models, with continuations scored by ours."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from evaluator.checkpoint import DenseModel, quiet_transformers
from evaluator.harness.continuations import Continuations
from evaluator.harness.tasks import quiet_harness

_WRITTEN_TOGETHER = 8  # answers, whose keys and values are in memory

Progress = Callable[[int], None]


class HarnessModel(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """Answers the harness' requests.

    Prompts are tokenised as the harness does it, BOS as the tokenizer has it. Log-likelihoods are in float32 whatever
    the model runs in: of bfloat16 logits, the harness' own are rounded to a thirtieth of a nat, which ties choices.

    Args:
        model: dense or pruned; pruned ones as models of their own.
    """

    def __init__(self, model: DenseModel) -> None:
        with quiet_harness(), quiet_transformers():
            super().__init__(
                pretrained=model.model,
                tokenizer=model.tokenizer,
                backend="causal",
                batch_size=_WRITTEN_TOGETHER,
                max_length=min(model.longest_sequence, model.tokenizer.model_max_length),
            )
        self._continuations = Continuations(model)
        self._progress: Progress = lambda _: None
        self._written = 0

    @property
    def tokens(self) -> int:
        """Tokens that went through the model so far, without padding."""
        return self._continuations.tokens + self._written

    @property
    def cut(self) -> int:
        """Continuations whose context was cut off at the beginning to fit."""
        return self._continuations.cut

    @contextlib.contextmanager
    def telling(self, progress: Progress) -> Iterator[None]:
        """Tell how many requests each batch answered, for a while."""
        self._progress = progress
        try:
            yield
        finally:
            self._progress = lambda _: None

    def encoded(self, context: str, continuation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return token ids of a context and its continuation as the harness cuts them apart."""
        if context:
            before, after = self._encode_pair(context, continuation)
        else:
            before, after = [self.prefix_token_id], self.tok_encode(continuation, add_special_tokens=False)
            if after[:1] == before:
                before, after = after[:1], after[1:]
        return tuple(before), tuple(after)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return log-likelihood and greediness of each request's continuation."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Return what the model writes after each request's context."""
        found: list[str] = super().generate_until(requests, disable_tqdm=True)
        return found

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = True,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        return [(found.value, found.greedy) for found in self._continuations.score(pairs, self._progress)]

    def _model_generate(self, context: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        with torch.inference_mode():
            written: torch.Tensor = super()._model_generate(context, *args, **kwargs)
        self._written += written.numel()
        self._progress(len(context))
        return written
