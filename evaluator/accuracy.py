"""Accuracy of a pruned model on text: negative log-likelihood and divergence from the dense model, token by token.

| symbol | meaning |
| --- | --- |
| p, q | next-token distributions of the dense and the pruned model |
| NLL | -log q[next token]; perplexity is exp of its mean |
| KL | sum over the vocabulary of p (log p - log q), in nats per token |
| agreement | whether both give the highest probability to the same token |

The dense side is computed once and kept compactly: its TOP_K most likely tokens, and TAIL_DRAWS tokens drawn from what
p leaves to all others. The sum over the others is then that share times the mean of log p - log q over the draws, which
is unbiased. (One bucket for all others, the usual way, loses up to 7 % of the KL where the draws err by up to 0.11 %:
SmolLM2-135M, uniform widths at 80 %.) The draws are the same for every architecture, so what they err by hardly enters
a comparison; `python -m tests.benchmarks.divergence` gives the error against the exact sum.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluator.checkpoint import DenseModel
from evaluator.kernels import EAGER, Kernels, running_by
from evaluator.pruning import iterate_batches

TOP_K = 256
TAIL_DRAWS = 64  # per predicted token
BATCH_TOKENS = 4096  # tokens through the decoder at once
CHUNK_TOKENS = 512  # tokens through the vocabulary projection at once: full logits never exist
_REFERENCE_ROWS = 128  # tokens whose whole distribution is there at once
_DRAWS_SEED = 0


@dataclass(frozen=True)
class Reference:
    """The dense model's predictions on a text, one row per predicted token (all but the first of a sequence).

    The columns of `ids` are the most likely tokens, then the draws from the others.
    """

    tokens: Tensor  # (sequences, sequence_length) int64
    ids: Tensor  # (predicted, TOP_K + TAIL_DRAWS) int32
    logprobs: Tensor  # (predicted, TOP_K + TAIL_DRAWS) float32
    rest: Tensor  # (predicted,) float32: probability outside the top
    best: Tensor  # (predicted,) int64: the most likely token; apart from ids, which order ties their own way

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
    generator = torch.Generator().manual_seed(_DRAWS_SEED)
    for logits, _ in _logits(dense, tokens):
        for part in logits.split(_REFERENCE_ROWS):
            chunk = part.log_softmax(dim=-1, dtype=torch.float32)
            chosen, rest = _choose(chunk, generator)
            ids.append(chosen.int().cpu())
            logprobs.append(chunk.gather(1, chosen).cpu())
            best.append(part.argmax(dim=-1).cpu())
            rests.append(rest.cpu())
    return Reference(tokens, torch.cat(ids), torch.cat(logprobs), torch.cat(rests), torch.cat(best))


def _choose(logprobs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the ids (tokens, TOP_K + TAIL_DRAWS) to keep and the probability (tokens,) outside the top.

    Args:
        logprobs: (tokens, vocabulary).
        generator: of the draws, on the CPU so that every device draws the same.
    """
    if logprobs.shape[-1] <= TOP_K:
        every = torch.arange(logprobs.shape[-1], device=logprobs.device).expand_as(logprobs)
        return every, logprobs.new_zeros(len(logprobs))
    top = logprobs.topk(TOP_K, dim=-1).indices
    others = logprobs.exp().scatter_(1, top, 0.0)
    rest = others.sum(dim=-1)
    # Where rounding leaves the others nothing, what is drawn counts nothing; it only has to be possible.
    draws = torch.multinomial(
        others.clamp_min(torch.finfo(torch.float32).tiny).cpu(), TAIL_DRAWS, replacement=True, generator=generator
    )
    return torch.cat([top, draws.to(top.device)], dim=1), rest


def score_tokens(dense: DenseModel, reference: Reference, kernels: Kernels = EAGER) -> TokenScores:
    """Score whatever is installed in the model now against the dense reference.

    Args:
        dense: the model, pruned or not.
        reference: the dense model's predictions on the text to score.
        kernels: by which steps the decoder and the loss run.
    """
    nlls, kls, agreements = [], [], []
    first = 0
    for logits, targets in _logits(dense, reference.tokens, kernels):
        rows = slice(first, first + len(targets))
        first += len(targets)
        ids, best = reference.ids[rows].to(logits.device), reference.best[rows].to(logits.device)
        highest, total = kernels.summary(logits)
        wanted = torch.cat([ids.long(), targets[:, None], best[:, None]], dim=1)
        found = logits.gather(1, wanted).float()
        nlls.append(total - found[:, -2])
        # A tie is an agreement: which of two equal logits comes first is chance.
        agreements.append((found[:, -1] >= highest).float())
        logprobs, rest = reference.logprobs[rows].to(logits.device), reference.rest[rows].to(logits.device)
        kls.append(_divergence(logprobs, rest, found[:, :-2] - total[:, None]))
    return TokenScores(torch.cat(nlls).cpu(), torch.cat(kls).cpu(), torch.cat(agreements).cpu())


def _divergence(logprobs: Tensor, rest: Tensor, pruned: Tensor) -> Tensor:
    """Return KL (tokens,): the sum over the top and the estimate of the rest, which may be below 0 for a single token.

    Args:
        logprobs: (tokens, TOP_K + TAIL_DRAWS) log p of the tokens kept, the top first.
        rest: (tokens,) p of all but the top.
        pruned: (tokens, TOP_K + TAIL_DRAWS) log q of the same tokens.
    """
    difference = logprobs - pruned
    top = (logprobs[:, :TOP_K].exp() * difference[:, :TOP_K]).sum(dim=-1)
    drawn = difference[:, TOP_K:]
    return top + rest * drawn.mean(dim=-1) if drawn.shape[1] else top


def _logits(dense: DenseModel, tokens: Tensor, kernels: Kernels = EAGER) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (logits (chunk, vocabulary), targets (chunk,)) over all predicted tokens, in order.

    Logits are good until the next are asked for: their memory is used again, since that of new ones would cost more
    time than the product.
    """
    head = dense.head()
    with torch.inference_mode():
        for batch in iterate_batches(tokens, BATCH_TOKENS):
            batch = batch.to(dense.model.device)
            with running_by(kernels, dense.decoder):
                hidden = dense.decoder(batch, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
            targets = batch[:, 1:].flatten()
            for part, wanted in zip(hidden.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True):
                yield head(part), wanted
