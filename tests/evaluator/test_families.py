"""Conformance of every family: what holds for a Llama holds for all, in every way their weights are laid out."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM
from transformers.integrations.heterogeneity import configuration_utils as heterogeneity

from evaluator import PRUNED, open_model, standalone
from evaluator.accuracy import make_reference, score_tokens
from evaluator.pruning import gather_statistics
from evaluator.pruning.statistics import input_paths
from evaluator.pruning.structures import columns_of, oriented
from search.export import huggingface
from space import FAMILIES, Architecture, Criterion, cost_of
from tests.evaluator.pieces import SLICING, dense_copy, logits_of, make_surgeon
from tests.pico import PICOS, pico_tokens, save_pico_of


@pytest.fixture(scope="module", params=PICOS)
def folder(request, tmp_path_factory):
    return save_pico_of(request.param, tmp_path_factory.mktemp("family"))


@pytest.fixture
def dense(folder):
    return open_model(str(folder), dtype="float32")


def several(layout) -> Architecture:
    """Something of everything that a layout allows."""
    architecture = Architecture.dense(layout).replace(0, kv_groups=0).replace(3, mlp_width=0)
    architecture = architecture.replace(1, mlp_width=20, attention_sparsity=0.5, mlp_sparsity=0.4)
    groups = max(1, layout.kv_groups // 2)
    return architecture.replace(2, kv_groups=groups, mlp_width=31)


def test_every_family_has_a_pico_model():
    assert {kind.split()[0] for kind in PICOS} == set(FAMILIES)


def test_nothing_pruned_gives_the_dense_logits_bit_for_bit(dense):
    before = logits_of(dense.model)
    surgeon = make_surgeon(dense, Criterion(weights="sparsegpt", update="least_squares"))
    assert torch.equal(logits_of(dense.model), before)
    surgeon.install(several(dense.layout))
    assert not torch.allclose(logits_of(dense.model), before, atol=1e-2)
    surgeon.restore()
    assert torch.equal(logits_of(dense.model), before)


def test_what_is_measured_is_the_models_own_loss(dense):
    tokens = pico_tokens(3, 24, 2)
    scores = score_tokens(dense, make_reference(dense, tokens))
    loss = torch.nn.functional.cross_entropy(
        logits_of(dense.model, tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    torch.testing.assert_close(scores.nll, loss, atol=1e-4, rtol=1e-4)
    assert float(scores.kl.abs().max()) < 1e-4
    assert scores.agreement.min() == 1


def masked(dense, surgeon, layer, groups=None, channels=None):
    """The dense model with what is not kept made zero where it is read."""
    reference, layout = dense_copy(dense), dense.layout
    for path, count, kept in (
        (layout.record.output, layout.kv_groups, groups),
        (layout.record.down, layout.mlp_width, channels),
    ):
        if kept is not None:
            projection = reference.get_submodule(layout.record.layers)[layer].get_submodule(path)
            weight = oriented(projection.weight.data, layout)
            gone = torch.tensor([index for index in range(count) if index not in kept], dtype=torch.int64)
            weight[:, columns_of(gone, weight.shape[1], count)] = 0
            if len(kept) == 0 and projection.bias is not None:
                projection.bias.data.zero_()
    return reference


def test_slicing_equals_masking(dense):
    surgeon, layout = make_surgeon(dense), dense.layout
    groups = max(1, layout.kv_groups // 2)
    kept_groups, kept_channels = surgeon.kept_groups(1, groups), surgeon.kept_channels(1, 20)
    reference = masked(dense, surgeon, 1, kept_groups, kept_channels)
    surgeon.install(Architecture.dense(layout).replace(1, kv_groups=groups, mlp_width=20))
    torch.testing.assert_close(logits_of(dense.model), logits_of(reference), atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("sub_block", ["attention", "mlp"])
def test_removing_equals_zeroing_the_output(dense, sub_block):
    surgeon, nothing = make_surgeon(dense), torch.tensor([], dtype=torch.int64)
    reference = masked(dense, surgeon, 2, *((nothing, None) if sub_block == "attention" else (None, nothing)))
    removed = {"kv_groups": 0} if sub_block == "attention" else {"mlp_width": 0}
    surgeon.install(Architecture.dense(dense.layout).replace(2, **removed))
    torch.testing.assert_close(logits_of(dense.model), logits_of(reference), atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("criterion", [SLICING, Criterion(update="bias")], ids=str)
def test_the_cost_is_the_real_count(dense, criterion):
    surgeon = make_surgeon(dense, criterion)
    architecture = several(surgeon.layout)
    surgeon.install(architecture)
    cost = cost_of(surgeon.layout, architecture)
    weights = [weight for layer in dense.layers for weight in layer.parameters()]
    assert sum(weight.numel() for weight in weights) == cost.parameters
    assert sum(int((weight != 0).sum()) for weight in weights) == cost.nonzero_parameters
    assert 2 * sum(weight.numel() for weight in dense.model.parameters()) == cost.weight_bytes


def test_an_export_is_opened_as_what_it_is_alone(dense, tmp_path):
    """A class told by hand to open it would make up what is removed, with no more than a warning."""
    architecture = Architecture.dense(dense.layout).replace(1, mlp_width=0)
    make_surgeon(dense).install(architecture)
    standalone(dense, architecture).save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match="`layer_types` entries must be in"):
        type(dense.model).from_pretrained(tmp_path)
    other = PRUNED["opt" if dense.layout.family != "opt" else "llama"][1]
    with pytest.raises(ValueError, match=rf"must be opened as one, .* is of a secateur_{dense.layout.family}"):
        other.from_pretrained(tmp_path)


@pytest.mark.parametrize("criterion", [SLICING, Criterion(update="bias")], ids=str)
def test_an_export_loads_and_generates_the_same_with_a_cache(dense, tmp_path, criterion, monkeypatch):
    surgeon = make_surgeon(dense, criterion)
    layout, model = surgeon.layout, dense.model
    architecture = several(layout)
    surgeon.install(architecture)
    object.__setattr__(dense, "layout", layout)
    # The fresh process takes seconds, and has its own tests.
    monkeypatch.setattr(huggingface, "verify", lambda *_, **__: None)
    warned: list[str] = []
    monkeypatch.setattr(heterogeneity.logger, "warning_once", warned.append)
    huggingface.write_folder(standalone(dense, architecture), dense, tmp_path / "export", {})
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    assert torch.equal(logits_of(loaded), logits_of(model))
    start = pico_tokens(1, 16, 4)

    def generate(use_cache):
        return loaded.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=20,
            do_sample=False,
            use_cache=use_cache,
            eos_token_id=None,
        )

    assert generate(True).tolist() == generate(False).tolist()
    # What the cache holds is what the closed form counts, per token.
    layers = loaded(start[:, :8], use_cache=True).past_key_values.layers
    held = [each for each in layers if getattr(each, "keys", None) is not None]
    values = sum(each.keys.numel() + each.values.numel() for each in held)
    assert 2 * values == 8 * cost_of(layout, architecture).kv_cache_bytes_per_token
    assert warned == []  # of widths that differ, to whoever opens or runs an export


def test_block_by_block_statistics_are_those_of_one_pass(dense):
    tokens = pico_tokens(2, 32, 5)
    seen: dict[tuple[int, str], torch.Tensor] = {}
    paths = input_paths(dense.layout.record)
    handles = [
        layer.get_submodule(path).register_forward_pre_hook(
            lambda _, inputs, key=(index, path): seen.update({key: inputs[0].flatten(0, -2)})
        )
        for index, layer in enumerate(dense.layers)
        for path in paths
    ]
    logits_of(dense.model, tokens)
    for handle in handles:
        handle.remove()
    found = list(gather_statistics(dense.decoder, dense.layers, dense.layout.record, [tokens]))
    assert len(seen) == len(paths) * 4
    for (index, path), features in seen.items():
        torch.testing.assert_close(found[index].inputs[path].norms, features.norm(dim=0), atol=1e-4, rtol=1e-4)
