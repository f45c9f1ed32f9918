"""Measuring on the beginning of a text: a protocol of its own, and what it costs."""

import numpy as np
import pytest

from space import Architecture
from tests.evaluator.pieces import make_evaluator, mixed


@pytest.fixture
def judge(pico, tmp_path):
    return make_evaluator(pico, tmp_path)


def test_the_beginning_measures_as_that_part_of_the_whole(judge, pico):
    [whole] = judge.measure([mixed(pico)], "search", "user")
    [part] = judge.measure([mixed(pico)], "search:2", "user")
    assert part.protocol != whole.protocol
    assert part.tokens == 2 * 31
    assert np.isclose(np.mean(whole.kl_blocks[:2]), part.kl, rtol=1e-4)
    assert not np.isclose(whole.kl, part.kl, rtol=1e-3)


def test_both_are_kept_under_their_own_protocol(judge, pico):
    judge.measure([mixed(pico)], "search", "user")
    judge.measure([mixed(pico), Architecture.dense(pico.layout)], "search:2", "user")
    assert {protocol.split for protocol in judge.store.protocols().values()} == {"search", "search:2"}
    assert len(judge.store.pairs(judge.protocol("search").fingerprint)) == 1
    assert len(judge.store.pairs(judge.protocol("search:2").fingerprint)) == 2


def test_layers_before_the_first_change_are_not_paid_for(judge, pico):
    dense = Architecture.dense(pico.layout)
    assert judge.work(mixed(pico), "search") == 4 * 31
    assert judge.work(mixed(pico), "search:1") == 31
    assert judge.work(dense.replace(3, mlp_width=0), "search") == 4 * 31 / 2
    assert judge.work(dense, "search") == 4 * 31
