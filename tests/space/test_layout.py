import json

import pytest

from space import FAMILIES, FamilyError, Layout, ModelError, family_of
from tests.space.layouts import PICO, SMOLLM2_135M

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 96,
}


def test_sizes_from_a_configuration():
    assert (SMOLLM2_135M.layers, SMOLLM2_135M.kv_groups, SMOLLM2_135M.heads_per_group) == (30, 3, 3)
    assert SMOLLM2_135M.tied_embeddings
    assert not PICO.tied_embeddings
    layout = Layout.from_config(CONFIG)
    assert (layout.kv_groups, layout.head_dim) == (4, 8)  # no key-value sharing, head size from the hidden size
    assert not layout.qkv_bias
    assert Layout.from_config({**CONFIG, "attention_bias": True}).qkv_bias


def test_round_trip():
    assert Layout.from_dict(json.loads(json.dumps(PICO.to_dict()))) == PICO
    assert PICO.record is family_of("llama") is FAMILIES["llama"]


def test_refusals():
    with pytest.raises(FamilyError, match=r"one of .*llama.*, but this model's is 'mamba'"):
        Layout.from_config({**CONFIG, "model_type": "mamba"})
    with pytest.raises(ModelError, match=r"hidden_size .* must be a positive whole number, but is None"):
        Layout.from_config({key: value for key, value in CONFIG.items() if key != "hidden_size"})
    with pytest.raises(ModelError, match="must be a multiple of num_key_value_heads, but they are 4 and 3"):
        Layout.from_config({**CONFIG, "num_key_value_heads": 3})
    with pytest.raises(ModelError, match="these differ: colour, heads; write it again"):
        Layout.from_dict({**{k: v for k, v in PICO.to_dict().items() if k != "heads"}, "colour": 1})
