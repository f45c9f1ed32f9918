"""Instruction data: usual shapes are read, bad rows refused by their place, and answers encoded to be learned."""

import json
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from evaluator import open_model
from evaluator.recovery.examples import (
    Example,
    check_same_tokenizer,
    encode_example,
    encode_examples,
    encode_prompt,
    read_examples,
)
from evaluator.sources import documents
from space import ModelError, SettingError, TextError
from tests.pico import pico_tokenizer

ASKED, ANSWERED = "How many canes?", "Three of five are left.\n#### 3"
CHATML = (
    "{% for message in messages %}<s>{{ message['role'] }}:{{ message['content'] }}</s>.{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
SHAPES = {
    "instruction": {"instruction": ASKED, "answer": ANSWERED},
    "question": {"question": ASKED, "answer": ANSWERED, "id": 7},
    "prompt": {"prompt": ASKED, "completion": ANSWERED},
    "output": {"instruction": ASKED, "input": "", "output": ANSWERED},
    "response": {"instruction": ASKED, "response": ANSWERED},
    "chat": {"messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]},
}


def jsonl(folder, *rows):
    file = folder / "rows.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(file)


@pytest.fixture
def chatty():
    tokenizer = pico_tokenizer()
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.mark.parametrize("shape", SHAPES)
def test_every_usual_shape_is_read(tmp_path, shape):
    assert read_examples(jsonl(tmp_path, SHAPES[shape], "", "  ")) == [Example(ASKED, ANSWERED)]


def test_input_and_system_are_part_of_the_instruction(tmp_path):
    turns = [{"role": "system", "content": "Be short."}, *SHAPES["chat"]["messages"]]
    file = jsonl(tmp_path, {"instruction": ASKED, "input": "Of five.", "output": "3"}, {"messages": turns})
    assert [example.instruction for example in read_examples(file)] == [f"{ASKED}\n\nOf five.", f"Be short.\n\n{ASKED}"]


def test_parquet_reads_as_jsonl_does(tmp_path):
    pytest.importorskip("pyarrow", reason="needs the package `pyarrow`: pip install 'secateur[hub]'")
    for shape in ("question", "chat"):
        pd.DataFrame([SHAPES[shape]] * 2).to_parquet(tmp_path / "rows.parquet")
        assert read_examples(str(tmp_path / "rows.parquet")) == [Example(ASKED, ANSWERED)] * 2
    (tmp_path / "rows.parquet").write_bytes(b"no such thing")
    with pytest.raises(TextError, match=r"readable table, but .*rows.parquet' gave: .*; repair it"):
        read_examples(str(tmp_path / "rows.parquet"))


def test_ends_of_lines_inside_of_strings_end_no_row(tmp_path):
    row = {"question": "one\u2028line", "answer": "a\x85b"}
    assert read_examples(jsonl(tmp_path, json.dumps(row, ensure_ascii=False) + "\r")) == [
        Example("one\u2028line", "a\x85b")
    ]


GOOD = SHAPES["question"]
BAD_ROWS = {
    "not JSON": ('{"question": "x"', r"must be JSON, but line 2 of .* is not \(.+\); repair"),
    "nested without end": ("[" * 100_000, r"line 2 of .* is not \(nested too deep\)"),
    "no object": ("[1]", r"object with fields, but line 2 of .* is list"),
    "other fields": (
        {"question": "x", "text": "y"},
        r"fields instruction \+ answer, question \+ answer, .* messages, but line 2 of .* has question, text; rename",
    ),
    "no fields": ({}, r"line 2 of .* has none"),
    "empty answer": ({"question": "x", "answer": " \n"}, r"answer must be text, but in line 2 of .* it is empty"),
    "a number": ({"question": "x", "answer": 3}, r"in line 2 of .* it is no text: 3; repair"),
    "half a character": ('{"question": "x", "answer": "\\ud800"}', r"in line 2 of .* it is no text"),
    "a long chat": (
        {"messages": SHAPES["chat"]["messages"] * 2},
        r"one user and one assistant turn, .* line 2 of .* are user, assistant, user, assistant; split",
    ),
    "no chat": ({"messages": "hello"}, r"line 2 of .* are no turns"),
    "a chat without content": ({"messages": [{"role": "user"}, {"role": "assistant"}]}, r"user turn must be text"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_is_told_by_its_place(tmp_path, kind):
    row, message = BAD_ROWS[kind]
    with pytest.raises(TextError, match=message):
        read_examples(jsonl(tmp_path, GOOD, row, GOOD), limit=1)


def test_what_is_no_data_is_refused(tmp_path):
    with pytest.raises(TextError, match=r"at least one example, but .*rows.jsonl' holds none"):
        read_examples(jsonl(tmp_path, "", " "))
    with pytest.raises(TextError, match=r"there is no .*missing.jsonl"):
        read_examples(str(tmp_path / "missing.jsonl"))
    with pytest.raises(TextError, match=r"must be a .jsonl or .parquet file, gsm8k or hub:DATASET, but is 'alpaca'"):
        read_examples("alpaca")
    (tmp_path / "junk.jsonl").write_bytes(bytes(range(256)))
    with pytest.raises(TextError, match=r"UTF-8 text, but .*junk.jsonl' is not"):
        read_examples(str(tmp_path / "junk.jsonl"))
    with pytest.raises(SettingError, match="limit must be at least 1 example, but is 0"):
        read_examples(jsonl(tmp_path, GOOD), limit=0)


def test_a_limit_draws_by_the_seed(tmp_path):
    file = jsonl(tmp_path, *({"question": f"{number}?", "answer": "x"} for number in range(50)))
    everything = read_examples(file)
    drawn, same, other = (read_examples(file, 20, seed) for seed in (0, 0, 1))
    assert drawn == same != other
    assert drawn == sorted(drawn, key=everything.index) != everything[:20]
    assert set(read_examples(file, 5)) < set(drawn)
    assert read_examples(file, 100) == everything


def test_the_hub_is_streamed_no_further_than_needed(monkeypatch):
    asked, read = [], []

    def rows():
        for number in range(50_000):
            read.append(number)
            yield {"question": f"{number}?", "answer": "x"}

    def load_dataset(name, config, split, streaming):
        asked.append((name, config, split, streaming))
        return rows()

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert len(read_examples("gsm8k", 10)) == 10
    assert asked == [("openai/gsm8k", "main", "train", True)]
    assert len(read) == 20_000
    assert len(read_examples("hub:someone/some")) == 50_000
    assert asked[1] == ("someone/some", None, "train", True)


def test_a_hub_out_of_reach_is_told(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(TextError, match=r"must be reachable, but 'gsm8k' gave: Couldn't reach the Hub; check its name"):
        read_examples("gsm8k")
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: iter([GOOD])))
    with pytest.raises(TextError, match="have a column \"text\", but 'hub:someone/some' gave: 'text'"):
        next(documents("hub:someone/some"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TextError, match="'gsm8k' needs the package `datasets`; pip install"):
        read_examples("gsm8k")


@pytest.mark.parametrize("template", [None, CHATML])
def test_the_answer_and_its_end_are_learned(template):
    tokenizer = pico_tokenizer()
    tokenizer.chat_template = template
    example = Example("the rose bush", "in June it bloomed")
    sample = encode_example(tokenizer, example, 100)
    assert list(sample.tokens[: sample.first]) == encode_prompt(tokenizer, "the rose bush")
    assert sample.tokens[0] == tokenizer.bos_token_id
    assert sample.tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(sample.tokens[sample.first : -1]).split() == ["in", "June", "it", "bloomed"]
    assert "rose bush" in tokenizer.decode(sample.tokens[: sample.first])
    if template:
        read = tokenizer.decode(sample.tokens).replace(" ", "")
        assert read == "<s>user:therosebush</s>.<s>assistant:inJuneitbloomed</s>"
        turns = [{"role": "user", "content": "the rose bush"}, {"role": "assistant", "content": "in June it bloomed"}]
        whole = tokenizer.apply_chat_template(turns, return_dict=False)
        assert list(sample.tokens) == whole[: len(sample.tokens)]
        assert len(whole) > len(sample.tokens)  # what the template puts after the end is not learned
    assert encode_example(tokenizer, example, len(sample.tokens)) == sample
    assert encode_example(tokenizer, example, len(sample.tokens) - 1) is None


def test_a_template_that_changes_the_answers_place_gives_its_prompt_and_the_answer(chatty):
    chatty.chat_template = CHATML.replace("<s>assistant:{%", "<s>assistant think {%")
    sample = encode_example(chatty, Example("the rose bush", "in June"), 100)
    assert chatty.decode(sample.tokens[: sample.first]).rstrip().endswith("think")
    assert chatty.decode(sample.tokens[sample.first :]) == "in June</s>"


def test_a_template_that_cannot_be_used_is_told(chatty):
    chatty.chat_template = "{{ raise_exception('only for pictures') }}"
    with pytest.raises(ModelError, match=r"chat template must .* gave: only for pictures; repair"):
        encode_prompt(chatty, "the rose bush")
    endless = pico_tokenizer()
    endless.eos_token = None
    with pytest.raises(ModelError, match=r"token that ends an answer \(eos_token\), but this one has none"):
        encode_example(endless, Example("the rose", "bush"), 100)


def test_examples_that_are_too_long_are_counted(chatty):
    short, long = Example("the rose", "bush"), Example("the rose", "bush " * 50)
    encoded = encode_examples(chatty, [long, short, long], 60)
    assert encoded.samples == (encode_example(chatty, short, 60),)
    assert encoded.too_long == 2
    with pytest.raises(TextError, match="must fit 60 tokens, but none of the 2 does"):
        encode_examples(chatty, [long, long], 60)


def test_models_of_other_vocabularies_are_refused(pico, stories):
    check_same_tokenizer(pico.tokenizer, pico_tokenizer(), "dense", "own")
    other = open_model(str(stories), dtype="float32").tokenizer
    said = r"vocabulary, but '.+' is token (\d+|none) of own and (\d+|none) of dense \(words that differ: \d{3}\); take"
    with pytest.raises(ModelError, match=said):
        check_same_tokenizer(pico.tokenizer, other, "dense", "own")
    swapped = json.loads(pico_tokenizer().backend_tokenizer.to_str())
    words = swapped["model"]["vocab"]
    words["A"], words["B"] = words["B"], words["A"]
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(swapped)))
    said = rf"'A' is token {words['A']} of own and {words['B']} of dense \(words that differ: 2\)"
    with pytest.raises(ModelError, match=said):
        check_same_tokenizer(pico.tokenizer, other, "dense", "own")


@pytest.mark.parametrize(("longer", "said"), [("own", "160 of own and none"), ("dense", "none of own and 160")])
def test_a_word_that_only_one_model_has_is_refused(longer, said):
    tokenizers = {"dense": pico_tokenizer(), "own": pico_tokenizer()}
    tokenizers[longer].add_tokens(["zzz"])
    with pytest.raises(ModelError, match=f"'zzz' is token {said} of dense"):
        check_same_tokenizer(tokenizers["dense"], tokenizers["own"], "dense", "own")
