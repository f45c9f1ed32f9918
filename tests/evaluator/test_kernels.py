"""Compiled steps give what eager ones give, or are not used."""

import shutil

import pytest
import torch

import evaluator.kernels as kernels_module
from evaluator import open_model
from evaluator.accuracy import make_reference, score_tokens
from evaluator.kernels import EAGER, FUSED, choose_kernels, running_by, summary_in_blocks
from space import SettingError
from tests.evaluator.pieces import make_evaluator, make_surgeon, mixed
from tests.pico import pico_tokens, save_pico_of

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def compiled():
    return kernels_module._compiled()


def test_the_summary_in_blocks_is_that_of_the_whole_row():
    logits = 5 * torch.randn(7, 10_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    highest, total = summary_in_blocks(logits)
    torch.testing.assert_close(highest, logits.float().amax(dim=-1))
    torch.testing.assert_close(total, logits.float().logsumexp(dim=-1))


STEPS = [pytest.param("compiled", marks=needs_compiler), "fused"]


@pytest.fixture
def steps(request):
    return request.getfixturevalue("compiled") if request.param == "compiled" else FUSED


@pytest.mark.parametrize("steps", STEPS, indirect=True)
@pytest.mark.parametrize("kind", ["llama", "llama with biases, tied", "qwen3", "gemma2", "phi3", "gpt2"])
def test_every_family_runs_by_other_steps(steps, kind, tmp_path):
    dense = open_model(str(save_pico_of(kind, tmp_path)), dtype="float32")
    tokens = pico_tokens(2, 40)

    def hidden():
        with torch.inference_mode():
            return dense.decoder(tokens, use_cache=False).last_hidden_state

    expected = hidden()
    calls = []
    counting = kernels_module.Kernels(
        "counting", lambda *each: (calls.append("norm"), steps.rms_norm(*each))[1], steps.gated, steps.summary
    )
    with running_by(counting, dense.decoder):
        found = hidden()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    # Gemma's norms add 1 to their weights and GPT-2's are none of this kind: left as they are.
    assert bool(calls) == (kind not in ("gemma2", "gpt2"))
    assert [module for module in dense.decoder.modules() if "forward" in vars(module)] == []


@pytest.mark.parametrize("steps", STEPS, indirect=True)
def test_scores_by_other_steps_are_those_by_eager_ones(steps, pico):
    tokens = pico_tokens(4, 40)
    reference = make_reference(pico, tokens)
    torch.testing.assert_close(make_reference(pico, tokens, steps).logprobs, reference.logprobs)
    make_surgeon(pico).install(mixed(pico))  # with sub-blocks removed
    eager, own = score_tokens(pico, reference), score_tokens(pico, reference, steps)
    for name in ("nll", "kl", "agreement"):
        torch.testing.assert_close(getattr(own, name), getattr(eager, name), atol=1e-4, rtol=1e-4)


def test_a_module_that_runs_in_a_way_of_its_own_is_left_alone(pico):
    norm = pico.layers[2].input_layernorm
    norm.forward = own = norm.forward
    steps = kernels_module.Kernels("other", *(None,) * 3)
    with running_by(steps, pico.decoder):
        assert norm.forward is own
        assert pico.layers[3].input_layernorm.forward is not own
    assert vars(norm)["forward"] is own


def test_auto_is_eager_for_small_models_and_where_nothing_compiles(pico, monkeypatch):
    assert choose_kernels("auto", pico) is EAGER
    assert choose_kernels("eager", pico) is EAGER
    assert choose_kernels("fused", pico) is FUSED
    monkeypatch.setattr(kernels_module, "_FEWEST_PARAMETERS", 0)
    monkeypatch.setattr(kernels_module, "_compiled", lambda: None)
    assert choose_kernels("auto", pico) is EAGER
    with pytest.raises(SettingError, match="compiled was asked for here; install g"):
        choose_kernels("compiled", pico)


@pytest.mark.parametrize("broken", ["raises", "differs"])
def test_steps_that_do_not_compile_or_agree_are_not_used(monkeypatch, broken):
    def compile_badly(step, **_):
        def run(*arguments):
            if broken == "raises":
                raise RuntimeError("no compiler")
            found = step(*arguments)
            return tuple(2 * each for each in found) if isinstance(found, tuple) else 2 * found

        return run

    monkeypatch.setattr(torch, "compile", compile_badly)
    assert kernels_module._compiled.__wrapped__() is None


@needs_compiler
def test_which_steps_measured_is_part_of_the_protocol(pico, tmp_path):
    eager = make_evaluator(pico, tmp_path / "a", kernels="eager").protocol("search")
    own = make_evaluator(pico, tmp_path / "b", kernels="compiled").protocol("search")
    assert (eager.kernels, own.kernels) == ("eager", "compiled")
    assert eager.fingerprint != own.fingerprint
