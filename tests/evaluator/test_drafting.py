"""What is counted of drafting is what two models do that are run without a cache, one token after the other."""

import copy
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from evaluator import open_model, standalone
from evaluator.recovery.drafting import measure_drafting
from space import Architecture, ModelError, SettingError, TextError
from tests.evaluator.pieces import make_surgeon
from tests.pico import pico_llama, pico_tokens, save_pico_of


@pytest.fixture
def trained(stories):
    return open_model(str(stories), dtype="float32")


def story_prompts(dense):
    openings = ("Once upon a time, there was a little girl", "Tom had a red ball. He", "The sun was")
    return [dense.tokenizer(opening)["input_ids"] for opening in openings]


def pico_prompts():
    return pico_tokens(2, 9, 3).tolist()


def pruned(dense, architecture):
    """Return the pruned model as one of its own, which shares nothing with the dense one."""
    own = replace(dense, model=copy.deepcopy(dense.model))
    make_surgeon(own).install(architecture)
    return standalone(own, architecture)


def without_attention(dense, *indices):
    architecture = Architecture.dense(dense.layout)
    for index in indices:
        architecture = architecture.replace(index, kv_groups=0)
    return architecture


def next_token(model, ids):
    return int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())


def simulate(dense, draft, prompt, tokens, draft_tokens):
    """Return tokens, passes, draft tokens and accepted ones of a prompt, by forward passes of whole texts alone."""
    ids, end = list(prompt), len(prompt) + tokens
    passes = drafted = accepted = 0
    with torch.inference_mode():
        while len(ids) < end:
            text = list(ids)
            for _ in range(min(draft_tokens, end - len(ids) - 1)):
                text.append(next_token(draft, text))
            passes, drafted = passes + 1, drafted + len(text) - len(ids)
            for candidate in [*text[len(ids) :], None]:
                ids.append(next_token(dense.model, ids))
                if ids[-1] != candidate:
                    break
                accepted += 1
    return SimpleNamespace(tokens=tokens, passes=passes, drafted=drafted, accepted=accepted)


def error_of(runs, above, below):
    """Return the jackknife's standard error of a ratio of sums."""
    without = []
    for index in range(len(runs)):
        rest = runs[:index] + runs[index + 1 :]
        without.append(sum(getattr(run, above) for run in rest) / sum(getattr(run, below) for run in rest))
    mean = sum(without) / len(without)
    return math.sqrt((len(runs) - 1) / len(runs) * sum((each - mean) ** 2 for each in without))


def assert_as_simulated(dense, draft, prompts, tokens, draft_tokens):
    found = measure_drafting(dense, draft, prompts, tokens, draft_tokens)
    runs = [simulate(dense, draft, prompt, tokens, draft_tokens) for prompt in prompts]
    totals = {name: sum(getattr(run, name) for run in runs) for name in ("tokens", "passes", "drafted", "accepted")}
    assert found.same_text == 1
    assert found.tokens == totals["tokens"]
    assert found.acceptance_rate == pytest.approx(totals["accepted"] / totals["drafted"])
    assert found.mean_accepted_length == pytest.approx(totals["tokens"] / totals["passes"])
    assert found.acceptance_rate_standard_error == pytest.approx(error_of(runs, "accepted", "drafted"))
    assert found.mean_accepted_length_standard_error == pytest.approx(error_of(runs, "tokens", "passes"))
    return found


def test_a_draft_identical_with_the_dense_model_is_always_accepted(trained):
    draft, told = copy.deepcopy(trained.model), []
    found = measure_drafting(trained, draft, story_prompts(trained), tokens=24, draft_tokens=5, progress=told.append)
    assert (found.acceptance_rate, found.acceptance_rate_standard_error) == (1, 0)
    assert (found.mean_accepted_length, found.mean_accepted_length_standard_error) == (6, 0)
    assert (found.prompts, found.tokens, found.draft_tokens, found.same_text) == (3, 3 * 24, 5, 1)
    assert told == [1, 1, 1]
    # 3 more tokens take one more pass.
    longer = measure_drafting(trained, draft, story_prompts(trained), tokens=27, draft_tokens=5)
    assert longer.acceptance_rate == 1
    assert longer.mean_accepted_length == pytest.approx(27 / 5)
    # Also where it is the same object, whose every pass could be taken for the dense model's.
    itself = measure_drafting(trained, trained.model, story_prompts(trained), tokens=24, draft_tokens=5)
    assert (itself.acceptance_rate, itself.mean_accepted_length, itself.same_text) == (1, 6, 1)


def test_a_badly_pruned_draft_is_rarely_accepted(trained):
    bad = Architecture.dense(trained.layout)
    for index in range(trained.layout.layers):
        bad = bad.replace(index, mlp_width=32)
    found = assert_as_simulated(trained, pruned(trained, bad), story_prompts(trained), 24, 5)
    assert found.acceptance_rate < 0.4
    assert 1 <= found.mean_accepted_length < 3
    assert found.acceptance_rate_standard_error > 0


ARCHITECTURES = {
    "first attention": lambda dense: without_attention(dense, 0),
    "inner attentions": lambda dense: without_attention(dense, 1, 3),
    "last attention": lambda dense: without_attention(dense, 4),
    "first block": lambda dense: without_attention(dense, 0).replace(0, mlp_width=0),
    "inner block, uneven groups": lambda dense: (
        without_attention(dense, 2).replace(2, mlp_width=0).replace(3, kv_groups=3).replace(4, kv_groups=2)
    ),
    "all but one attention": lambda dense: without_attention(dense, 0, 1, 2, 4),
}


@pytest.mark.parametrize("kept", ARCHITECTURES)
def test_counts_are_those_of_models_without_a_cache(trained, kept):
    draft = pruned(trained, ARCHITECTURES[kept](trained))
    found = assert_as_simulated(trained, draft, story_prompts(trained), 22, 4)
    assert 0 < found.acceptance_rate < 1


@pytest.mark.parametrize("family", ["mistral", "qwen2", "gemma2", "gpt2", "opt"])
def test_counts_are_right_for_other_families_and_their_windows(family, tmp_path):
    dense = open_model(str(save_pico_of(family, tmp_path)), dtype="float32")
    with torch.no_grad():  # nothing of what a random attention does could be left out, but of this some
        dense.layers[0].get_submodule(dense.layout.record.output).weight *= 0.1
    # 9 tokens and 21 more: far beyond the window of 12 of those that have one.
    same = measure_drafting(dense, copy.deepcopy(dense.model), pico_prompts(), 21, 4)
    assert (same.acceptance_rate, same.same_text) == (1, 1)
    found = assert_as_simulated(dense, pruned(dense, without_attention(dense, 0)), pico_prompts(), 21, 4)
    assert 0 < found.acceptance_rate < 1


def test_a_text_that_ends_counts_what_there_was(trained):
    prompts = story_prompts(trained)
    with torch.inference_mode():
        ids = torch.tensor([prompts[0]])
        third = trained.model.generate(ids, max_new_tokens=3, do_sample=False)[0, -1].item()
    # The text ends with its third token, the last that the first round drafts.
    trained.model.generation_config.eos_token_id = [499, third]
    found = measure_drafting(trained, copy.deepcopy(trained.model), prompts[:1] * 2, tokens=24, draft_tokens=5)
    assert (found.tokens, found.acceptance_rate, found.mean_accepted_length, found.same_text) == (2 * 3, 1, 3, 1)
    # Of rounds of two it is the dense model's own, behind two accepted ones.
    found = measure_drafting(trained, copy.deepcopy(trained.model), prompts[:1] * 2, tokens=24, draft_tokens=2)
    assert (found.tokens, found.acceptance_rate, found.mean_accepted_length) == (2 * 3, 1, 3)


def test_the_models_own_settings_do_not_count_and_stay(trained):
    prompts = story_prompts(trained)
    draft = pruned(trained, without_attention(trained, 1))
    plain = measure_drafting(trained, draft, prompts, 22, 4)
    for model in (trained.model, draft):
        model.generation_config.update(
            do_sample=True, temperature=9.0, repetition_penalty=3.0, no_repeat_ngram_size=2, max_new_tokens=1
        )
        model.generation_config.update(num_assistant_tokens=1, num_assistant_tokens_schedule="heuristic")
    before = [(model.generation_config, model.generation_config.to_dict()) for model in (trained.model, draft)]
    again = measure_drafting(trained, draft, prompts, 22, 4)
    for name in ("acceptance_rate", "mean_accepted_length", "tokens", "same_text"):
        assert getattr(again, name) == getattr(plain, name)

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_drafting(trained, draft, prompts, 22, 4, stop)
    for model, (settings, values) in zip((trained.model, draft), before, strict=True):
        assert model.generation_config is settings
        assert settings.to_dict() == values
        assert not model._forward_pre_hooks


def test_a_word_that_pads_elsewhere_is_a_word(trained):
    prompts, draft = story_prompts(trained), copy.deepcopy(trained.model)
    words = [trained.model.generate(torch.tensor([each]), max_new_tokens=24, do_sample=False) for each in prompts]
    often = torch.cat(words, dim=1).mode().values.item()
    for model in (trained.model, draft):
        model.generation_config.pad_token_id = often
    found = measure_drafting(trained, draft, prompts, 24, 5)
    assert (found.acceptance_rate, found.mean_accepted_length, found.same_text) == (1, 6, 1)


def test_speed_by_a_clock_that_counts_passes(pico):
    draft, order, now = copy.deepcopy(pico.model), [], 0

    def count(seconds):
        def add(*_):
            nonlocal now
            now += seconds
            order.append(seconds)

        return add

    pico.model.register_forward_hook(count(10))
    draft.register_forward_hook(count(1))
    pico.model.generation_config.eos_token_id = 2
    found = measure_drafting(pico, draft, pico_prompts(), 8, 3, clock=lambda: now)
    # 8 passes alone; with the draft 2 rounds of 3 passes of it and one of the dense model.
    assert found.tokens_per_second_plain == pytest.approx(8 / 80)
    assert found.tokens_per_second == pytest.approx(8 / 26)
    assert (found.speedup, found.speedup_standard_error) == (pytest.approx(80 / 26), pytest.approx(0))
    alone, drafted = [10] * 8, [1, 1, 1, 10] * 2
    warming = len(order) - 2 * 16
    assert order[warming:] == [*alone, *drafted, *drafted, *alone]
    assert warming > 0


def test_texts_that_come_out_otherwise_are_told(pico):
    def shift(_, args, inputs, output):
        if 1 < inputs["input_ids"].shape[1] < 9:  # of several tokens that the draft has written
            output.logits = output.logits.roll(1, dims=-1)

    pico.model.register_forward_hook(shift, with_kwargs=True)
    found = measure_drafting(pico, pico_llama(), pico_prompts(), 12, 3)
    assert found.same_text == 0
    assert found.acceptance_rate < 1


def test_it_can_be_written_down(pico):
    found = measure_drafting(pico, pico_llama(1), pico_prompts(), 6, 3)
    told = found.to_dict()
    assert json.loads(json.dumps(told)) == told
    assert told["speedup"] == pytest.approx(found.tokens_per_second / found.tokens_per_second_plain)
    assert {name for name in told if not name.endswith("_standard_error")} == {
        "acceptance_rate",
        "mean_accepted_length",
        "tokens_per_second",
        "tokens_per_second_plain",
        "speedup",
        "prompts",
        "tokens",
        "draft_tokens",
        "same_text",
    }


def test_another_vocabulary_is_refused(pico, trained):
    with pytest.raises(ModelError, match="vocabulary of 160 tokens, but has 512"):
        measure_drafting(pico, trained.model, pico_prompts(), 8)


def test_a_draft_without_any_attention_is_refused(pico):
    draft = pruned(pico, without_attention(pico, *range(6)))
    with pytest.raises(ModelError, match="attention of all 6 layers is removed"):
        measure_drafting(pico, draft, pico_prompts(), 8)


@pytest.mark.parametrize(
    ("prompts", "tokens", "draft_tokens", "error", "message"),
    [
        ([], 8, 5, TextError, "at least 2 prompts, .* there are 0"),
        ([[3]], 8, 5, TextError, "at least 2 prompts, .* there are 1"),
        ([[3], []], 8, 5, TextError, "number 2 is empty"),
        ([[3], [4]], 1, 5, SettingError, "tokens must be at least 2, .* is 1"),
        ([[3], [4]], 8, 0, SettingError, "draft_tokens must be at least 1, but is 0"),
        ([[3], [4] * 121], 8, 5, SettingError, "128 positions, but prompt 2 has 121 tokens and 8 follow"),
    ],
)
def test_what_cannot_be_measured_is_refused(pico, prompts, tokens, draft_tokens, error, message):
    with pytest.raises(error, match=message):
        measure_drafting(pico, pico_llama(1), prompts, tokens, draft_tokens)


def test_the_last_position_of_the_model_can_be_written(pico):
    found = measure_drafting(pico, copy.deepcopy(pico.model), [[3] * 120, [4] * 120], 8, 5)
    assert found.acceptance_rate == 1
