"""Each criterion's mathematics, by hand and against an independent computation."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluator import open_model
from evaluator.pruning import (
    InputStatistics,
    activation,
    criteria,
    depth,
    dsnot,
    flap,
    gather_gradients,
    least_squares,
    magnitude,
    owl,
    patterns,
    projections,
    sparsegpt,
    taylor,
    wanda,
)
from evaluator.pruning.structures import oriented, totals
from space import Architecture, Criterion, LayerArchitecture, SettingError
from space.cost import mlp_cost, zeros_per_row
from tests.evaluator.pieces import make_surgeon
from tests.pico import PICOS, pico_tokens, save_pico_of

WEIGHT = torch.tensor([[1.0, -2.0, 3.0, -4.0], [4.0, 3.0, -2.0, 1.0]])


def layer(seed, rows=24, columns=40, tokens=400):
    """A projection and inputs whose features are correlated and of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns)
    inputs = torch.randn(tokens, columns, generator=generator) @ mixing
    inputs = inputs * torch.rand(columns, generator=generator).mul(2).exp()
    return torch.randn(rows, columns, generator=generator), inputs


class TestMagnitude:
    def test_by_hand(self):
        assert magnitude.weight_scores(WEIGHT).tolist() == [[1, 2, 3, 4], [4, 3, 2, 1]]


class TestPatterns:
    def test_by_hand(self):
        scores = torch.tensor([[1.0, 4, 2, 3, 9, 8, 7, 6], [0, 0, 1, 2, 5, 6, 5, 7]])
        kept = [[0, 1, 0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 0, 1, 0, 1]]
        assert patterns.pattern_mask(scores, 2, 4).int().tolist() == kept
        assert patterns.pattern_mask(scores, 4, 8).int().sum(dim=1).tolist() == [4, 4]

    @given(columns=st.integers(1, 30), pattern=st.sampled_from([(2, 4), (4, 8), (1, 4)]), seed=st.integers(0, 2**16))
    def test_every_group_keeps_its_share(self, columns, pattern, seed):
        kept, group = pattern
        mask = patterns.pattern_mask(torch.randn(3, columns, generator=torch.Generator().manual_seed(seed)), *pattern)
        assert mask.shape == (3, columns)
        for part in mask.split(group, dim=1):
            assert part.sum(dim=1).tolist() == [min(kept, part.shape[1])] * 3


class TestSparseGPT:
    def test_two_columns_by_hand(self):
        # H = [[2, 1], [1, 1]] without damping; removing column 0 of (1, 3) leaves 3 + 1 * 1 / 1 for column 1.
        moments = torch.tensor([[2.0, 1.0], [1.0, 1.0]])
        found = sparsegpt.prune(torch.tensor([[1.0, 3.0]]), moments, 0.5, damping=0.0)
        assert found.tolist() == [[0.0, pytest.approx(4.0)]]
        assert sparsegpt.reconstruction_error(torch.tensor([[1.0, 3.0]]), found, moments) == pytest.approx(1.0)

    def test_orthogonal_inputs_make_it_wanda(self):
        weight, _ = layer(0)
        moments = torch.diag(torch.rand(40, generator=torch.Generator().manual_seed(1)) + 0.5)
        mask = wanda.row_mask(wanda.weight_scores(weight, moments.diagonal().sqrt()), 0.5)
        torch.testing.assert_close(sparsegpt.prune(weight, moments, 0.5, damping=0.0), weight * mask)

    @settings(max_examples=20, deadline=None)
    @given(seed=st.integers(0, 2**16), sparsity=st.sampled_from([0.3, 0.5, 0.7, 0.9]))
    def test_its_error_is_never_above_wandas(self, seed, sparsity):
        weight, inputs = layer(seed, columns=150)
        moments = inputs.T @ inputs
        masked = weight * wanda.row_mask(wanda.weight_scores(weight, inputs.norm(dim=0)), sparsity)
        found = sparsegpt.prune(weight, moments, sparsity)
        assert (found == 0).sum(dim=1).tolist() == [zeros_per_row(150, sparsity)] * len(weight)
        before, after = (sparsegpt.reconstruction_error(weight, each, moments) for each in (masked, found))
        assert after <= before
        if sparsity < 0.9:
            assert after < before
        assert after == pytest.approx(float((inputs @ (weight - found).T).square().sum()), rel=1e-3)

    @pytest.mark.parametrize("pattern", [(2, 4), (4, 8)])
    def test_patterns_hold_and_beat_masking(self, pattern):
        weight, inputs = layer(3)
        moments = inputs.T @ inputs
        found = sparsegpt.prune(weight, moments, pattern=pattern)
        for part in (found != 0).split(pattern[1], dim=1):
            assert (part.sum(dim=1) <= pattern[0]).all()
        masked = weight * patterns.pattern_mask(wanda.weight_scores(weight, inputs.norm(dim=0)), *pattern)
        before, after = (sparsegpt.reconstruction_error(weight, each, moments) for each in (masked, found))
        assert after < before

    def test_nothing_pruned_is_nothing_changed_and_dead_inputs_have_no_weight(self):
        weight, inputs = layer(4)
        torch.testing.assert_close(sparsegpt.prune(weight, inputs.T @ inputs, 0.0), weight)
        inputs[:, 7] = 0
        found = sparsegpt.prune(weight, inputs.T @ inputs, 0.5)
        assert (found[:, 7] == 0).all()
        assert found.isfinite().all()


class TestDSnoT:
    def test_a_swap_by_hand(self):
        weight = torch.tensor([[2.0, -1.0, 3.0, 1.0]])
        mask = torch.tensor([[False, True, True, False]])
        # The row is short of 2 + 1 = 3. Weight 0 is worth 2 / 1, weight 3 is worth 1 / 0.25 and comes back; of the
        # kept ones only weight 1 pulls the other way, and losing it gives back 1 more.
        found = dsnot.refine(weight, mask, torch.ones(4), torch.tensor([1.0, 1.0, 1.0, 0.25]), torch.ones(4), cycles=1)
        assert found.tolist() == [[False, False, True, True]]

    @settings(max_examples=20, deadline=None)
    @given(seed=st.integers(0, 2**16))
    def test_no_mean_output_goes_further_away_and_counts_stay(self, seed):
        mask, found, before, after = self.refined(seed)
        assert (found.sum(dim=1) == mask.sum(dim=1)).all()
        assert (after <= before + 1e-4).all()

    def test_mean_outputs_come_nearer(self):
        errors = [[float(each.mean()) for each in self.refined(seed)[2:]] for seed in range(20)]
        before, after = np.mean(errors, axis=0)
        assert after < 0.6 * before

    def refined(self, seed):
        """Return Wanda's mask, DSnoT's, and how far each leaves the rows' mean outputs from the dense ones."""
        weight, inputs = layer(seed)
        inputs = inputs + 0.5
        mask = wanda.row_mask(wanda.weight_scores(weight, inputs.norm(dim=0)), 0.6)
        found = dsnot.refine(weight, mask, inputs.mean(dim=0), inputs.var(dim=0), inputs.norm(dim=0))
        dense = (inputs @ weight.T).mean(dim=0)
        before, after = (((inputs @ (weight * each).T).mean(dim=0) - dense).abs() for each in (mask, found))
        return mask, found, before, after


class TestLeastSquares:
    def test_the_solution_is_numpys(self):
        weight, inputs = layer(0)
        kept = torch.tensor([0, 3, 4, 11, 12, 30, 39])
        found = least_squares.resolve(weight, inputs.T @ inputs, kept, damping=0.0)
        expected = np.linalg.lstsq(inputs[:, kept].double().numpy(), (inputs @ weight.T).double().numpy(), rcond=None)[
            0
        ]
        np.testing.assert_allclose(found.numpy(), expected.T, rtol=1e-4, atol=1e-4)
        everything = least_squares.resolve(weight, inputs.T @ inputs, torch.arange(40), damping=0.0)
        torch.testing.assert_close(everything, weight, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("size", [1, 4])
    def test_the_first_to_go_makes_the_least_error_after_correction(self, size):
        weight, inputs = layer(1)
        moments = inputs.T @ inputs
        errors = []
        for structure in range(40 // size):
            kept = torch.tensor([c for c in range(40) if c // size != structure])
            full = torch.zeros_like(weight)
            full[:, kept] = least_squares.resolve(weight, moments, kept, damping=0.0)
            errors.append(sparsegpt.reconstruction_error(weight, full, moments))
        order = least_squares.removal_order(weight, moments, size, damping=0.0)
        assert sorted(order.tolist()) == list(range(40 // size))
        assert int(order[0]) == int(np.argmin(errors))

    def test_its_order_beats_wandas_at_half_the_width(self):
        ratios = []
        for seed in range(8):
            weight, inputs = layer(seed, columns=80)
            moments = inputs.T @ inputs
            scores = wanda.channel_scores(weight, inputs.norm(dim=0))
            choices = least_squares.removal_order(weight, moments)[40:].sort().values, wanda.kept(scores, 40)
            errors = []
            for kept in choices:
                full = torch.zeros_like(weight)
                full[:, kept] = least_squares.resolve(weight, moments, kept)
                errors.append(sparsegpt.reconstruction_error(weight, full, moments))
            ratios.append(errors[0] / errors[1])
        assert np.mean(ratios) < 0.98
        assert max(ratios) < 1.01


class TestTaylor:
    def test_by_hand(self):
        gradient = torch.tensor([[0.5, 1.0, -1.0, 0.0], [1.0, -1.0, 0.5, 2.0]])
        assert taylor.first_order(WEIGHT, gradient).tolist() == [[0.5, 2, 3, 0], [4, 3, 1, 2]]
        assert taylor.fisher(WEIGHT, gradient).tolist() == [[0.25, 4, 9, 0], [16, 9, 1, 4]]

    def test_the_gradient_agrees_with_finite_differences(self):
        weight, inputs = layer(2)
        weight = weight.double().requires_grad_()
        inputs, target = inputs.double(), torch.arange(400) % 24

        def loss(changed):
            return torch.nn.functional.cross_entropy(inputs @ changed.T, target)

        loss(weight).backward()
        step = 1e-6
        for column in (0, 17, 39):
            moved = weight.detach().clone()
            moved[:, column] *= 1 - step
            change = float(loss(moved) - loss(weight.detach())) / step
            assert change == pytest.approx(-float((weight.detach() * weight.grad)[:, column].sum()), rel=1e-3, abs=1e-6)


class TestFlap:
    def test_by_hand(self):
        assert flap.structure_scores(WEIGHT, torch.tensor([1.0, 2.0, 0.5, 0.0]), 4).tolist() == [17, 26, 6.5, 0]
        assert flap.structure_scores(WEIGHT, torch.tensor([1.0, 2.0, 0.5, 0.0]), 2).tolist() == [43, 6.5]
        mean = torch.tensor([1.0, 2.0, 0.5, 3.0])
        assert flap.compensation(WEIGHT, mean, torch.tensor([0, 3])).tolist() == [-11, 7]

    def test_a_constant_channel_is_free(self):
        weight, inputs = layer(5)
        inputs[:, 9] = 4.0
        scores = flap.structure_scores(weight, inputs.var(dim=0), 40)
        assert int(scores.argmin()) == 9
        kept = torch.tensor([c for c in range(40) if c != 9])
        bias = flap.compensation(weight, inputs.mean(dim=0), torch.tensor([9]))
        torch.testing.assert_close(inputs[:, kept] @ weight[:, kept].T + bias, inputs @ weight.T, rtol=1e-3, atol=1e-3)


def test_activation_by_hand():
    norms = torch.tensor([3.0, 4.0, 1.0, 0.0])
    assert activation.structure_scores(norms, 4).tolist() == [3, 4, 1, 0]
    assert activation.structure_scores(norms, 2).tolist() == [5, 1]


def test_depth_by_hand():
    before = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    after = torch.tensor([[0.0, 3.0], [0.0, 1.0], [-1.0, -1.0]])
    assert depth.block_influence(before, after) == pytest.approx(1 - (0 + 1 - 1) / 3)
    assert depth.angular_distance(before, after) == pytest.approx((math.pi / 2 + 0 + math.pi) / 3 / math.pi)
    assert depth.block_influence(before, 5 * before) == pytest.approx(0)
    assert depth.angular_distance(before, 5 * before) == pytest.approx(0, abs=1e-6)


class TestOwl:
    def test_by_hand(self):
        scores = torch.tensor([1.0] * 18 + [21.0, 21.0])  # of mean 3
        assert owl.outlier_share([scores]) == pytest.approx(0.1)
        assert owl.outlier_share([scores[:9], scores[9:]], multiple=8.0) == 0
        found = owl.layer_sparsities([0.0, 0.01, 0.04], 0.7, 0.1)
        # Stretched to 0, 0.05 and 0.2, of mean 1 / 12.
        assert found.tolist() == pytest.approx([0.7 + 1 / 12, 0.65 + 1 / 12, 0.5 + 1 / 12])

    @given(st.lists(st.floats(0, 0.2), min_size=2, max_size=40), st.floats(0.3, 0.8))
    def test_the_mean_is_the_target_and_more_outliers_are_pruned_less(self, shares, target):
        found = owl.layer_sparsities(shares, target)
        assert found.mean() == pytest.approx(target)
        assert np.ptp(found) <= 2 * owl.SPREAD + 1e-9
        assert (np.diff(found[np.argsort(shares)]) <= 1e-12).all()


def statistics_of(inputs):
    return InputStatistics(len(inputs), inputs.sum(dim=0), inputs.square().sum(dim=0), inputs.T @ inputs)


class TestNarrow:
    def test_least_squares_is_numpys_on_the_calibration_set(self):
        weight, inputs = layer(5)
        kept = torch.tensor([0, 3, 4, 8, 15, 16, 23, 30, 39])
        narrowed, bias = criteria.narrow(Criterion(), weight, statistics_of(inputs), kept)
        outputs = (inputs @ weight.T).double().numpy()
        expected = np.linalg.lstsq(inputs[:, kept].double().numpy(), outputs, rcond=None)[0]
        assert bias is None
        moments = inputs.T @ inputs
        exact, default, much = (least_squares.resolve(weight, moments, kept, each) for each in (0.0, 0.1, 1e6))
        np.testing.assert_allclose(exact.numpy(), expected.T, atol=2e-3)
        assert torch.equal(narrowed, default)
        # Damping draws towards the dense weights.
        torch.testing.assert_close(much, weight[:, kept], atol=1e-3, rtol=1e-3)
        assert (default - weight[:, kept]).norm() < (exact - weight[:, kept]).norm()

    def test_a_bias_gives_back_the_mean_output(self):
        weight, inputs = layer(6)
        kept = torch.arange(0, 40, 2)
        narrowed, bias = criteria.narrow(Criterion(update="bias"), weight, statistics_of(inputs + 1), kept)
        assert torch.equal(narrowed, weight[:, kept])
        mean = ((inputs + 1)[:, kept] @ narrowed.T + bias).mean(dim=0)
        torch.testing.assert_close(mean, ((inputs + 1) @ weight.T).mean(dim=0), atol=1e-3, rtol=1e-3)

    def test_nothing_is_done_without_an_update(self):
        weight, _ = layer(7)
        narrowed, bias = criteria.narrow(Criterion(update="none"), weight, None, torch.tensor([1, 2]))
        assert torch.equal(narrowed, weight[:, 1:3])
        assert bias is None


@pytest.mark.parametrize("weights", ["magnitude", "wanda", "sparsegpt", "dsnot", "dsnot-sparsegpt"])
class TestThin:
    @pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.77])
    def test_every_row_has_the_zeros_that_are_counted(self, weights, sparsity):
        weight, inputs = layer(8)
        thin = criteria.thin(Criterion(weights=weights), weight, statistics_of(inputs), sparsity)
        assert (thin == 0).sum(dim=1).tolist() == [zeros_per_row(40, sparsity)] * 24
        if weights != "sparsegpt":
            assert torch.equal(thin[thin != 0], weight[thin != 0])

    @pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4"])
    def test_patterns_hold(self, weights, pattern):
        kept, group = map(int, pattern.split(":"))
        weight, inputs = layer(9)
        criterion = Criterion(weights=weights, pattern=pattern)
        thin = criteria.thin(criterion, weight, statistics_of(inputs), 1 - kept / group)
        assert ((thin != 0).view(24, -1, group).sum(dim=2) == kept).all()

    def test_other_sparsities_than_the_patterns_are_refused(self, weights):
        weight, inputs = layer(9)
        criterion = Criterion(weights=weights, pattern="2:4")
        with pytest.raises(SettingError, match=r"2:4 must meet a sparsity of 0\.5 on a multiple of 4 .* 0\.6 on 40"):
            criteria.thin(criterion, weight, statistics_of(inputs), 0.6)
        with pytest.raises(SettingError, match=r"but met 0\.5 on 39"):
            criteria.thin(criterion, weight[:, :39], statistics_of(inputs[:, :39]), 0.5)


def test_dsnot_makes_rows_means_better_than_its_start():
    weight, inputs = layer(10)
    inputs = inputs + 0.5
    dense = (inputs @ weight.T).mean(dim=0)
    errors = {}
    for name in ("dsnot", "wanda"):
        thin = criteria.thin(Criterion(weights=name), weight, statistics_of(inputs), 0.6)
        errors[name] = float(((inputs @ thin.T).mean(dim=0) - dense).norm())
    assert errors["dsnot"] < 0.5 * errors["wanda"]


def test_dsnot_swaps_in_attention_alone(pico):
    architecture = Architecture((LayerArchitecture(4, 48, 0.5, 0.5),) * 6)
    masks = {}
    for name in ("dsnot", "wanda"):
        surgeon = make_surgeon(pico, Criterion(weights=name, update="none"))
        surgeon.install(architecture)
        masks[name] = {
            path: pico.layers[2].get_parameter(f"{path}.weight") != 0 for path in projections(pico.layout.record)
        }
        surgeon.restore()
    for path, mask in masks["dsnot"].items():
        assert torch.equal(mask, masks["wanda"][path]) == path.startswith("mlp"), path
        assert int(mask.sum()) == int(masks["wanda"][path].sum())


@pytest.mark.parametrize("kind", PICOS)
def test_structures_take_with_them_what_their_cost_counts(kind, tmp_path):
    dense = open_model(str(save_pico_of(kind, tmp_path)), dtype="float32")
    layout = dense.layout
    weights = {path: dense.layers[0].get_parameter(f"{path}.weight") for path in projections(layout.record)}
    ones = {path: torch.ones_like(oriented(weight, layout)) for path, weight in weights.items()}
    found = totals(ones, layout)
    channel = mlp_cost(layout, 9).flops_per_token - mlp_cost(layout, 8).flops_per_token
    assert found.channels.tolist() == [channel / 2] * layout.mlp_width
    attention = sum(weight.numel() for path, weight in weights.items() if path.startswith(layout.record.attention))
    assert found.groups.tolist() == [attention / layout.kv_groups] * layout.kv_groups


def test_gradients_are_those_of_the_mean_loss(pico):
    tokens = pico_tokens(3, 16, 1)
    found = gather_gradients(pico.model, list(pico.layers), pico.layout, tokens.split(1))
    assert not any(weight.requires_grad for weight in pico.model.parameters())
    model = copy.deepcopy(pico.model).requires_grad_()
    squares = 0.0
    for row in tokens.split(1):
        model.zero_grad()
        model(row, labels=row).loss.backward()
        mlp = model.model.layers[2].mlp
        products = [mlp.down_proj.weight * mlp.down_proj.weight.grad] + [
            (part.weight * part.weight.grad).T for part in (mlp.gate_proj, mlp.up_proj)
        ]
        squares = squares + sum(each.square().sum(dim=0) for each in products) / 3
    torch.testing.assert_close(found[2]["fisher"].channels, squares.detach(), rtol=1e-4, atol=1e-9)
    model.zero_grad()
    model(tokens, labels=tokens).loss.backward()
    attention = model.model.layers[4].self_attn
    output = (attention.o_proj.weight * attention.o_proj.weight.grad).abs().sum(dim=0).view(4, -1).sum(dim=1)
    rows = sum(
        (part.weight * part.weight.grad).abs().sum(dim=1).view(4, -1).sum(dim=1)
        for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    torch.testing.assert_close(found[4]["taylor"].groups, (output + rows).detach(), rtol=1e-4, atol=1e-8)


def test_a_channels_gradient_agrees_with_finite_differences(pico):
    # Scaling a channel's down projection by 1 - h changes the loss by -h sum(g w).
    tokens, step = pico_tokens(2, 16, 2), 1e-2
    model = copy.deepcopy(pico.model).double().requires_grad_()
    down = model.model.layers[3].mlp.down_proj.weight

    def loss():
        logits = model(tokens).logits[:, :-1].flatten(0, 1)  # transformers' own loss is of float32
        return torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())

    loss().backward()
    for channel in (0, 20, 47):
        expected = -float((down.detach() * down.grad)[:, channel].sum())
        original = down.data.clone()
        down.data[:, channel] = original[:, channel] * (1 - step)
        lower = float(loss())
        down.data[:, channel] = original[:, channel] * (1 + step)
        change = (lower - float(loss())) / (2 * step)
        down.data.copy_(original)
        assert change == pytest.approx(expected, rel=5e-3, abs=1e-5)  # norms are of float32
