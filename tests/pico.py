"""Tiny models built on the spot: real ones, only small."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SENTENCE = "The old gardener cut the rose bush down to three strong canes, and in June it bloomed as never before. "
VOCABULARY = 160


def save_pico(folder: Path, seed: int = 0, **changes) -> Path:
    """Write a tiny random Llama with its tokenizer into a folder."""
    pico_llama(seed, **changes).save_pretrained(folder)
    pico_tokenizer().save_pretrained(folder)
    return folder


def pico_llama(seed: int = 0, **changes) -> LlamaForCausalLM:
    """Return a tiny random Llama; weights large enough that every layer matters to the logits."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**{**sizes, **changes})).eval()


# Sizes of a tiny model of every family, and of ways in which models of one family differ.
_SIZES = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.2}
_NEW = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
}
_GEMMA = {**_NEW, "head_dim": 8, "sliding_window": 12, "query_pre_attn_scalar": 8}
_NEOX = {**_NEW, "rotary_pct": 0.5, "hidden_act": "gelu"}
_OPT = {**_NEW, "ffn_dim": 48, "word_embed_proj_dim": 32}
PICOS: dict[str, dict] = {
    "llama": {**_NEW},
    "llama multi-head": {**_NEW, "num_key_value_heads": 8},
    "llama multi-query, wide heads": {**_NEW, "num_key_value_heads": 1, "head_dim": 16},
    "llama with biases, tied": {**_NEW, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "mistral": {**_NEW, "sliding_window": 12},
    "qwen2": {**_NEW, "use_sliding_window": True, "sliding_window": 12, "max_window_layers": 2},
    "qwen3": {**_NEW, "head_dim": 8},
    "gemma2": _GEMMA,
    "gemma3_text": {**_GEMMA, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "phi3": {**_NEW},
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 8, "n_positions": 128},
    "opt": {**_OPT},
    "opt untied, without biases": {**_OPT, "enable_bias": False, "tie_word_embeddings": False},
    "gpt_neox": {**_NEOX},
    "gpt_neox one after the other": {**_NEOX, "use_parallel_residual": False, "attention_bias": False},
}


def save_pico_of(kind: str, folder: Path, seed: int = 0, tokenizer=None, **changes) -> Path:
    """Write a tiny random model of a row of `PICOS` with a tokenizer, its own or another, into a folder."""
    values = {**_SIZES, **PICOS[kind], **changes}
    if tokenizer is not None:
        values["vocab_size"] = len(tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind.split()[0]](**values))
        for weight in model.parameters():
            if weight.dim() == 1:  # norms and biases start as ones and zeros, which would hide what is done to them
                weight.data += 0.2 * torch.randn_like(weight)
    model.save_pretrained(folder)
    (tokenizer or pico_tokenizer()).save_pretrained(folder)
    return folder


def byte_level_tokenizer(pre_tokenizer=None, text: str = SENTENCE) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer trained on a text, that cuts it into words as GPT-2 does or as given."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def pico_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-pair tokenizer trained on one sentence."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=[chr(code) for code in range(33, 127)],
        show_progress=False,
    )
    tokenizer.train_from_iterator([SENTENCE], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def pico_tokens(count: int = 4, length: int = 32, seed: int = 0) -> torch.Tensor:
    """Return random token ids (count, length)."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (count, length), generator=rng)
