"""Each criterion's mathematics, by hand and against an independent computation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluator.pruning import (
    activation,
    depth,
    dsnot,
    flap,
    least_squares,
    magnitude,
    owl,
    patterns,
    sparsegpt,
    taylor,
    wanda,
)
from space.cost import zeros_per_row

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
    def test_mean_outputs_come_nearer_and_counts_stay(self, seed):
        weight, inputs = layer(seed)
        inputs = inputs + 0.5
        mask = wanda.row_mask(wanda.weight_scores(weight, inputs.norm(dim=0)), 0.6)
        found = dsnot.refine(weight, mask, inputs.mean(dim=0), inputs.var(dim=0), inputs.norm(dim=0))
        assert (found.sum(dim=1) == mask.sum(dim=1)).all()
        dense = (inputs @ weight.T).mean(dim=0)
        before, after = (((inputs @ (weight * each).T).mean(dim=0) - dense).abs() for each in (mask, found))
        assert (after <= before + 1e-4).all()
        assert after.mean() < 0.7 * before.mean()


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
