"""Accuracy of a pruned model on text: negative log-likelihood and divergence from the dense model, token by token.

| symbol | meaning |
| --- | --- |
| p, q | next-token distributions of the dense and the pruned model |
| NLL | -log q[next token]; perplexity is exp of its mean |
| KL | sum over the vocabulary of p (log p - log q), in nats per token |
| agreement | whether both give the highest probability to the same token |

The dense side is computed once and kept as its TOP_K most likely tokens and the rest as one bucket. Merging tokens into
a bucket can only lower KL, by less than 1 % at this size; its variance per token is far below that of perplexity.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluator.checkpoint import DenseModel
from evaluator.pruning import iterate_batches

TOP_K = 256
BATCH_TOKENS = 4096  # tokens through the decoder at once
CHUNK_TOKENS = 512  # tokens through the vocabulary projection at once: full logits never exist
_SMALLEST = 1e-7  # float32 cannot tell 1 minus the sum of the top from 0 below this


@dataclass(frozen=True)
class Reference:
    """The dense model's predictions on a text, one row per predicted token (all but the first of a sequence)."""

    tokens: Tensor  # (sequences, sequence_length) int64
    top_ids: Tensor  # (predicted, TOP_K) int64
    top_logprobs: Tensor  # (predicted, TOP_K) float32
    rest: Tensor  # (predicted,) float32: probability outside the top
    best: Tensor  # (predicted,) int64: the most likely token; apart from top_ids, which orders ties its own way

    @property
    def predicted(self) -> int:
        """Tokens predicted."""
        return self.tokens.shape[0] * (self.tokens.shape[1] - 1)


@dataclass(frozen=True)
class TokenScores:
    """Scores of each predicted token, float32 (predicted,)."""

    nll: Tensor
    kl: Tensor
    agreement: Tensor


def make_reference(dense: DenseModel, tokens: Tensor) -> Reference:
    """Run the dense model over a text once and keep its predictions compactly.

    Args:
        dense: the model, with nothing pruned.
        tokens: (sequences, sequence_length) token ids.
    """
    ids, logprobs, rests, best = [], [], [], []
    for logits, _ in _logits(dense, tokens):
        chunk = logits.log_softmax(dim=-1)
        top = chunk.topk(min(TOP_K, chunk.shape[-1]), dim=-1)
        ids.append(top.indices.cpu())
        logprobs.append(top.values.cpu())
        best.append(logits.argmax(dim=-1).cpu())
        rests.append((1 - top.values.exp().sum(dim=-1)).clamp_min(0).cpu())
    return Reference(tokens, torch.cat(ids), torch.cat(logprobs), torch.cat(rests), torch.cat(best))


def score_tokens(dense: DenseModel, reference: Reference) -> TokenScores:
    """Score whatever is installed in the model now against the dense reference.

    Args:
        dense: the model, pruned or not.
        reference: the dense model's predictions on the text to score.
    """
    nlls, kls, agreements = [], [], []
    first = 0
    for logits, targets in _logits(dense, reference.tokens):
        rows = slice(first, first + len(targets))
        first += len(targets)
        ids = reference.top_ids[rows].to(logits.device)
        total = logits.logsumexp(dim=-1)
        nlls.append(total - logits.gather(1, targets[:, None])[:, 0])
        kls.append(
            _divergence(
                reference.top_logprobs[rows].to(logits.device),
                reference.rest[rows].to(logits.device),
                logits.gather(1, ids) - total[:, None],
            )
        )
        agreements.append((logits.argmax(dim=-1) == reference.best[rows].to(logits.device)).float())
    return TokenScores(torch.cat(nlls).cpu(), torch.cat(kls).cpu(), torch.cat(agreements).cpu())


def _divergence(top: Tensor, rest: Tensor, pruned_top: Tensor) -> Tensor:
    """Return KL over the top tokens and the bucket of the rest.

    Args:
        top: (tokens, k) log p of the dense model's top.
        rest: (tokens,) p of the rest.
        pruned_top: (tokens, k) log q of the same tokens.
    """
    kl = (top.exp() * (top - pruned_top)).sum(dim=-1)
    pruned_rest = (1 - pruned_top.exp().sum(dim=-1)).clamp_min(_SMALLEST)
    rest = rest.clamp_min(_SMALLEST)
    bucket = rest * (rest.log() - pruned_rest.log())
    return (kl + bucket).clamp_min(0)


def _logits(dense: DenseModel, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (logits (chunk, vocabulary) float32, targets (chunk,)) over all predicted tokens, in order."""
    project = dense.model.get_output_embeddings()
    with torch.inference_mode():
        for batch in iterate_batches(tokens, BATCH_TOKENS):
            batch = batch.to(dense.model.device)
            hidden = dense.decoder(batch, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
            targets = batch[:, 1:].flatten()
            for part, wanted in zip(hidden.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True):
                yield project(part).float(), wanted
