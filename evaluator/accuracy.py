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
a comparison.

The same tokens also tell nearly by how much to divide q: to normalise it by them alone (`estimated`) spares the logits
of 99 % of the vocabulary. `python -m tests.benchmarks.divergence` gives the errors against exact sums.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluator.checkpoint import DenseModel
from evaluator.head import Head
from evaluator.kernels import EAGER, Kernels, running_by
from evaluator.pruning import iterate_batches

TOP_K = 256
TAIL_DRAWS = 64  # per predicted token
BATCH_TOKENS = 4096  # tokens through the decoder at once
CHUNK_TOKENS = 512  # tokens through the vocabulary projection at once: full logits never exist,
GPU_CHUNK_TOKENS = 4096  # and on a GPU, which has the memory, so many
_REFERENCE_ROWS = 128  # tokens whose whole distribution is there at once
_DRAWS_SEED = 0
_FEWEST_WORDS = 16 * TOP_K  # of a vocabulary of which those kept are worth gathering


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


def make_reference(
    dense: DenseModel, tokens: Tensor, kernels: Kernels = EAGER, progress: Callable[[int], None] = lambda _: None
) -> Reference:
    """Run the dense model over a text once and keep its predictions compactly.

    Args:
        dense: the model, with nothing pruned.
        tokens: (sequences, sequence_length) token ids.
        kernels: by which steps the decoder runs.
        progress: told the tokens of each batch.
    """
    vocabulary = dense.layout.vocabulary
    predicted = tokens.shape[0] * (tokens.shape[1] - 1)
    columns = TOP_K + TAIL_DRAWS if vocabulary > TOP_K else vocabulary
    head = Head(dense)
    # All at the start: small results kept between large ones that go would leave holes that nothing fits into.
    with head.device:
        reference = Reference(
            tokens,
            ids=torch.empty(predicted, columns, dtype=torch.int32),
            logprobs=torch.empty(predicted, columns),
            rest=torch.empty(predicted),
            best=torch.empty(predicted, dtype=torch.int64),
        )
    generator = torch.Generator().manual_seed(_DRAWS_SEED)
    first = 0
    for hidden, targets in _hidden(dense, tokens, kernels):
        for part in head(hidden).split(_REFERENCE_ROWS):
            rows = slice(first, first + len(part))
            first += len(part)
            chunk = part.log_softmax(dim=-1, dtype=torch.float32)
            chosen, rest = _choose(chunk, generator)
            reference.ids[rows], reference.logprobs[rows] = chosen, chunk.gather(1, chosen)
            reference.best[rows], reference.rest[rows] = part.argmax(dim=-1), rest
        progress(len(targets))
    return reference


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


def estimating_pays(dense: DenseModel) -> bool:
    """Return whether a measurement by an estimated normaliser is the faster one: not where matrix units idle."""
    return dense.model.device.type == "cpu" and dense.layout.vocabulary >= _FEWEST_WORDS


def score_tokens(
    dense: DenseModel,
    reference: Reference,
    kernels: Kernels = EAGER,
    estimated: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> TokenScores:
    """Score whatever is installed in the model now against the dense reference.

    Args:
        dense: the model, pruned or not.
        reference: the dense model's predictions on the text to score.
        kernels: by which steps the decoder and the loss run.
        estimated: whether log q is normalised by an estimate from the tokens that the reference keeps, without the
            logits of all others.
        progress: told the tokens of each batch.
    """
    nlls, kls, agreements = [], [], []
    first = 0
    head = Head(dense)
    for hidden, targets in _hidden(dense, reference.tokens, kernels):
        rows = slice(first, first + len(targets))
        first += len(targets)
        kept, best, logprobs, rest = (
            each[rows] for each in (reference.ids, reference.best, reference.logprobs, reference.rest)
        )
        wanted = torch.cat([kept.long(), targets[:, None], best[:, None]], dim=1)
        if estimated:
            found = head.of(hidden, wanted).float()
            highest, total = found.amax(dim=-1), _estimated_normaliser(found[:, :-2], logprobs, rest)
        else:
            logits = head(hidden)
            highest, total = kernels.summary(logits)
            found = logits.gather(1, wanted).float()
        nlls.append(total - found[:, -2])
        # A tie is an agreement: which of two equal logits comes first is chance.
        agreements.append((found[:, -1] >= highest).float())
        kls.append(divergence(logprobs, rest, found[:, :-2] - total[:, None]))
        progress(len(targets))
    return TokenScores(torch.cat(nlls).cpu(), torch.cat(kls).cpu(), torch.cat(agreements).cpu())


def unit_losses(dense: DenseModel, tokens: Tensor, progress: Callable[[int], None] = lambda _: None) -> Tensor:
    """Return the mean negative log-likelihood of each unit of text (units,), nats per token.

    Args:
        dense: the model that judges, as it is installed.
        tokens: (units, size) token ids.
        progress: told the tokens of each step.
    """
    head, found = Head(dense), []
    for hidden, targets in _hidden(dense, tokens):
        logits = head(hidden).float()
        found.append((logits.logsumexp(dim=-1) - logits.gather(1, targets[:, None])[:, 0]).cpu())
        progress(len(targets))
    return torch.cat(found).view(len(tokens), -1).mean(dim=1)


def _estimated_normaliser(found: Tensor, logprobs: Tensor, rest: Tensor) -> Tensor:
    """Return the log of the sum of exp(logit) over the vocabulary (tokens,), from the tokens kept.

    The sum over the others is rest x the mean of exp(logit) / p over draws from p among them (importance sampling), so
    it is unbiased, and its log a little low, the more so the less q is like p.

    Args:
        found: (tokens, TOP_K + TAIL_DRAWS) logits of the tokens kept, the top first.
        logprobs: (tokens, TOP_K + TAIL_DRAWS) log p of the same tokens.
        rest: (tokens,) p of all but the top.
    """
    drawn = found[:, TOP_K:] - logprobs[:, TOP_K:] + (rest / TAIL_DRAWS).log()[:, None]
    return torch.cat([found[:, :TOP_K], drawn], dim=1).logsumexp(dim=-1)


def divergence(logprobs: Tensor, rest: Tensor, pruned: Tensor) -> Tensor:
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


def _hidden(dense: DenseModel, tokens: Tensor, kernels: Kernels = EAGER) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (final hidden states (chunk, hidden), targets (chunk,)) over all predicted tokens, in order."""
    device = Head(dense).device
    with torch.inference_mode():
        for batch in iterate_batches(tokens, BATCH_TOKENS):
            batch = batch.to(dense.model.device)
            with running_by(kernels, dense.decoder):
                hidden = dense.decoder(batch, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
            hidden = hidden.to(device)  # the last of several
            targets = batch[:, 1:].flatten().to(device)
            size = GPU_CHUNK_TOKENS if device.type == "cuda" else CHUNK_TOKENS
            yield from zip(hidden.split(size), targets.split(size), strict=True)
