"""The residual stream, against a model's own hidden states, and kept with the pairs."""

import pytest
import torch

from evaluator import open_model
from evaluator.stream import gather_stream
from space import Architecture
from space.families import FAMILIES
from tests.evaluator.pieces import make_evaluator
from tests.pico import pico_tokens, save_pico_of


def test_it_is_what_hidden_states_say(pico):
    tokens = pico_tokens(3, 24, 4)
    found = gather_stream(pico, tokens)
    with torch.inference_mode():
        states = pico.model(tokens, output_hidden_states=True, use_cache=False).hidden_states
    # The last of these has gone through the final norm, so it is left out.
    states = torch.stack(states[:-1])[:, :, 1:].flatten(1, 2)
    layers = len(pico.layers)
    expected = 1 - torch.nn.functional.cosine_similarity(states[:, None], states[None], dim=-1).mean(dim=-1)
    assert torch.allclose(torch.tensor(found.displacement)[:layers, :layers], expected, atol=1e-5)
    added, norms = states[1:] - states[:-1], states[:-1].norm(dim=-1)
    overlap = (torch.einsum("itd,jtd->ijt", added, added) / (norms[:, None] * norms[None])).mean(dim=-1)
    assert torch.allclose(torch.tensor(found.overlap)[: layers - 1, : layers - 1], overlap, atol=1e-4)
    assert len(found.displacement) == layers + 1
    assert len(found.overlap) == layers


def test_it_is_gathered_once_of_the_dense_model(pico, tmp_path):
    judge = make_evaluator(pico, tmp_path)
    judge.measure([Architecture.dense(pico.layout).replace(2, mlp_width=0)], "search", "user")
    found = judge.stream()
    assert found == gather_stream(pico, judge.texts.of("search"))
    assert judge.store.stream(judge.protocol("search").fingerprint) == found
    assert judge.store.stream("other") is None


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_has_one(kind, tmp_path):
    dense = open_model(str(save_pico_of(kind, tmp_path)), dtype="float32")
    found = gather_stream(dense, pico_tokens(2, 16, 1))
    moved = torch.tensor(found.displacement)
    assert torch.allclose(moved.diagonal(), torch.zeros(len(moved)), atol=1e-5)
    assert (moved.diagonal(1) > 1e-4).all()
    assert (torch.tensor(found.overlap).diagonal() > 0).all()
