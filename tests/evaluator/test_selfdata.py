"""Self-data: what the dense model writes again is kept where it is right, whenever it was written."""

import dataclasses

import pytest
import torch

from evaluator import hash_weights, open_model
from evaluator.recovery import selfdata
from evaluator.recovery.examples import Example, encode_prompt
from evaluator.recovery.selfdata import rewrite
from space import SettingError

CHATML = (
    "{% for message in messages %}<s>{{ message['role'] }} {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant {% endif %}"
)
WRITTEN = "She cut 2 canes and 3 more, so 2 + 3 = 5.\n#### 5"
RIGHT = Example("How many canes did she cut?", "2 and 3 are <<2+3=5>>5 canes.\n#### 5")
WRONG = Example("How many canes did she leave?", "4 and 2 are 6.\n#### 6")
ECHO = Example("How many did she cut?", WRITTEN.replace("= 5", "= <<2+3=5>>5"))
WORDS = Example("Tell me of the canes.", "They were cut.")
EXAMPLES = [WRONG, RIGHT, WORDS, ECHO]


def teach(dense, answer, steps=60):
    """Train a model until it answers every request with the same text."""
    prompts = [selfdata._prompt(dense.tokenizer, example) for example in EXAMPLES]
    model = dense.model.requires_grad_(True)
    optimiser = torch.optim.Adam(model.parameters(), lr=4e-3)
    for step in range(steps):
        prompt = prompts[step % len(prompts)]
        labels = torch.tensor([[-100] * len(prompt) + answer])
        optimiser.zero_grad()
        model(torch.tensor([prompt + answer]), labels=labels).loss.backward()
        optimiser.step()
    model.requires_grad_(False)
    return dataclasses.replace(dense, weights_hash=hash_weights(model))


def ids(dense, text):
    return dense.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module")
def chatty(stories):
    """A trained model that answers requests with `WRITTEN` and then stops."""
    dense = open_model(str(stories), dtype="float32")
    dense.tokenizer.chat_template = CHATML
    return teach(dense, [*ids(dense, WRITTEN), dense.tokenizer.eos_token_id])


@pytest.fixture(scope="module")
def endless(stories):
    """A trained model without a chat template that never stops."""
    dense = open_model(str(stories), dtype="float32")
    return teach(dense, ids(dense, WRITTEN + "\nQuestion: How many canes"))


@pytest.fixture
def forwards(chatty):
    """How many steps the model has taken."""
    steps = []
    hook = chatty.model.register_forward_hook(lambda *_: steps.append(1))
    yield steps
    hook.remove()


def test_what_is_right_is_kept_and_all_else_stays(chatty, tmp_path):
    long = Example("Long ago. " * 200, "They were cut.\n#### 5")
    made = rewrite(chatty, [*EXAMPLES, long], most_tokens=64, cache=tmp_path)
    assert made.reasons == ("wrong_answer", None, None, "echo", "too_long")
    assert made.examples == (
        WRONG,
        Example(RIGHT.instruction, WRITTEN),
        Example(WORDS.instruction, WRITTEN),
        ECHO,
        long,
    )
    assert made.kept == (False, True, True, False, False)
    assert made.share_kept == 0.4
    assert made.counts == {"wrong_answer": 1, "echo": 1, "too_long": 1}
    assert rewrite(chatty, [], cache=tmp_path).share_kept == 0


def test_the_way_to_a_number_is_looked_at_where_that_is_asked(chatty, tmp_path, monkeypatch):
    monkeypatch.setattr(selfdata, "_batch", lambda _, part, *__: [("2 + 3 = 6, so 5.\n#### 5", True)] * len(part))
    assert rewrite(chatty, [RIGHT], cache=tmp_path).reasons == (None,)
    assert rewrite(chatty, [RIGHT], check_working=True, cache=tmp_path).reasons == ("wrong_working",)


def test_what_is_cut_off_is_not_kept(chatty, tmp_path):
    made = rewrite(chatty, [RIGHT, WORDS], most_tokens=10, cache=tmp_path)
    assert made.examples == (RIGHT, WORDS)
    assert made.counts == {"unfinished": 2}


def test_a_model_that_never_stops_is_stopped_after_its_answer(endless, tmp_path):
    steps = []
    hook = endless.model.register_forward_hook(lambda *_: steps.append(1))
    made = rewrite(endless, [RIGHT, WRONG], most_tokens=120, cache=tmp_path)
    hook.remove()
    assert made.examples == (Example(RIGHT.instruction, WRITTEN), WRONG)
    assert made.counts == {"wrong_answer": 1}
    assert len(steps) < 80
    assert rewrite(endless, [WORDS], most_tokens=100, cache=tmp_path).counts == {"unfinished": 1}


def test_the_model_is_shown_the_reference_without_notes_for_a_calculator(chatty, endless):
    shown = chatty.tokenizer.decode(selfdata._prompt(chatty.tokenizer, RIGHT))
    assert RIGHT.instruction in shown
    assert "2 and 3 are 5 canes.\n#### 5" in shown
    assert shown.rstrip().endswith("assistant")
    code = Example("Print it", "cout <<a=b>> c")
    assert "<<a=b>>" in chatty.tokenizer.decode(selfdata._prompt(chatty.tokenizer, code))
    assert endless.tokenizer.decode(selfdata._prompt(endless.tokenizer, RIGHT)).rstrip().endswith("own words:")


def test_a_second_call_is_read_and_tells_the_same_progress(chatty, tmp_path, forwards):
    told = []
    long = Example("Long ago. " * 200, "5")
    made = [rewrite(chatty, [RIGHT, long], most_tokens=64, cache=tmp_path, progress=told.append) for _ in range(2)]
    assert made[0] == made[1]
    assert 20 < len(forwards) < 64
    assert sum(told) == 2 * 2 * 64
    assert min(told) >= 0


def test_where_it_was_interrupted_makes_no_difference(pico_of_many_answers, tmp_path, monkeypatch):
    dense, examples = pico_of_many_answers
    monkeypatch.setattr(selfdata, "BATCH_TOKENS", 900)
    how = {"most_tokens": 40, "temperature": 1.0}
    whole = rewrite(dense, examples, **how, cache=tmp_path / "whole")
    batches = list((tmp_path / "whole").iterdir())
    assert len(batches) > 3

    steps = []

    def stop(_):
        steps.append(1)
        if len(steps) == 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rewrite(dense, examples, **how, cache=tmp_path / "parts", progress=stop)
    assert 0 < len(list((tmp_path / "parts").iterdir())) < len(batches)
    assert rewrite(dense, examples, **how, cache=tmp_path / "parts") == whole
    assert {file.name for file in (tmp_path / "parts").iterdir()} == {file.name for file in batches}


@pytest.fixture
def pico_of_many_answers(tmp_path):
    """A random model, whose drawn answers end here and there, and examples that keep any words."""
    from tests.pico import save_pico

    dense = open_model(str(save_pico(tmp_path / "pico", max_position_embeddings=1024)), dtype="float32")
    return dense, [Example(f"Tell me of the canes number {number}" + "!" * number, "None.") for number in range(15)]


def test_draws_depend_on_seed_and_temperature(pico_of_many_answers, tmp_path):
    dense, examples = pico_of_many_answers

    def written(seed, temperature, folder):
        return rewrite(dense, examples, most_tokens=60, seed=seed, temperature=temperature, cache=tmp_path / folder)

    drawn = written(0, 1.0, "a")
    assert 0 < drawn.share_kept < 1
    assert set(drawn.counts) == {"unfinished"}
    assert written(0, 1.0, "b") == drawn
    assert written(1, 1.0, "a") != drawn
    assert written(0, 0.9, "a") != drawn
    files = len(list((tmp_path / "a").iterdir()))
    written(0, 0.0, "a")
    written(1, 0.0, "a")  # greedily, there is nothing to draw
    assert len(list((tmp_path / "a").iterdir())) == files + 1


def test_answers_written_together_are_those_written_alone(stories):
    dense = open_model(str(stories), dtype="float32")
    prompts = [encode_prompt(dense.tokenizer, "Once upon a time" + " there was a cat" * number) for number in (0, 3, 9)]

    def decoded(prompts):
        watch = selfdata._Watch(dense.tokenizer, [False] * len(prompts), lambda _: None)
        return selfdata._decode(dense, prompts, [], 24, 0.0, 0, watch).tolist()

    assert decoded(prompts) == [decoded([prompt])[0] for prompt in prompts]


def test_settings_out_of_range_are_refused(pico, tmp_path):
    for change, message in (
        ({"most_tokens": 0}, "most_tokens must be at least 1, but is 0"),
        ({"temperature": -0.1}, r"temperature must be a number from 0 on, but is -0\.1"),
        ({"temperature": float("nan")}, "but is nan"),
    ):
        with pytest.raises(SettingError, match=message):
            rewrite(pico, [RIGHT], cache=tmp_path, **change)
