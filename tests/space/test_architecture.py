import json

import pytest

from space import Architecture, ArchitectureError, LayerArchitecture, genes_of
from tests.space.layouts import PICO

LAYER = {"kv_groups": 2, "mlp_width": 64}


def test_canonical_json_and_fingerprint():
    architecture = Architecture((LayerArchitecture(2, 64), LayerArchitecture(1, 32, 0.1 + 0.2)))
    assert architecture.to_json() == (
        '{"layers":[{"attention_sparsity":0.0,"kv_groups":2,"mlp_sparsity":0.0,"mlp_width":64},'
        '{"attention_sparsity":0.3,"kv_groups":1,"mlp_sparsity":0.0,"mlp_width":32}]}'
    )
    # Written down, because run folders and databases key their measurements by it.
    assert architecture.fingerprint == "f43d49dbff26398c"
    typed = '{ "layers": [{"mlp_width": 64, "kv_groups": 2}, {"mlp_width":32,"kv_groups":1,"attention_sparsity":0.3}]}'
    assert Architecture.from_json(typed) == architecture
    assert Architecture.from_json(architecture.to_json()).fingerprint == architecture.fingerprint
    assert architecture.replace(0, mlp_width=63).fingerprint != architecture.fingerprint


def test_a_removed_sub_block_has_no_sparsity():
    assert LayerArchitecture(0, 0, 0.5, 0.5) == LayerArchitecture(0, 0)


def test_changed_layers_and_genes():
    dense = Architecture.dense(PICO)
    changed = dense.replace(1, mlp_width=0).replace(2, attention_sparsity=0.5)
    assert changed.changed_layers(dense) == (1, 2)
    assert dense.changed_layers(dense) == ()
    assert genes_of([changed]).tolist() == [[[2, 0, 64, 0], [2, 0, 0, 0], [2, 0.5, 64, 0]]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", 'a list "layers"'),
        ('{"layers": []}', 'a list "layers"'),
        ('{"layers": [3]}', "Layer 0 must be an object"),
        (json.dumps({"layers": [LAYER, {**LAYER, "width": 3}]}), "layer 1 has width; remove"),
        (json.dumps({"layers": [LAYER, {"kv_groups": 2}]}), "mlp_width must be a whole number in layer 1, but is None"),
        (json.dumps({"layers": [{**LAYER, "kv_groups": 1.5}]}), "kv_groups must be a whole number in layer 0"),
        (json.dumps({"layers": [{**LAYER, "kv_groups": True}]}), "kv_groups must be a whole number in layer 0"),
        (json.dumps({"layers": [{**LAYER, "mlp_sparsity": 1.0}]}), "mlp_sparsity must be at least 0 and below 1"),
        (json.dumps({"layers": [{**LAYER, "mlp_sparsity": float("nan")}]}), "mlp_sparsity must be at least 0"),
        (json.dumps({"layers": [{**LAYER, "attention_sparsity": "x"}]}), "attention_sparsity must be at least 0"),
    ],
)
def test_refusals_on_reading(text, message):
    with pytest.raises(ArchitectureError, match=message):
        Architecture.from_json(text)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (Architecture((LayerArchitecture(2, 64),) * 2), "each of the model's 3 layers, but has 2; add or remove"),
        (Architecture.dense(PICO).replace(1, mlp_width=65), "mlp_width must be between 0 and 64 in layer 1, but is 65"),
        (Architecture.dense(PICO).replace(2, kv_groups=-1), "kv_groups .* layer 2, but is -1; the nearest is 0"),
    ],
)
def test_refusals_against_a_layout(architecture, message):
    with pytest.raises(ArchitectureError, match=message):
        architecture.check(PICO)


def test_what_is_read_does_not_depend_on_what_was_read_before():
    """2, 2.0 and true are equal, and only one of them is a width."""
    for _ in range(2):
        assert Architecture.from_dict({"layers": [{"kv_groups": 1, "mlp_width": 64}]}).layers[0].kv_groups is not True
        for other in (1.0, True):
            with pytest.raises(ArchitectureError, match="kv_groups must be a whole number in layer 1"):
                Architecture.from_dict({"layers": [LAYER, {"kv_groups": other, "mlp_width": 64}]})
        assert '"mlp_width":64}' in Architecture((LayerArchitecture(1, 64),)).to_json()
        assert '"mlp_width":64.0}' in Architecture((LayerArchitecture(1, 64.0),)).to_json()


@pytest.mark.parametrize("values", [{1: 2}, {"kv_groups": [2], "mlp_width": 64}, {"kv_groups": {}, "mlp_width": 64}])
def test_what_cannot_be_looked_up_is_refused_in_a_sentence(values):
    with pytest.raises(ArchitectureError, match="layer 0"):
        Architecture.from_dict({"layers": [values]})
