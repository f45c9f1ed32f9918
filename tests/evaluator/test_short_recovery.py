"""What an architecture measures after a short recovery: another protocol, the same for all, and nothing left behind."""

from dataclasses import replace

import pytest
import torch

from evaluator import open_model
from evaluator.recovery import parts as parts_module
from evaluator.recovery.short import ShortRecipe, ShortRecovery
from evaluator.standalone import standalone
from space import Architecture, SettingError
from tests.evaluator.pieces import logits_of, make_evaluator, mixed, random_texts
from tests.pico import PICOS, pico_tokens, save_pico_of

RECIPE = ShortRecipe(steps=8, step_tokens=64, rank=4, learning_rate=1e-2)


def test_recovered_models_are_nearer_to_the_dense_one(pico, pico_folder, tmp_path):
    before = logits_of(pico.model)
    texts = random_texts(8)
    judge = make_evaluator(pico, tmp_path, texts, recovery=RECIPE)
    plain = make_evaluator(open_model(str(pico_folder), dtype="float32"), tmp_path / "plain", texts)
    architecture = mixed(pico)
    [recovered] = judge.measure([architecture], "search", "test")
    [pruned] = plain.measure([architecture], "search", "test")
    assert recovered.kl < 0.95 * pruned.kl
    assert recovered.protocol != pruned.protocol
    assert judge.protocol("search").recovery == "8 steps of 64 tokens, rank 4, rate 0.01, seed 0"
    # Of the text that is reported, and of beginnings, models are as they were pruned.
    for split in ("report", "search:1"):
        assert judge.protocol(split) == plain.protocol(split)
        assert judge.measure([architecture], split, "test")[0].kl == plain.measure([architecture], split, "test")[0].kl
    judge.surgeon.restore()
    assert torch.equal(logits_of(pico.model), before)
    assert not any(weight.requires_grad for weight in pico.model.parameters())


def test_a_recovery_is_the_same_whatever_was_measured_before(pico, tmp_path):
    texts = random_texts(8)
    first = make_evaluator(pico, tmp_path / "first", texts, recovery=RECIPE)
    others = [Architecture.dense(pico.layout), Architecture.dense(pico.layout).replace(2, mlp_width=24)]
    first.measure(others, "validate", "test")
    [after_others] = first.measure([mixed(pico)], "validate", "test")
    first.surgeon.restore()
    second = make_evaluator(pico, tmp_path / "second", texts, recovery=RECIPE)
    [alone] = second.measure([mixed(pico)], "validate", "test")
    assert after_others.kl_blocks == alone.kl_blocks


def test_a_recovery_is_the_same_by_any_parts(pico, tmp_path, monkeypatch):
    texts = random_texts(8)
    first = make_evaluator(pico, tmp_path / "first", texts, recovery=RECIPE)
    [whole] = first.measure([mixed(pico)], "validate", "test")
    first.surgeon.restore()
    monkeypatch.setattr(parts_module, "_PART_BYTES", 0)
    monkeypatch.setattr(parts_module, "_FEWEST_TOKENS", 7)
    second = make_evaluator(pico, tmp_path / "second", texts, recovery=RECIPE)
    [by_parts] = second.measure([mixed(pico)], "validate", "test")
    assert by_parts.kl_blocks == pytest.approx(whole.kl_blocks, rel=1e-3)


def test_it_learns_from_the_calibration_set_of_the_moment(pico, pico_folder, tmp_path):
    texts, other = random_texts(8), pico_tokens(8, 32, 77)
    judge = make_evaluator(pico, tmp_path / "first", texts, recovery=RECIPE)
    [before] = judge.measure([mixed(pico)], "validate", "test")
    with judge.calibrated_on(other, judge.criterion):
        [meanwhile] = judge.measure([mixed(pico)], "validate", "test")
    moved = replace(texts, tokens={**texts.tokens, "calibrate": other})
    again = open_model(str(pico_folder), dtype="float32")
    [alone] = make_evaluator(again, tmp_path / "second", moved, recovery=RECIPE).measure(
        [mixed(pico)], "validate", "test"
    )
    assert meanwhile.kl_blocks == alone.kl_blocks != before.kl_blocks
    # And back to its own afterwards: of an architecture that it has not measured yet.
    other_one = mixed(pico).replace(4, mlp_width=24)
    fresh = make_evaluator(open_model(str(pico_folder), dtype="float32"), tmp_path / "third", texts, recovery=RECIPE)
    [own], [expected] = (each.measure([other_one], "validate", "test") for each in (judge, fresh))
    assert own.kl_blocks == expected.kl_blocks


def test_it_counts_in_the_cost(pico, tmp_path):
    judge = make_evaluator(pico, tmp_path, recovery=RECIPE)
    predicted = judge.texts.of("search").numel() - len(judge.texts.of("search"))
    assert judge.work(mixed(pico), "search") == predicted + 3 * 8 * 64
    assert judge.work(mixed(pico), "report") <= predicted


@pytest.mark.parametrize("kind", PICOS)
def test_every_family_is_recovered(kind, tmp_path):
    folder = str(save_pico_of(kind, tmp_path / "model"))
    dense, again = (open_model(folder, dtype="float32") for _ in range(2))
    texts = random_texts(64)  # random tokens, of which few would be learned by heart
    recipe = replace(RECIPE, steps=32, step_tokens=128, learning_rate=5e-3)
    architecture = Architecture.dense(dense.layout).replace(1, mlp_width=16).replace(2, kv_groups=0)
    judge = make_evaluator(dense, tmp_path / "recovered", texts, recovery=recipe)
    plain = make_evaluator(again, tmp_path / "plain", texts)
    [recovered] = judge.measure([architecture], "search", "test")
    [pruned] = plain.measure([architecture], "search", "test")
    assert recovered.kl < pruned.kl


def test_with_nothing_left_to_train(pico, tmp_path):
    judge = make_evaluator(pico, tmp_path, recovery=RECIPE)
    architecture = Architecture.dense(pico.layout)
    for index in range(pico.layout.layers):
        architecture = architecture.replace(index, kv_groups=0, mlp_width=0)
    [measured] = judge.measure([architecture], "search", "test")
    assert measured.kl > 0


def test_more_steps_than_text(pico):
    recovery = ShortRecovery(pico, random_texts(2).of("calibrate"), RECIPE)
    student = standalone(pico, Architecture.dense(pico.layout))
    with recovery.recovered(replace(pico, model=student)):
        assert not torch.equal(logits_of(student), logits_of(pico.model))
    assert torch.equal(logits_of(student), logits_of(pico.model))


def test_refusals():
    with pytest.raises(SettingError, match="steps of a short recovery must be at least 1, but is 0"):
        ShortRecipe(steps=0)
    with pytest.raises(SettingError, match="learning_rate of a recovery must be above 0"):
        ShortRecipe(learning_rate=0)
