"""The whole way again where weights are made zero, and under other criteria than the defaults."""

import pytest
import torch
from safetensors.torch import load_file

from search.config import load_config
from search.run import run_search
from space import Architecture
from tests.conftest import SMALL_RUN

pytestmark = pytest.mark.usefixtures("checked_here")
SHORT = {**SMALL_RUN["search"], "profile_pairs": 4, "guided_pairs": 6, "rounds": 1, "generations": 4}


def search_under(budget, criterion, model, folder, space=None):
    values = {**SMALL_RUN, "model": str(model), "budget": [budget], "criterion": criterion, "search": SHORT}
    return run_search(load_config(None, {**values, "space": space or {}}), folder)


def shares(best, name="nonzero_parameters"):
    """Return each model's share of the dense model's parameters."""
    models = {**best["baselines"], "winner": best}
    return {key: model["cost"][name] / best["dense_cost"][name] for key, model in models.items()}


@pytest.mark.parametrize(("weights", "dtype"), [("wanda", "bfloat16"), ("sparsegpt", "float32")])
def test_by_sparsity(weights, dtype, stories, tmp_path, monkeypatch):
    monkeypatch.setitem(SMALL_RUN, "dtype", dtype)
    best = search_under("nonzero_parameters=0.6", {"weights": weights}, stories, tmp_path / "run")
    found = shares(best)
    assert {"uniform", "uniform_whole_ends", "owl", "global_threshold", "winner"} <= set(found)
    assert all(0.55 < share <= 0.6 for name, share in found.items() if name != "dense")
    assert set(shares(best, "parameters").values()) == {1.0}  # nothing is sliced, so nothing is updated either
    assert not any(name.endswith("_no_update") for name in found)
    assert best["environment"]["dtype"] == dtype
    if dtype == "bfloat16":
        agreement = best["environment"]["dtype_agreement"]
        assert 0 < agreement["kl"] < 0.05
        assert agreement["same_best"] > 0.9
    weights_file = load_file(tmp_path / "run" / "export" / "model.safetensors")
    for index, layer in enumerate(Architecture.from_dict(best["architecture"]).layers):
        zeros = (weights_file[f"model.layers.{index}.mlp.down_proj.weight"] == 0).float().mean()
        assert float(zeros) == pytest.approx(layer.mlp_sparsity, abs=0.01)


def test_by_a_pattern(stories, tmp_path):
    criterion = {"weights": "sparsegpt", "pattern": "2:4"}
    best = search_under("nonzero_parameters=0.7", criterion, stories, tmp_path / "run")
    assert all(share <= 0.7 for name, share in shares(best).items() if name != "dense")
    layers = Architecture.from_dict(best["architecture"]).layers
    assert {layer.mlp_sparsity for layer in layers} | {layer.attention_sparsity for layer in layers} == {0.0, 0.5}
    weights_file = load_file(tmp_path / "run" / "export" / "model.safetensors")
    for index, layer in enumerate(layers):
        groups = weights_file[f"model.layers.{index}.mlp.gate_proj.weight"].unflatten(1, (-1, 4))
        most = int((groups != 0).sum(dim=2).max())
        assert most == (2 if layer.mlp_sparsity else 4)


def test_by_a_bias_that_the_export_carries(stories, tmp_path):
    best = search_under("parameters=0.7", {"widths": "flap", "update": "bias"}, stories, tmp_path / "run")
    weights_file = load_file(tmp_path / "run" / "export" / "model.safetensors")
    narrowed = [
        index
        for index, layer in enumerate(Architecture.from_dict(best["architecture"]).layers)
        if 0 < layer.mlp_width < best["layout"]["mlp_width"]
    ]
    assert narrowed
    for index in narrowed:
        assert torch.count_nonzero(weights_file[f"model.layers.{index}.mlp.down_proj.bias"])
