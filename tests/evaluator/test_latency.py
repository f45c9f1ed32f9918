"""Timing sub-blocks and whole models; no test asserts on a time, but some on a clock that counts multiplications."""

from contextlib import contextmanager
from dataclasses import replace
from math import prod

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from transformers.pytorch_utils import Conv1D

from evaluator import hash_weights, open_model
from evaluator.latency import measure_latency, timed_widths, visits
from evaluator.timing import Bench
from space import Architecture, LayerArchitecture, SettingError, build_space
from tests.pico import pico_tokens, save_pico_of
from tests.space.layouts import PICO


def rng():
    return np.random.default_rng(0)


@contextmanager
def counting_clock():
    """A clock that moves by a nanosecond for each multiplication by a weight, and by nothing else."""
    now = 0

    def count(module, inputs, _):
        nonlocal now
        if isinstance(module, nn.Linear | Conv1D):
            now += prod(inputs[0].shape[:-1]) * module.weight.numel()

    handle = register_module_forward_hook(count)
    try:
        yield lambda: now / 1e9
    finally:
        handle.remove()


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_by_a_clock_that_counts_multiplications_the_table_is_exact(pico, phase):
    space = build_space(pico.layout, width_step=8)
    with counting_clock() as clock:
        table = measure_latency(Bench(pico, phase, 2, 24, clock=clock), space, 1, 4, rng())
    layout, tokens = pico.layout, 2 * 24 if phase == "prefill" else 2
    hidden, head_dim = layout.hidden_size, layout.head_dim
    assert table.mlp == tuple((width, tokens * 3 * hidden * width) for width in range(0, 49, 8))
    per_group = tokens * hidden * head_dim * (2 * layout.heads_per_group + 2)
    assert table.attention == tuple((groups, per_group * groups) for groups in range(5))
    assert table.fixed == 2 * hidden * layout.vocabulary  # the head, at the last position of both sequences
    assert table.layer_spread == pytest.approx(0, abs=1e-9)
    assert [model.error for model in table.check.models] == [0, 0, 0, 0]
    assert (table.check.kendall_tau, table.check.spearman) == pytest.approx((1, 1))
    assert len(table.check.models) == 4
    assert table.check.models[0].fingerprint == Architecture.dense(layout).fingerprint


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_table_by_the_real_clock(pico, phase):
    before, told = hash_weights(pico.model), []
    space = build_space(pico.layout, width_step=24)
    table = measure_latency(Bench(pico, phase, 1, 16), space, 1, 3, rng(), told.append)
    assert sum(told) == visits(space, 1, 3)
    assert [groups for groups, _ in table.attention] == [0, 1, 2, 3, 4]
    assert {0, 24, 48} <= {width for width, _ in table.mlp}
    assert min(table.fixed, table.attention[-1][1], table.mlp[-1][1]) > 0
    assert table.seconds > 0
    assert (table.conditions.phase, table.conditions.batch, table.conditions.sequence_length) == (phase, 1, 16)
    assert table.conditions.threads == torch.get_num_threads()
    assert hash_weights(pico.model) == before


def test_whole_models_are_timed_without_any_sub_block_too(pico):
    nothing = Architecture((LayerArchitecture(0, 0),) * pico.layout.layers)
    sparse = Architecture.dense(pico.layout).replace(0, mlp_sparsity=0.5, attention_sparsity=0.5)
    for phase in ("prefill", "decode"):
        bench = Bench(pico, phase, 1, 16)
        timings = bench.time([nothing, sparse], 2, rng())
        assert all(timing.seconds > 0 <= timing.standard_error for timing in timings)


@pytest.mark.parametrize("kind", ["gemma2", "phi3", "gpt2", "opt", "gpt_neox"])
def test_every_family_is_timed(kind, tmp_path):
    dense = open_model(str(save_pico_of(kind, tmp_path)), dtype="float32")
    with counting_clock() as clock:
        bench = Bench(dense, "decode", 1, 8, clock=clock)
        table = measure_latency(bench, build_space(dense.layout, width_step=24), 1, 3, rng())
    assert table.check.largest_error == 0
    assert 0 < table.of_attention(1) == table.of_attention(dense.layout.kv_groups) / dense.layout.kv_groups


def test_an_installed_model_runs_as_its_export_would(pico):
    architecture = Architecture.dense(pico.layout).replace(1, kv_groups=2, mlp_width=20).replace(2, kv_groups=0)
    bench, tokens = Bench(pico, "prefill", 1, 16), pico_tokens(1, 16)
    with bench.installed(architecture) as (model, _):
        assert torch.equal(model(tokens).logits, pico.model(tokens).logits)
        assert sum(weight.numel() for weight in model.parameters()) == sum(
            weight.numel() for weight in pico.model.parameters()
        )


@pytest.mark.parametrize(
    ("widths", "step", "found"),
    [
        (48, 48, [8, 16, 24, 32, 40, 48]),
        (48, 20, [8, 16, 20, 24, 32, 40, 48]),
        (48, 8, [8, 16, 24, 32, 40, 48]),
        (2, 2, [1, 2]),
    ],
)
def test_few_widths_are_made_more(widths, step, found):
    assert timed_widths(build_space(replace(PICO, mlp_width=widths), width_step=step)) == found


def test_many_widths_are_thinned_evenly():
    found = timed_widths(build_space(replace(PICO, mlp_width=11008), width_step=128))
    assert (found[0], found[-1], len(found)) == (128, 11008, 12)
    assert np.ptp(np.diff(found)) <= 128


@pytest.mark.parametrize(("phase", "most"), [("prefill", 128), ("decode", 112)])
def test_a_sequence_must_fit_the_model(pico, phase, most):
    Bench(pico, phase, 1, most)
    with pytest.raises(SettingError, match=f"must fit into the model's 128 positions.*set at most {most}"):
        Bench(pico, phase, 1, most + 1)
