"""The vocabulary projection gives the model's own logits, all or some."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import evaluator.head as head_module
from evaluator import open_model
from evaluator.head import Head
from tests.pico import pico_tokens, save_pico_of


def hidden_of(dense, tokens):
    with torch.inference_mode():
        return dense.decoder(tokens, use_cache=False).last_hidden_state.flatten(0, 1)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "opt", "gpt_neox"])
def test_all_logits_and_some(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(head_module, "_GATHERED_BYTES", 4 * 32 * 9 * 3)  # three tokens at once, then what is left
    dense = open_model(str(save_pico_of(kind, tmp_path)), dtype="float32")
    if kind == "gemma2":
        assert dense.model.config.final_logit_softcapping
    tokens = pico_tokens(2, 20)
    with torch.inference_mode():
        expected = dense.model(tokens, use_cache=False).logits.flatten(0, 1)
    hidden, head = hidden_of(dense, tokens), Head(dense)
    for rows in (slice(0, 25), slice(25, 40), slice(0, 40)):  # memory used again, then more of it
        torch.testing.assert_close(head(hidden[rows]), expected[rows], atol=1e-5, rtol=1e-5)
    ids = torch.randint(0, 160, (40, 9), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head.of(hidden, ids), expected.gather(1, ids), atol=1e-5, rtol=1e-5)


class Doubling(nn.Linear):
    """Stands for a projection whose weights are not all there is to it."""

    def forward(self, hidden):
        return 2 * super().forward(hidden)


@pytest.mark.parametrize(("made", "factor"), [(nn.Linear, 1), (Doubling, 2)])
def test_a_projection_with_biases_and_one_of_another_kind(pico, made, factor):
    projection = made(32, 160)
    pico.model.set_output_embeddings(projection)
    dense = replace(pico)
    hidden = hidden_of(dense, pico_tokens(1, 12))
    with torch.inference_mode():
        expected = factor * (hidden @ projection.weight.T + projection.bias)
        ids = torch.arange(24).view(12, 2)
        torch.testing.assert_close(Head(dense)(hidden), expected)
        torch.testing.assert_close(Head(dense).of(hidden, ids), expected.gather(1, ids))
