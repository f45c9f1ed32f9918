"""The mean loss part by part: the same loss and gradients as with all logits at once."""

import pytest
import torch
from torch.nn import functional

from evaluator import open_model
from evaluator.head import Head
from evaluator.recovery import parts as parts_module
from evaluator.recovery.batches import Batch
from evaluator.recovery.objective import Objective
from tests.pico import PICOS, pico_tokens, save_pico_of


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(parts_module, "_PART_BYTES", 0)
    monkeypatch.setattr(parts_module, "_FEWEST_TOKENS", 5)  # of 22, which it does not divide


def batch():
    return Batch(pico_tokens(2, 12), torch.ones(2, 11, dtype=torch.bool))


def whole_loss(student, teacher, share, temperature):
    """Return the loss with all logits at once, as the model says them."""
    tokens = batch().tokens
    own = student.model(tokens, use_cache=False).logits[:, :-1].float()
    with torch.no_grad():
        theirs = teacher.model(tokens, use_cache=False).logits[:, :-1].float()
    given = functional.cross_entropy(own.flatten(0, 1), tokens[:, 1:].flatten())
    p, q = (theirs / temperature).log_softmax(-1), (own / temperature).log_softmax(-1)
    return (1 - share) * given + share * temperature**2 * (p.exp() * (p - q)).sum(-1).mean()


def gradients(model, loss):
    for weight in model.parameters():
        weight.grad = None
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", PICOS, ids=str)
def test_loss_and_gradients_of_all_weights(kind, share, tmp_path):
    save_pico_of(kind, tmp_path / "student", seed=1)
    save_pico_of(kind, tmp_path / "teacher", seed=2)
    student, teacher = (open_model(str(tmp_path / name), dtype="float32") for name in ("student", "teacher"))
    student.model.requires_grad_(True)
    whole = whole_loss(student, teacher, share, 2.0)
    expected = gradients(student.model, whole)
    found = Objective(student, teacher, share, 2.0).loss(batch())
    torch.testing.assert_close(found, whole)
    own = gradients(student.model, 3 * found)
    assert own.keys() == expected.keys()
    for name, gradient in own.items():
        rounding = 1e-7 + 1e-5 * float(expected[name].abs().max())  # of some, as OPT's key biases, they are 0
        torch.testing.assert_close(gradient, 3 * expected[name], atol=rounding, rtol=1e-4)


def test_a_head_that_is_not_trained_takes_no_gradient(pico):
    head = Head(pico)
    hidden = torch.randn(22, pico.layout.hidden_size, requires_grad=True)
    seen = []

    def loss_of(states, part):
        seen.append(len(states))
        return head.traced(states).square().sum()

    parts_module.mean_loss(loss_of, hidden, head.weights, pico.layout.vocabulary).backward()
    assert seen == [5, 5, 5, 5, 2]
    assert all(weight.grad is None for weight in head.weights)
    again = hidden.detach().requires_grad_()
    head.traced(again).square().sum(-1).mean().backward()
    torch.testing.assert_close(hidden.grad, again.grad)
    with torch.no_grad():
        alone = parts_module.mean_loss(loss_of, hidden, head.weights, pico.layout.vocabulary)
    torch.testing.assert_close(alone, head.traced(hidden).square().sum(-1).mean().detach())
