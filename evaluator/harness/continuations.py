"""Log-likelihoods of continuations after contexts, each common token going through the model once.

Three passes: the beginning that a group of questions has in common, alone; what is left of their contexts, in batches
of about one length; and of each question the choices, after its keys and values. The first token of a continuation is
predicted by the last of the context, so a choice of one letter needs no third pass, and a question with one
continuation has it in the second.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DummyLayer, DynamicLayer

from evaluator.checkpoint import DenseModel
from evaluator.harness.prefixes import Group, Question, Tokens, grouped, questions_of, row_of, tokens_of
from evaluator.head import Head

BATCH_TOKENS = 2048  # of a batch, what it is padded with included
_FEWEST_TOKENS = 256  # of a batch: fewer take hardly less time
_ALIKE = 0.75  # share of the longest row's tokens from which on another goes with it
_CACHE_BYTES = 2**29  # of keys and values at most
_HEAD_ROWS = 256  # tokens whose logits are there at once

Progress = Callable[[int], None]
_Past = list[tuple[Tensor, Tensor] | None]  # keys and values by layer (1, KV groups, tokens, head size)


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Of one continuation.

    Args:
        value: log-likelihood, the sum over its tokens, nats.
        greedy: whether each of its tokens is the likeliest.
    """

    value: float
    greedy: bool


@dataclass(slots=True)
class _Wanted:
    """Predictions to read from a batch's hidden states (rows, tokens, hidden)."""

    rows: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)  # what is to be predicted
    places: list[int] = field(default_factory=list)  # of the continuation

    def add(self, row: int, first: int, ids: Sequence[int], place: int) -> None:
        """Want the predictions of ids from token `first` of a row on."""
        self.rows += [row] * len(ids)
        self.tokens += range(first, first + len(ids))
        self.ids += ids
        self.places += [place] * len(ids)


class Continuations:
    """Scores continuations by a model.

    Args:
        model: dense or pruned; pruned ones as models of their own, since the cache goes by the configuration.
        batch_tokens: of a batch.
        share: whether what is common goes through the model once; False runs each pair by itself, for comparison.
    """

    def __init__(self, model: DenseModel, *, batch_tokens: int = BATCH_TOKENS, share: bool = True) -> None:
        modes = getattr(model.model.config, "kv_sharing_modes", None) or [None] * model.layout.layers
        self._keeps = [mode is None for mode in modes]  # layers that have keys and values
        # Of a model without any attention nothing that is common can be kept.
        self._model, self._batch_tokens, self._share = model, batch_tokens, share and any(self._keeps)
        self._head = Head(model)
        self._window = _window(model)
        layout = model.layout
        self._kept_bytes = 2 * layout.layers * layout.kv_groups * layout.head_dim * model.model.dtype.itemsize
        self.tokens = 0  # that went through the model, without padding
        self.cut = 0  # continuations whose context was too long

    @torch.inference_mode()
    def score(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], progress: Progress = lambda _: None
    ) -> list[Likelihood]:
        """Return the log-likelihood of each continuation.

        Args:
            pairs: token ids of context and continuation.
            progress: told the continuations of each batch.

        Raises:
            MeasurementError: a continuation is empty, follows nothing, or is longer than what the model takes.
        """
        longest = self._model.longest_sequence
        # Beyond a sliding window what is padded in the middle would take the place of what is not.
        fits = max((len(context) + len(own) for context, own in pairs), default=0) <= self._window
        share = self._share and fits
        questions = questions_of(pairs, longest, share)
        groups = grouped(questions) if share else [Group((), tuple(questions))]
        self.tokens += tokens_of(groups)
        self.cut += sum(len(context) + len(own) > longest + 1 for context, own in pairs)
        self._sums = torch.zeros(len(pairs), dtype=torch.float64)
        self._greedy = torch.ones(len(pairs), dtype=torch.bool)
        for group in groups:
            past = self._run_prefix(group.prefix) if group.prefix else None
            for batch in self._batches(group):
                self._score(past, len(group.prefix), batch)
                progress(sum(len(question.places) for question in batch))
        return [
            Likelihood(value, greedy) for value, greedy in zip(self._sums.tolist(), self._greedy.tolist(), strict=True)
        ]

    def _batches(self, group: Group) -> Iterator[list[Question]]:
        before = len(group.prefix)
        ordered = sorted(group.questions, key=lambda question: len(row_of(question, before)), reverse=True)
        while ordered:
            most = self._together([len(row_of(question, before)) for question in ordered], before)
            yield ordered[:most]
            ordered = ordered[most:]

    def _run_prefix(self, prefix: Tokens) -> _Past:
        cache = self._cache(None, 1)
        self._forward([prefix], cache)
        return _past(cache)

    def _cache(self, past: _Past | None, rows: int) -> Cache:
        """Return a cache of full length in every layer, which begins with a past of so many rows or a common one."""
        cache: Any = Cache(layers=[DynamicLayer() if keeps else DummyLayer() for keeps in self._keeps])
        for layer, own in zip(cache.layers, past or [None] * len(self._keeps), strict=True):
            if own is not None:
                layer.lazy_initialization(*own)
                layer.keys, layer.values = (each.expand(rows, -1, -1, -1) for each in own)
        found: Cache = cache
        return found

    def _score(self, past: _Past | None, before: int, batch: list[Question]) -> None:
        """Score a batch of questions of one group.

        Args:
            past: keys and values of the common beginning.
            before: its tokens.
            batch: the questions.
        """
        rows = [row_of(question, before) for question in batch]
        choosing = any(_is_long(question) for question in batch)
        cache = self._cache(past, len(rows)) if past or choosing else None
        hidden = self._forward(rows, cache)
        wanted = _Wanted()
        for row, question in enumerate(batch):
            last = len(question.context) - before - 1
            many = len(question.continuations) > 1
            for own, place in zip(question.continuations, question.places, strict=True):
                wanted.add(row, last, own[:1] if many else own, place)
        self._read(hidden, wanted)
        if cache is not None and choosing:
            self._score_choices(cache, before, batch)

    def _score_choices(self, cache: Any, before: int, batch: list[Question]) -> None:
        """Score what follows the first token of each choice, after the keys and values of the questions."""
        choices = [
            (row, own, place)
            for row, question in enumerate(batch)
            if _is_long(question)
            for own, place in zip(question.continuations, question.places, strict=True)
            if len(own) > 1
        ]
        choices.sort(key=lambda choice: len(choice[1]), reverse=True)
        past = _past(cache)
        width = cache.get_seq_length()
        contexts = [len(question.context) for question in batch]
        while choices:
            longest = len(choices[0][1]) - 1
            most = self._together([len(tokens) - 1 for _, tokens, _ in choices], width)
            own, choices = choices[:most], choices[most:]
            lengths = torch.tensor([contexts[row] for row, _, _ in own])
            chosen = torch.tensor([row for row, _, _ in own], device=self._model.model.device)
            picked = [None if each is None else (each[0][chosen], each[1][chosen]) for each in past]
            places = torch.arange(width + longest)
            # What the contexts are padded with lies between them and the choices.
            mask = (places[None] < lengths[:, None]) | (places[None] >= width)
            positions = lengths[:, None] + torch.arange(longest)
            hidden = self._forward(
                [tokens[:-1] for _, tokens, _ in own], self._cache(picked, len(own)), mask, positions
            )
            wanted = _Wanted()
            for row, (_, tokens, place) in enumerate(own):
                wanted.add(row, 0, tokens[1:], place)
            self._read(hidden, wanted)

    def _together(self, lengths: Sequence[int], before: int) -> int:
        """Return how many rows make a batch: of about one length, since the longest is what all are padded to.

        Args:
            lengths: of rows, descending.
            before: tokens whose keys and values are kept for each.
        """
        longest = lengths[0]
        most = max(1, min(self._batch_tokens // longest, _CACHE_BYTES // (self._kept_bytes * (before + longest))))
        enough = -(-_FEWEST_TOKENS // longest)  # rows that are worth a batch of their own
        alike = next((row for row, length in enumerate(lengths) if length < _ALIKE * longest), len(lengths))
        return min(most, max(alike, enough))

    def _forward(
        self, rows: Sequence[Tokens], cache: Cache | None, mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Return final hidden states (rows, longest, hidden); rows are padded on the right, which nothing sees."""
        device, longest = self._model.model.device, max(map(len, rows))
        tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
        told: dict[str, Any] = {"use_cache": cache is not None}
        if cache is not None:
            told["past_key_values"] = cache
        if mask is not None and positions is not None:
            told |= {"attention_mask": mask.long().to(device), "position_ids": positions.to(device)}
        found: Tensor = self._model.decoder(tokens, **told).last_hidden_state
        return found

    def _read(self, hidden: Tensor, wanted: _Wanted) -> None:
        """Add to the sums what is predicted of the tokens wanted."""
        states = hidden[wanted.rows, wanted.tokens].to(self._head.device)
        ids = torch.tensor(wanted.ids, device=states.device)
        for first in range(0, len(states), _HEAD_ROWS):
            part = slice(first, first + _HEAD_ROWS)
            logits = self._head(states[part]).float()
            own = logits.gather(1, ids[part, None])[:, 0]
            places = torch.tensor(wanted.places[part])
            self._sums.index_add_(0, places, (own - logits.logsumexp(dim=-1)).cpu().double())
            missed = places[(own < logits.amax(dim=-1)).cpu()]
            self._greedy[missed] = False


def _past(cache: Any) -> _Past:
    """Return what a cache holds."""
    return [None if layer.keys is None else (layer.keys, layer.values) for layer in cache.layers]


def _is_long(question: Question) -> bool:
    """Return whether a question has choices of more than a token, which need a pass of their own."""
    return len(question.continuations) > 1 and any(len(own) > 1 for own in question.continuations)


def _window(model: DenseModel) -> int:
    """Return the tokens that every layer of a model attends to."""
    config = model.model.config
    sliding = getattr(config, "sliding_window", None)
    return int(sliding) if sliding else 2**31
