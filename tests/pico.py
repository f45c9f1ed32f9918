"""Tiny models built on the spot: real ones, only small."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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
