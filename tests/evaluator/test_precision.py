"""What a reduced number format costs is compared with the model in float32, and nothing of that stays."""

import pytest
import torch

import evaluator.checkpoint as checkpoint_module
from evaluator import agreement_with_float32, choose_dtype, open_model
from evaluator.precision import Agreement, in_float32
from tests.evaluator.pieces import logits_of
from tests.pico import PICOS, pico_tokens, save_pico_of


@pytest.mark.parametrize("kind", PICOS)
def test_a_model_in_bfloat16_computes_in_float32_for_a_while(kind, tmp_path):
    folder = str(save_pico_of(kind, tmp_path))
    narrow, tokens = open_model(folder, dtype="bfloat16"), pico_tokens(2, 30)
    # The same weights and constants, rounded as they are, in a model of float32.
    wide = open_model(folder, dtype="float32")
    for theirs, own in zip(wide.model.parameters(), narrow.model.parameters(), strict=True):
        theirs.data = own.data.float()
    for theirs, own in zip(wide.model.buffers(), narrow.model.buffers(), strict=True):
        theirs.data = own.data.to(theirs.dtype)
    before, weights = logits_of(narrow.model, tokens), list(narrow.model.parameters())
    with in_float32(narrow.model):
        found = logits_of(narrow.model, tokens)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, logits_of(wide.model, tokens), atol=1e-4, rtol=1e-4)
    assert all(now is then for now, then in zip(narrow.model.parameters(), weights, strict=True))
    assert torch.equal(logits_of(narrow.model, tokens), before)


def test_agreement_is_that_of_the_distributions(tmp_path):
    dense, tokens = open_model(str(save_pico_of("llama", tmp_path)), dtype="bfloat16"), pico_tokens(4, 40)
    found = agreement_with_float32(dense, tokens)
    with in_float32(dense.model):
        p = logits_of(dense.model, tokens)[:, :-1].log_softmax(dim=-1)
    q = logits_of(dense.model, tokens)[:, :-1].float().log_softmax(dim=-1)
    assert found.kl == pytest.approx((p.exp() * (p - q)).sum(dim=-1).mean().item(), rel=0.01)
    assert found.kl > 0
    assert found.same_best == pytest.approx((p.argmax(-1) == q.argmax(-1)).float().mean().item(), abs=0.02)
    assert found.tokens == 4 * 39
    assert 0 < found.kl_standard_error < found.kl
    assert found.good
    assert not Agreement(0.2, 0.01, 0.9, 100).good


def test_float32_is_not_compared_with_itself(pico):
    assert agreement_with_float32(pico, pico_tokens()) is None


@pytest.mark.parametrize(
    ("instructions", "faster", "expected"),
    [(True, True, torch.bfloat16), (True, False, torch.float32), (False, True, torch.float32)],
)
def test_bfloat16_is_taken_where_it_is_faster(monkeypatch, instructions, faster, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": instructions})
    monkeypatch.setattr(checkpoint_module, "_bfloat16_is_faster", lambda: faster)
    assert choose_dtype("auto") is expected


def test_the_self_test_compares_the_best_of_its_tries(monkeypatch):
    def faster(slow, quick):
        times = iter([moment for taken in [slow] * 7 + [quick] * 7 for moment in (0.0, taken)])
        monkeypatch.setattr(checkpoint_module.time, "process_time", lambda: next(times))
        return checkpoint_module._bfloat16_is_faster.__wrapped__()

    assert faster(2.0, 1.0)
    assert not faster(1.0, 1.0)
    assert not faster(1.0, 2.0)
