"""Models that accelerate lays out, and those on a GPU, measure like any other."""

import pytest
import torch
from accelerate import dispatch_model

import evaluator.checkpoint as checkpoint_module
from evaluator import open_model
from space import Criterion, ModelError
from tests.evaluator.pieces import logits_of, make_evaluator, mixed
from tests.pico import save_pico

ASKED = ("search", "validate")


def measured(dense, folder):
    judge = make_evaluator(dense, folder, folder=folder / "prepared", criterion=Criterion())
    architectures = [mixed(dense), mixed(dense).replace(0, mlp_width=40), mixed(dense)]
    found = [each for split in ASKED for each in judge.measure(architectures, split, "user")]
    judge.surgeon.restore()
    return [(each.nll, each.kl) for each in found]


def test_auto_lays_a_model_out_over_what_there_is(pico_folder, pico):
    dense = open_model(str(pico_folder), dtype="float32", device="auto")
    assert torch.equal(logits_of(dense.model).cpu(), logits_of(pico.model))


def test_a_model_run_by_accelerates_hooks_measures_the_same(tmp_path):
    folder = str(save_pico(tmp_path / "model"))
    plain, laid_out = (open_model(folder, dtype="float32") for _ in range(2))
    parts = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    layers = {f"model.layers.{index}": "cpu" for index in range(6)}
    dispatch_model(laid_out.model, parts | layers, main_device="cpu", force_hooks=True)
    own = [vars(layer)["forward"] for layer in laid_out.layers]
    before = logits_of(laid_out.model)
    assert measured(laid_out, tmp_path / "a") == measured(plain, tmp_path / "b")
    assert [vars(layer)["forward"] for layer in laid_out.layers] == own
    assert torch.equal(logits_of(laid_out.model), before)


def test_a_model_that_accelerate_leaves_on_the_disk_is_refused(pico_folder, tmp_path, monkeypatch):
    load = checkpoint_module.AutoModelForCausalLM.from_pretrained

    def loaded(folder, device_map, **more):
        layout = {"model": "cpu", "lm_head": "disk"}
        return load(folder, device_map=layout, offload_folder=str(tmp_path / "offloaded"), **more)

    monkeypatch.setattr(checkpoint_module.AutoModelForCausalLM, "from_pretrained", loaded)
    with pytest.raises(ModelError, match="must fit into the memory of its devices"):
        open_model(str(pico_folder), dtype="float32", device="auto")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_a_gpu_measures_what_the_processor_does(tmp_path, device):
    folder = str(save_pico(tmp_path / "model"))
    here = measured(open_model(folder, dtype="float32"), tmp_path / "a")
    there = measured(open_model(folder, dtype="float32", device=device), tmp_path / "b")
    for one, other in zip(here, there, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
