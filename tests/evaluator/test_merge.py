"""Merged models are what the mathematics says, and models that do not fit each other are refused."""

import math

import pytest
import torch

from evaluator.recovery.merge import average, slerp
from space import ModelError, SettingError
from tests.evaluator.pieces import logits_of
from tests.pico import pico_llama


def one(*values, dtype=torch.float32):
    """Return a state of one tensor."""
    return {"w": torch.tensor(values, dtype=dtype)}


def random_state(seed, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (6, 4), "b": (5,)}
    return {name: (scale * torch.randn(shape, generator=generator)).to(dtype) for name, shape in shapes.items()}


def angle(first, second):
    return math.acos(torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0))


def test_slerp_by_hand():
    halfway = slerp(one(2.0, 0.0), one(0.0, 2.0), 0.5)["w"]
    assert halfway.tolist() == pytest.approx([math.sqrt(2), math.sqrt(2)])
    # What is interpolated are the tensors as they are, not their directions.
    third = slerp(one(3.0, 0.0), one(0.0, 1.0), 1 / 3)["w"]
    assert third.tolist() == pytest.approx([3 * math.sin(math.pi / 3), math.sin(math.pi / 6)])
    # Of vectors 60 degrees apart, a quarter of the way.
    quarter = slerp(one(1.0, 0.0), one(0.5, math.sqrt(0.75)), 0.25)["w"]
    assert quarter.tolist() == pytest.approx([math.cos(math.pi / 12), math.sin(math.pi / 12)])


def test_slerp_takes_a_tensor_as_one_vector():
    # Row by row, the first would be the straight line of parallel rows: 1.5, and the second a circle.
    merged = slerp(one([1.0, 0.0], [1.0, 0.0]), one([2.0, 0.0], [0.0, 2.0]), 0.5)["w"]
    w = math.acos(1 / 2)
    part = math.sin(w / 2) / math.sin(w)
    torch.testing.assert_close(merged, part * torch.tensor([[3.0, 0.0], [1.0, 2.0]]))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_slerp_goes_along_the_circle(share):
    first = {name: tensor / tensor.norm() for name, tensor in random_state(0).items()}
    second = {name: tensor / tensor.norm() for name, tensor in random_state(1).items()}
    merged = slerp(first, second, share)
    for name, tensor in merged.items():
        assert tensor.norm().item() == pytest.approx(1)
        whole = angle(first[name], second[name])
        assert angle(first[name], tensor) == pytest.approx(share * whole, abs=1e-3)
        assert angle(tensor, second[name]) == pytest.approx((1 - share) * whole, abs=1e-3)
    backwards = slerp(second, first, 1 - share)
    torch.testing.assert_close(merged, backwards)


def test_slerp_is_a_line_where_there_is_no_circle():
    assert slerp(one(1.0, 2.0), one(3.0, 6.0), 0.25)["w"].tolist() == pytest.approx([1.5, 3.0])
    assert slerp(one(1.0, 2.0), one(-2.0, -4.0), 0.5)["w"].tolist() == pytest.approx([-0.5, -1.0])
    assert slerp(one(0.0, 0.0), one(4.0, 0.0), 0.25)["w"].tolist() == pytest.approx([1.0, 0.0])
    assert slerp(one(0.0, 0.0), one(0.0, 0.0), 0.25)["w"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_start", [False, True])
def test_the_ends_of_slerp_are_the_models_bit_for_bit(dtype, with_start):
    first, second = random_state(0, dtype), random_state(1, dtype, scale=1000)
    start = random_state(2, dtype, scale=1e-3) if with_start else None
    for share, end in ((0, first), (1, second), (0.0, first), (1.0, second)):
        merged = slerp(first, second, share, start)
        assert merged.keys() == end.keys()
        for name, tensor in merged.items():
            assert tensor.dtype == dtype
            assert torch.equal(tensor, end[name])
            assert tensor.data_ptr() != end[name].data_ptr()  # a merged model is trained on without changing these


def test_slerp_of_half_precision_is_computed_in_more_digits():
    first, second = random_state(0, torch.bfloat16), random_state(1, torch.bfloat16)
    exact = slerp(*({name: tensor.double() for name, tensor in each.items()} for each in (first, second)), 0.3)
    merged = slerp(first, second, 0.3)
    for name, tensor in merged.items():
        assert torch.equal(tensor, exact[name].bfloat16())


def test_from_a_common_start_what_was_learned_is_interpolated():
    # The two learned things at right angles, which the weights themselves, nearly parallel, do not show.
    start, first, second = one(100.0, 100.0), one(101.0, 100.0), one(100.0, 101.0)
    line = slerp(first, second, 0.5)["w"]
    circle = slerp(first, second, 0.5, start)["w"]
    assert line.tolist() == pytest.approx([100.5, 100.5])
    assert circle.tolist() == pytest.approx([100 + math.sqrt(0.5)] * 2)


def test_average_by_hand():
    states = [one(1.0, 2.0), one(3.0, 2.0), one(8.0, -1.0)]
    assert average(states)["w"].tolist() == pytest.approx([4.0, 1.0])
    assert average(states, [2, 0, 2])["w"].tolist() == pytest.approx([4.5, 0.5])
    assert average(states[:2], [0.25, 0.75])["w"].tolist() == pytest.approx([2.5, 2.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_average_is_summed_in_more_digits(dtype):
    # In its own dtype, the sum would swallow each of the small ones.
    large = 2.0**25 if dtype == torch.float32 else 512.0
    states = [one(large, dtype=dtype)] + [one(1.0, dtype=dtype)] * 63
    mean = average(states)["w"]
    assert mean.dtype == dtype
    assert mean.item() == torch.tensor((large + 63) / 64, dtype=dtype).item()
    assert mean.item() != large / 64
    equal = [random_state(5, dtype)] * 7
    assert all(torch.equal(average(equal)[name], equal[0][name]) for name in ("a", "b"))


def test_integers_are_taken_as_they_are():
    first = {"w": torch.ones(2), "ids": torch.tensor([3, 2**60 + 1]), "mask": torch.tensor([True, False])}
    second = {**first, "w": torch.zeros(2)}
    for merged in (slerp(first, second, 0.5), average([first, second])):
        assert torch.equal(merged["ids"], first["ids"])
        assert merged["mask"].tolist() == [True, False]
        assert merged["w"].tolist() == [0.5, 0.5]


GOOD = {"w": torch.ones(2), "v": torch.ones(3), "ids": torch.tensor([1, 2])}
MISFITS = {
    "missing": ({"w": GOOD["w"], "ids": GOOD["ids"]}, "only model 1 of 1 and 2 has v;"),
    "additional": ({**GOOD, "u": torch.ones(1)}, "only model 2 of 1 and 2 has u;"),
    "shape": ({**GOOD, "v": torch.ones(1, 3)}, r"same shape .* v has \(3,\) in model 1 and \(1, 3\) in model 2;"),
    "dtype": ({**GOOD, "v": torch.ones(3).half()}, "same dtype .* v has torch.float32 in model 1 and torch.float16"),
    "integers": ({**GOOD, "ids": torch.tensor([1, 3])}, "integers must be equal .* ids differs between models 1 and 2"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_models_that_do_not_fit_are_refused(misfit):
    state, message = MISFITS[misfit]
    with pytest.raises(ModelError, match=message):
        slerp(GOOD, state, 0.5)
    with pytest.raises(ModelError, match=message):
        slerp(GOOD, state, 0.0)
    with pytest.raises(ModelError, match=message):
        average([GOOD, state])
    third = message.replace("model 2", "model 3").replace("1 and 2", "1 and 3")
    with pytest.raises(ModelError, match=third):
        average([GOOD, GOOD, state])
    with pytest.raises(ModelError, match=third):
        slerp(GOOD, GOOD, 0.5, start=state)


def test_shares_and_weights_that_are_none_are_refused():
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(SettingError, match=r"must be 0\.\.1, but is"):
            slerp(GOOD, GOOD, share)
    for weights in ([1.0, -0.5], [0.0, 0.0], [1.0, math.nan], [1.0, math.inf]):
        with pytest.raises(SettingError, match="at least 0, and one above"):
            average([GOOD, GOOD], weights)
    with pytest.raises(SettingError, match="one for each model, but are 3 for 2"):
        average([GOOD, GOOD], [1, 1, 1])
    for few in ([], [GOOD]):
        with pytest.raises(ModelError, match=f"at least 2 models, but is of {len(few)}"):
            average(few)


def test_a_merged_model_is_a_model():
    models = [pico_llama(seed) for seed in (0, 1)]
    states = [model.state_dict() for model in models]
    before = [logits_of(model) for model in models]
    for merged in (slerp(states[0], states[1], 0.5), average(states)):
        assert not any(tensor.requires_grad for tensor in merged.values())
        between = pico_llama(2)
        between.load_state_dict(merged)
        own = logits_of(between)
        assert torch.isfinite(own).all()
        assert all((own - each).abs().max() > 0.1 for each in before)
        with torch.no_grad():
            for tensor in merged.values():
                tensor.zero_()
    for model, logits in zip(models, before, strict=True):
        assert torch.equal(logits_of(model), logits)
