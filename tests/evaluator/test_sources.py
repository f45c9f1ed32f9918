"""Where text comes from: files of three kinds, names of the hub, and when two sources are one."""

import json
import sys
from types import SimpleNamespace

import pandas as pd
import pytest

from evaluator.sources import HUB_NAMES, documents, identity, is_hub, named, same_source, tokenise
from space import TextError

TEXTS = ["The old gardener cut the rose", "in June it bloomed", "down to three strong canes"]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    pytest.importorskip("pyarrow", reason="needs the package `pyarrow`: pip install 'secateur[hub]'")
    pd.DataFrame({"text": TEXTS, "n": [1, 2, 3]}).to_parquet(tmp_path / "a.parquet")
    return tmp_path


def test_parquet_reads_as_jsonl_does(pico, files):
    assert list(documents(str(files / "a.parquet"))) == TEXTS
    of_lines = tokenise(pico, str(files / "a.jsonl")).tolist()
    assert tokenise(pico, str(files / "a.parquet")).tolist() == of_lines


def test_ends_of_lines_inside_of_strings_end_no_document(tmp_path):
    texts = ["one\u2028line", "one\u2029more", "a\x85b"]
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    file = tmp_path / "ends.jsonl"
    for end in ("\n", "\r\n"):
        file.write_bytes(end.join([*rows, ""]).encode())
        assert list(documents(str(file))) == texts
    file.write_text("\n".join([*rows, "", "no JSON"]), encoding="utf-8")
    with pytest.raises(TextError, match=r"but line 5 of .*ends.jsonl' is not"):
        list(documents(str(file)))


def test_short_documents_are_left_out(pico, files):
    sizes = [len(pico.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS]
    shortest = sorted(sizes)[1]
    tokens = tokenise(pico, str(files / "a.jsonl"), shortest=shortest)
    longer = [text for text, size in zip(TEXTS, sizes, strict=True) if size >= shortest]
    assert 0 < len(longer) < 3
    assert len(tokens) == sum(size for size in sizes if size >= shortest) + len(longer) - 1
    with pytest.raises(TextError, match=r"must hold a document of 500 tokens, but .*a.jsonl' holds none"):
        tokenise(pico, str(files / "a.jsonl"), shortest=500)


def test_a_parquet_file_without_text_is_refused(pico, files):
    pd.DataFrame({"n": [1]}).to_parquet(files / "b.parquet")
    with pytest.raises(TextError, match=r'must have a column "text", but .*b.parquet'):
        tokenise(pico, str(files / "b.parquet"))
    (files / "c.parquet").write_bytes(b"no such thing")
    with pytest.raises(TextError, match=r"c.parquet.*; repair it"):
        tokenise(pico, str(files / "c.parquet"))
    with pytest.raises(TextError, match=r"there is no .*d.parquet"):
        tokenise(pico, str(files / "d.parquet"))


def test_a_name_of_the_hub_is_streamed_and_read_no_further_than_asked(pico, monkeypatch):
    asked, read = [], []

    def rows():
        for number in range(1000):
            read.append(number)
            yield {"text": " ".join(TEXTS)}

    def load_dataset(name, config, split, streaming):
        asked.append((name, config, split, streaming))
        return rows()

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    tokens = tokenise(pico, "c4", at_most=40)
    assert asked == [("allenai/c4", "en", "train", True)]
    assert len(tokens) == 40
    assert len(read) < 20
    tokenise(pico, "slimpajama", at_most=40)
    assert asked[1][1] is None  # of a data set without configurations
    for name in HUB_NAMES:
        assert is_hub(name)


def test_when_two_sources_are_one(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("x")
    assert same_source(str(file), str(tmp_path / "b" / ".." / "a.txt"))
    assert not same_source(str(file), str(tmp_path / "b.txt"))
    assert same_source("c4", "hub:allenai/c4:en:validation")
    assert not same_source("c4", "wikipedia")
    assert not same_source("c4", str(file))
    assert named(str(file)) == "a.txt"
    assert named("c4") == "c4"


def test_a_file_is_told_by_what_it_holds(tmp_path):
    for folder, content in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.txt").write_text(content)
    one, same, other = (identity(str(tmp_path / folder / "t.txt")) for folder in "abc")
    assert one == same != other
    assert identity("self") == "self"
