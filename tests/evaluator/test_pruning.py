"""Slicing, masking and removing do what the mathematics says, and can always be taken back."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluator.pruning import wanda
from evaluator.pruning.statistics import gather_statistics
from space import Architecture, ArchitectureError, LayerArchitecture, cost_of
from space.cost import fixed_cost, zeros_per_row
from tests.evaluator.pieces import dense_copy, logits_of, make_surgeon, mixed
from tests.pico import pico_tokens

WEIGHT = torch.tensor(
    [
        [1.0, -2.0, 3.0, -4.0],
        [4.0, 3.0, -2.0, 1.0],
        [-1.0, 1.0, 1.0, -1.0],
        [0.0, 5.0, 0.5, -2.0],
    ]
)
NORMS = torch.tensor([1.0, 2.0, 0.5, 0.25])


def test_weight_scores_by_hand():
    expected = [[1, 4, 1.5, 1], [4, 6, 1, 0.25], [1, 2, 0.5, 0.25], [0, 10, 0.25, 0.5]]
    assert wanda.weight_scores(WEIGHT, NORMS).tolist() == expected


def test_row_mask_by_hand():
    scores = torch.tensor([[1.0, 4, 1.5, 0.5], [4, 6, 1, 0.25], [1, 2, 0.5, 0.25], [0, 10, 0.25, 0.5]])
    # Half of each row goes, compared within the row: a weight that stays in one row may score below one that goes.
    half = [[0, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 1]]
    assert wanda.row_mask(scores, 0.5).int().tolist() == half
    # Three quarters of four less a bit: the count is rounded down.
    assert wanda.row_mask(scores, 0.74).int().sum(dim=1).tolist() == [2, 2, 2, 2]
    assert wanda.row_mask(scores, 0.0).all()


def test_channel_and_group_scores_by_hand():
    columns = [18**0.5, 39**0.5 * 2, 14.25**0.5 / 2, 22**0.5 / 4]
    assert wanda.channel_scores(WEIGHT, NORMS).tolist() == pytest.approx(columns)
    groups = [(18 + 39 * 4) ** 0.5, (14.25 / 4 + 22 / 16) ** 0.5]
    assert wanda.group_scores(WEIGHT, NORMS, 2).tolist() == pytest.approx(groups)


def test_kept_are_the_highest_in_order_and_ties_go_to_the_lower_index():
    assert wanda.kept(torch.tensor([1.0, 5.0, 3.0, 4.0]), 2).tolist() == [1, 3]
    assert wanda.kept(torch.tensor([2.0, 2.0, 2.0, 2.0]), 3).tolist() == [0, 1, 2]


@given(rows=st.integers(1, 6), columns=st.integers(1, 40), sparsity=st.floats(0, 0.99), seed=st.integers(0, 2**16))
def test_every_row_has_exactly_the_zeros_that_its_cost_counts(rows, columns, sparsity, seed):
    scores = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).abs()
    mask = wanda.row_mask(scores, sparsity)
    assert (~mask).sum(dim=1).tolist() == [zeros_per_row(columns, sparsity)] * rows
    for row, kept in zip(scores, mask, strict=True):
        if (~kept).any() and kept.any():
            assert row[~kept].max() <= row[kept].min()


def test_statistics_are_those_of_the_projections_inputs(pico):
    tokens = pico_tokens(4, 16, 3)
    seen, streams = [], []
    layer = pico.layers[2]
    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])),
        layer.register_forward_hook(lambda _, inputs, output: streams.append((inputs[0], output))),
    ]
    logits_of(pico.model, tokens)
    for handle in handles:
        handle.remove()
    told = []
    family = pico.layout.record
    found = list(gather_statistics(pico.decoder, pico.layers, family, tokens.split(2), "structures", told.append))
    assert told == [1] * 6
    inputs, features = found[2].inputs["mlp.down_proj"], seen[0].flatten(0, 1)
    assert inputs.tokens == 64
    torch.testing.assert_close(inputs.norms, features.norm(dim=0))
    torch.testing.assert_close(inputs.mean, features.mean(dim=0))
    torch.testing.assert_close(inputs.variance, features.var(dim=0, correction=0))
    torch.testing.assert_close(inputs.second_moments, features.T @ features)
    assert found[2].inputs["self_attn.q_proj"].second_moments is None
    assert found[2].inputs["self_attn.q_proj"] is found[2].inputs["self_attn.v_proj"]
    [(before, after)] = streams
    cosine = torch.nn.functional.cosine_similarity(before, after, dim=-1).mean()
    assert found[2].influence == pytest.approx(1 - float(cosine), abs=1e-6)
    chosen = inputs.select(torch.tensor([3, 5]))
    torch.testing.assert_close(chosen.second_moments, features[:, [3, 5]].T @ features[:, [3, 5]])


def test_statistics_are_the_same_where_the_inputs_lie_on_disk(pico, monkeypatch):
    mapped = []
    from_file = torch.from_file
    monkeypatch.setattr(torch, "from_file", lambda *a, **k: mapped.append(1) or from_file(*a, **k))
    batches = pico_tokens(4, 16, 3).split(2)
    arguments = (pico.decoder, pico.layers, pico.layout.record, batches, "all")
    in_memory = list(gather_statistics(*arguments))
    assert not mapped
    one_of_two = list(gather_statistics(*arguments, allowance=2 * 16 * 32 * 4))
    assert len(mapped) == 1
    for mine, other in zip(in_memory, one_of_two, strict=True):
        assert mine.influence == other.influence
        for path in mine.inputs:
            assert torch.equal(mine.inputs[path].second_moments, other.inputs[path].second_moments)
            assert torch.equal(mine.inputs[path].sums, other.inputs[path].sums)


def test_between_two_layers_the_caller_has_its_own_modes(pico):
    for _ in gather_statistics(pico.decoder, pico.layers, pico.layout.record, [pico_tokens(1, 8, 3)]):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


def test_slicing_channels_equals_masking_them(pico):
    reference, surgeon = dense_copy(pico), make_surgeon(pico)
    kept = surgeon.kept_channels(3, 20)
    gone = [channel for channel in range(pico.layout.mlp_width) if channel not in kept]
    reference.model.layers[3].mlp.down_proj.weight.data[:, gone] = 0
    surgeon.install(Architecture.dense(pico.layout).replace(3, mlp_width=20))
    assert pico.layers[3].mlp.gate_proj.weight.shape == (20, 32)
    torch.testing.assert_close(logits_of(pico.model), logits_of(reference), atol=1e-4, rtol=0)


def test_slicing_kv_groups_equals_masking_their_heads(pico):
    reference, surgeon = dense_copy(pico), make_surgeon(pico)
    layout = pico.layout
    kept = surgeon.kept_groups(2, 2)
    size = layout.heads_per_group * layout.head_dim
    for group in set(range(layout.kv_groups)) - set(kept.tolist()):
        reference.model.layers[2].self_attn.o_proj.weight.data[:, group * size : (group + 1) * size] = 0
    surgeon.install(Architecture.dense(layout).replace(2, kv_groups=2))
    assert pico.layers[2].self_attn.k_proj.weight.shape == (2 * layout.head_dim, 32)
    torch.testing.assert_close(logits_of(pico.model), logits_of(reference), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("genes", "zeroed"),
    [
        ({"kv_groups": 0}, ["self_attn.o_proj"]),
        ({"mlp_width": 0}, ["mlp.down_proj"]),
        ({"kv_groups": 0, "mlp_width": 0}, ["self_attn.o_proj", "mlp.down_proj"]),
    ],
)
@pytest.mark.parametrize("layer", [0, 3, 5])
def test_removing_equals_zeroing_the_output(pico, genes, zeroed, layer):
    reference, surgeon = dense_copy(pico), make_surgeon(pico)
    for path in zeroed:
        reference.model.layers[layer].get_submodule(path).weight.data.zero_()
    surgeon.install(Architecture.dense(pico.layout).replace(layer, **genes))
    torch.testing.assert_close(logits_of(pico.model), logits_of(reference), atol=1e-5, rtol=0)
    assert not torch.equal(logits_of(pico.model), logits_of(dense_copy_of_restored(surgeon, pico)))


def dense_copy_of_restored(surgeon, dense):
    surgeon.restore()
    return dense_copy(dense)


def test_restoring_gives_the_dense_logits_bit_for_bit(pico):
    before = logits_of(pico.model)
    surgeon = make_surgeon(pico)
    surgeon.install(mixed(pico))
    assert not torch.equal(logits_of(pico.model), before)
    surgeon.restore()
    assert torch.equal(logits_of(pico.model), before)
    assert surgeon.installed == Architecture.dense(pico.layout)


def test_the_way_to_an_architecture_does_not_matter(pico):
    surgeon = make_surgeon(pico)
    mine = mixed(pico)
    surgeon.install(mine)
    directly = logits_of(pico.model)
    other = Architecture((LayerArchitecture(3, 40, 0.3, 0.6),) * 6).replace(5, kv_groups=0)
    for way in (other, mine, other.replace(1, mlp_width=0), mine):
        surgeon.install(way)
    assert torch.equal(logits_of(pico.model), directly)


def test_each_projection_has_its_own_rows_whatever_was_installed_before(pico):
    surgeon = make_surgeon(pico)
    layout, family = pico.layout, pico.layout.record
    narrower = [
        Architecture(tuple(LayerArchitecture(layout.kv_groups, width - 4 * i) for i in range(layout.layers)))
        for width in (layout.mlp_width - 4, layout.mlp_width // 2)
    ]
    for architecture in (*narrower, narrower[0]):
        surgeon.install(architecture)
        for index, layer in enumerate(architecture.layers):
            kept = surgeon.kept_channels(index, layer.mlp_width)
            for path in (family.gate, family.up):
                module = pico.layers[index].get_submodule(path)
                assert torch.equal(module.weight, surgeon.dense_weight(index, path)[kept])
    surgeon.restore()


def test_widths_and_sparsity_at_once(pico):
    surgeon = make_surgeon(pico)
    surgeon.install(Architecture.dense(pico.layout).replace(1, kv_groups=3, attention_sparsity=0.5))
    surgeon.install(Architecture.dense(pico.layout).replace(1, kv_groups=2, attention_sparsity=0.5, mlp_width=30))
    narrow = pico.layers[1].self_attn
    assert narrow.o_proj.weight.shape == (32, 16)  # not the mask of the wider one from the cache
    assert (narrow.o_proj.weight == 0).sum(dim=1).tolist() == [8] * 32
    # Masks of what is kept: each kept weight is a dense one, in the kept columns.
    kept = surgeon.kept_groups(1, 2)
    columns = (kept[:, None] * 8 + torch.arange(8)).flatten()
    dense = surgeon._dense[1]["self_attn.o_proj"].weight[:, columns]
    alive = narrow.o_proj.weight != 0
    assert torch.equal(narrow.o_proj.weight[alive], dense[alive])


def test_an_architecture_that_does_not_fit_changes_nothing(pico):
    surgeon = make_surgeon(pico)
    before = logits_of(pico.model)
    with pytest.raises(ArchitectureError, match="mlp_width must be between 0 and 48 in layer 4, but is 49"):
        surgeon.install(Architecture.dense(pico.layout).replace(4, mlp_width=49))
    assert torch.equal(logits_of(pico.model), before)


LAYERS = st.builds(
    LayerArchitecture,
    kv_groups=st.integers(0, 4),
    mlp_width=st.integers(0, 48),
    attention_sparsity=st.sampled_from([0.0, 0.25, 0.5, 0.7]),
    mlp_sparsity=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layers=st.lists(LAYERS, min_size=6, max_size=6))
def test_the_model_in_memory_costs_what_the_closed_form_says(pico, layers):
    # One model for all examples, which are installed one over the other.
    if not hasattr(pico.model, "surgeon_of_this_test"):
        object.__setattr__(pico.model, "surgeon_of_this_test", make_surgeon(pico))
    surgeon = pico.model.surgeon_of_this_test
    architecture = Architecture(tuple(layers))
    surgeon.install(architecture)
    cost = cost_of(pico.layout, architecture)
    weights = [weight for layer in pico.layers for weight in layer.parameters()]
    assert sum(weight.numel() for weight in weights) == cost.parameters
    # Dense weights are never exactly 0, so that every zero is the mask's.
    assert sum(int((weight != 0).sum()) for weight in weights) == cost.nonzero_parameters
    whole = sum(weight.numel() for weight in pico.model.parameters())
    assert 2 * whole == cost.weight_bytes == 2 * cost.parameters + fixed_cost(pico.layout).weight_bytes
