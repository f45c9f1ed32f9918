"""A pruned model in a stock class is the same model: bit for bit where layers are alike, to rounding where padded."""

import pytest
import torch

from evaluator import PRUNED, open_model, standalone
from evaluator.plain import even, padded
from space import Architecture, Criterion, ExportError
from tests.evaluator.pieces import logits_of, make_surgeon
from tests.evaluator.test_families import several
from tests.pico import PICOS, save_pico_of

ALIKE_HEADS = ("gpt2", "opt", "gpt_neox")  # whose stock classes derive the size of a head from their count


@pytest.fixture(scope="module", params=PICOS)
def folder(request, tmp_path_factory):
    return save_pico_of(request.param, tmp_path_factory.mktemp("pico"))


@pytest.fixture
def dense(folder):
    return open_model(str(folder), dtype="float32")


def all_of(layout, **kept):
    """Every layer narrowed alike."""
    layers = Architecture.dense(layout)
    for index in range(layout.layers):
        layers = layers.replace(index, **kept)
    return layers


@pytest.fixture
def pruned(dense):
    """Prune the model to an architecture, as often as one likes."""
    surgeon = make_surgeon(dense)

    def prune(architecture):
        surgeon.install(architecture)
        return standalone(dense, architecture)

    return prune


def test_removed_blocks_leave_a_stock_model(dense, pruned):
    architecture = Architecture.dense(dense.layout)
    for layer in (0, 2):
        architecture = architecture.replace(layer, kv_groups=0, mlp_width=0)
    model = pruned(architecture)
    plain = even(model)
    assert type(plain) is type(dense.model)
    assert torch.equal(logits_of(plain), logits_of(model))
    assert getattr(plain.config, dense.layout.record.layer_count) == 2


def test_layers_that_are_alike_are_a_stock_model(dense, pruned):
    groups = max(1, dense.layout.kv_groups // 2)
    model = pruned(all_of(dense.layout, mlp_width=20))
    assert torch.equal(logits_of(even(model)), logits_of(model))
    model = pruned(all_of(dense.layout, mlp_width=20, kv_groups=groups))
    if dense.layout.family in ALIKE_HEADS:
        assert even(model) is None
    else:
        assert torch.equal(logits_of(even(model)), logits_of(model))


def test_layers_that_differ_are_none(dense, pruned):
    layers = Architecture.dense(dense.layout)
    assert even(pruned(layers.replace(1, mlp_width=20))) is None
    assert even(pruned(layers.replace(1, mlp_width=0))) is None
    assert even(pruned(layers.replace(1, kv_groups=0))) is None


def test_padding_changes_nothing_but_the_last_digits(dense, pruned):
    model = pruned(several(dense.layout))
    filled = padded(model)
    assert type(filled) is type(dense.model)
    torch.testing.assert_close(logits_of(filled), logits_of(model), atol=2e-5, rtol=1e-5)
    narrow = pruned(all_of(dense.layout, mlp_width=20).replace(1, mlp_width=8, kv_groups=0))
    assert padded(narrow).config.to_dict()[dense.layout.record.mlp_width] == 20
    torch.testing.assert_close(logits_of(padded(narrow)), logits_of(narrow), atol=2e-5, rtol=1e-5)


def test_added_biases_have_no_place_in_a_stock_class(pico):
    criterion = Criterion(update="bias")
    surgeon = make_surgeon(pico, criterion)
    architecture = all_of(surgeon.layout, mlp_width=20)
    surgeon.install(architecture)
    object.__setattr__(pico, "layout", surgeon.layout)
    model = standalone(pico, architecture)
    assert even(model) is None
    with pytest.raises(ExportError, match=r"must have no biases but its family's to be padded, .*export to hugg"):
        padded(model)


def test_every_class_of_ours_knows_its_stock_class():
    assert {own.__mro__[1].__module__.split(".")[0] for _, own in PRUNED.values()} == {"transformers"}
