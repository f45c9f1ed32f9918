"""What the evaluator's tests build evaluators from."""

import copy

import torch

from evaluator import DenseModel, Evaluator, PairStore, Texts
from evaluator.pruning import Levels, Surgeon, gather_gradients, gather_statistics
from evaluator.pruning.criteria import moments_for, needs_gradients
from evaluator.pruning.statistics import LayerStatistics
from space import Architecture, Criterion
from tests.pico import pico_tokens


def random_texts(sequences: int = 4, length: int = 32) -> Texts:
    """Return four splits of random tokens."""
    names = ("calibrate", "search", "validate", "report")
    tokens = {name: pico_tokens(sequences, length, seed) for seed, name in enumerate(names)}
    return Texts(tokens, dict.fromkeys(names, "random"))


def make_evaluator(dense: DenseModel, place, texts: Texts | None = None, **more) -> Evaluator:
    """Return an evaluator of a model on random text, with its store in a folder."""
    place.mkdir(parents=True, exist_ok=True)
    return Evaluator(dense, texts or random_texts(), PairStore(place / "pairs.db"), **more)


SLICING = Criterion(update="none")


def make_surgeon(dense: DenseModel, criterion: Criterion = SLICING, levels: Levels | None = None) -> Surgeon:
    """Return a surgeon of a model, calibrated on random text."""
    layout = dense.layout.pruned_by(criterion)
    return Surgeon(dense.layers, layout, make_statistics(dense, criterion), criterion, levels)


def make_statistics(dense: DenseModel, criterion: Criterion) -> list[LayerStatistics]:
    """Return what a criterion needs to know of a model on random text."""
    tokens = pico_tokens(4, 32, 7)
    family = dense.layout.record
    found = list(gather_statistics(dense.decoder, dense.layers, family, [tokens], moments_for(criterion)))
    if not needs_gradients(criterion):
        return found
    scores = gather_gradients(dense.model, dense.layers, dense.layout, tokens.split(1))
    return [LayerStatistics(each.inputs, each.influence, own) for each, own in zip(found, scores, strict=True)]


def logits_of(model, tokens: torch.Tensor | None = None) -> torch.Tensor:
    """Return a model's logits on random text."""
    with torch.inference_mode():
        return model(pico_tokens(2, 24, 9) if tokens is None else tokens, use_cache=False).logits.clone()


def dense_copy(dense: DenseModel):
    """Return a copy of the model that no surgeon touches."""
    return copy.deepcopy(dense.model)


def mixed(dense: DenseModel) -> Architecture:
    """Return an architecture with something of everything: narrower, removed, sparse."""
    architecture = Architecture.dense(dense.layout)
    architecture = architecture.replace(0, kv_groups=0)
    architecture = architecture.replace(1, kv_groups=2, mlp_width=24)
    architecture = architecture.replace(2, kv_groups=0, mlp_width=0)
    architecture = architecture.replace(3, kv_groups=1, attention_sparsity=0.5)
    architecture = architecture.replace(4, mlp_width=30, mlp_sparsity=0.4)
    return architecture.replace(5, mlp_width=0)
