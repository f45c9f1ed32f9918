"""Calibration sets: the same recipe makes the same set; mixes, filters, records, and files that cannot be mistaken."""

import json

import pytest
import torch

from evaluator import Calibration, CalibrationSet, Filters, Writing, gather_set, open_model
from evaluator.accuracy import unit_losses
from evaluator.calibration_set import fingerprint
from evaluator.generation import CALIBRATION, write_documents
from evaluator.sources import tokenise
from space import SettingError, TextError
from tests.evaluator.test_texts import sentences

OWN = Calibration((("self", 1.0),), Writing(16))


@pytest.fixture(scope="module")
def trained(stories):
    return open_model(str(stories), dtype="float32")


@pytest.fixture
def two_texts(tmp_path):
    for name, first in (("a", 0), ("b", 500)):
        (tmp_path / f"{name}.txt").write_text(sentences(60, first))
    return str(tmp_path / "a.txt"), str(tmp_path / "b.txt")


def rows(tokens):
    return {tuple(row) for row in tokens.tolist()}


def places(dense, source, tokens):
    stream = tokenise(dense, source)
    all_of_it = stream[: len(stream) // 16 * 16].view(-1, 16).tolist()
    return [all_of_it.index(row) if row in all_of_it else None for row in tokens.tolist()]


def test_the_same_recipe_seed_and_model_make_the_same_set(pico, two_texts, tmp_path):
    mixed = Calibration(((two_texts[0], 1.0), ("self", 1.0)), Writing(16))
    one, same, other = (
        gather_set(pico, mixed, 6, 16, seed, tmp_path / name) for seed, name in ((0, "x"), (0, "y"), (1, "x"))
    )
    assert one.tokens.shape == (6, 16)
    assert torch.equal(one.tokens, same.tokens)
    assert one.record == same.record
    assert one.record["hash"] == fingerprint(one.tokens) != other.record["hash"]


def test_sources_are_mixed_by_weight_and_by_turns(pico, two_texts, tmp_path):
    a, b = two_texts
    made = gather_set(pico, Calibration(((a, 3.0), (b, 1.0))), 8, 16, 0, tmp_path)
    of_b = [number for number, place in enumerate(places(pico, b, made.tokens)) if place is not None]
    assert len(of_b) == 2
    assert of_b[0] < 4 <= of_b[1]  # either half has one
    assert [part["sequences"] for part in made.record["parts"]] == [6, 2]
    assert made.record["recipe"]["sources"] == [["a.txt", 3.0], ["b.txt", 1.0]]
    assert Calibration(((a, 1.0), (b, 1.0), ("self", 1.0))).shares(8) == {a: 3, b: 3, "self": 2}
    assert Calibration(((a, 98.0), (b, 1.0))).shares(4) == {a: 4, b: 0}


def test_a_pool_is_all_that_is_drawn_from(pico, two_texts, tmp_path):
    a, _ = two_texts
    stream = tokenise(pico, a)
    pool = stream[: 10 * 16].view(10, 16)
    made = gather_set(pico, Calibration(((a, 1.0),)), 10, 16, 0, tmp_path, pools={a: pool})
    assert rows(made.tokens) == rows(pool)
    with pytest.raises(TextError, match=r"must hold 11 sequences of 16 tokens to calibrate on, but .* holds 10; give"):
        gather_set(pico, Calibration(((a, 1.0),)), 11, 16, 0, tmp_path, pools={a: pool})


def test_the_models_own_documents_are_filtered_by_its_own_perplexity(trained, tmp_path):
    filters = Filters(perplexity=0.2)
    recipe = Calibration((("self", 1.0),), Writing(32), filters)
    made = gather_set(trained, recipe, 4, 64, 0, tmp_path, judged=True)
    # 4 sequences of 2 documents, of 10 that were written.
    written = write_documents(trained, 10, 32, Writing(32), 0, tmp_path)
    assert recipe.tokens_to_write(4, 64) == 320
    losses = unit_losses(trained, written)
    kept = written[losses.argsort()[:8].sort().values]
    assert torch.equal(made.tokens.view(8, 32), kept)
    assert made.record["parts"][0]["dropped"]["perplexity"] == 2
    torch.testing.assert_close(made.losses, unit_losses(trained, made.tokens))
    told = made.record["statistics"]["perplexity"]
    assert sum(told["histogram"]["counts"]) == 4
    assert told["mean"] == pytest.approx(float(made.losses.double().mean().exp()))


def test_documents_that_filters_leave_out_are_made_up_for(pico, tmp_path, monkeypatch):
    from evaluator import calibration_set

    firsts = []
    write = calibration_set.write_documents

    def repeating(dense, count, *rest, first=0, **more):
        firsts.append(first)
        written = write(dense, count, *rest, first=first, **more)
        if first == 0:
            written[1:3] = written[0]
        return written

    monkeypatch.setattr(calibration_set, "write_documents", repeating)
    made = gather_set(pico, OWN, 5, 16, 0, tmp_path)
    assert firsts == [0, 5]
    assert len(rows(made.tokens)) == 5
    assert made.record["parts"][0]["candidates"] == 7
    assert made.record["parts"][0]["dropped"]["duplicates"] == 2


def test_a_filter_that_leaves_too_little_is_named(pico, two_texts, tmp_path):
    a, _ = two_texts
    pool = torch.ones(6, 16, dtype=torch.int64)
    with pytest.raises(TextError, match=r"of which filters leave 1 \(duplicates 5\); give a longer text"):
        gather_set(pico, Calibration(((a, 1.0),)), 2, 16, 0, tmp_path, pools={a: pool})


@pytest.mark.parametrize("prefix", ["bos", "token", "text"])
def test_prefixes(trained, prefix, tmp_path):
    text = tmp_path / "lines.txt"
    text.write_text("\n".join(["Lily had a red ball that she liked.", "Tom saw a big dog in the park.", "Hi"]))
    writing = Writing(
        24, prefix=str(text) if prefix == "text" else prefix, prefix_tokens=5 if prefix == "text" else None
    )
    written = write_documents(trained, 12, 24, writing, 0, tmp_path / "cache")
    assert written.shape == (12, 24)
    assert len(rows(written)) == 12
    if prefix == "text":
        lines = text.read_text().splitlines()[:2]
        begun = {tuple(trained.tokenizer(line, add_special_tokens=False)["input_ids"][:5]) for line in lines}
        assert rows(written[:, :5]) == begun
    elif prefix == "token":
        assert len(set(written[:, 0].tolist())) > 8
    else:  # the trained model begins its stories in few ways
        assert len(set(written[:, 0].tolist())) < 8


def test_a_text_gives_two_tokens_of_each_line_unless_told_otherwise(trained, tmp_path):
    text = tmp_path / "lines.txt"
    text.write_text("Lily had a red ball that she liked.\nLily had a dog.\nTom saw a big dog in the park.")
    written = write_documents(trained, 8, 16, Writing(16, prefix=str(text)), 0, tmp_path / "cache")
    assert len(rows(written[:, :2])) == 2
    assert len(rows(written[:, :4])) > 2


def test_text_cannot_begin_with_a_bos_that_is_not_there(pico, tmp_path):
    pico.tokenizer.bos_token = None
    pico.model.config.bos_token_id = None
    with pytest.raises(TextError, match="begin with BOS where the tokenizer has such a token"):
        write_documents(pico, 2, 16, Writing(16, prefix="bos"), 0, tmp_path)


def test_how_tokens_are_drawn_changes_the_text(trained, tmp_path):
    plain = write_documents(trained, 4, 24, Writing(24), 0, tmp_path)
    greedy = write_documents(trained, 4, 24, Writing(24, top_k=1), 0, tmp_path)
    nucleus = write_documents(trained, 4, 24, Writing(24, top_p=0.01), 0, tmp_path)
    penal = write_documents(trained, 4, 24, Writing(24, top_k=1, repetition_penalty=5.0), 0, tmp_path)
    assert torch.equal(greedy, nucleus)
    assert not torch.equal(plain, greedy)
    assert not torch.equal(greedy, penal)
    assert unit_losses(trained, greedy).mean() < unit_losses(trained, plain).mean()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"document": 1}, "document must be at least 2 tokens, but is 1"),
        ({"temperatures": (0.0,)}, "temperatures must be above 0"),
        ({"temperatures": ()}, "temperatures must be above 0"),
        ({"prefix_tokens": 16}, "prefix_tokens must be above 0 and below document, but is 16"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
    ],
)
def test_writing_out_of_range_is_refused(changes, message):
    with pytest.raises(SettingError, match=message):
        Writing(**{"document": 16, **changes})


def test_sources_are_read_with_their_weights():
    assert Calibration.parse_source("c4=0.5") == ("c4", 0.5)
    assert Calibration.parse_source("a=b.txt=2") == ("a=b.txt", 2.0)
    assert Calibration.parse_source("self") == ("self", 1.0)
    with pytest.raises(SettingError, match="must be SOURCE or SOURCE=WEIGHT, but is 'c4=much'"):
        Calibration.parse_source("c4=much")
    with pytest.raises(SettingError, match=r"weight must be above 0, but c4 has 0\.0"):
        Calibration((("c4", 0.0),))
    with pytest.raises(SettingError, match="but c4 has inf"):
        Calibration((("c4", float("inf")),))
    with pytest.raises(SettingError, match="counts a source once, but has c4, c4"):
        Calibration((("c4", 1.0), ("c4", 1.0)))


def test_sequences_longer_than_the_models_positions_are_refused(pico, tmp_path):
    with pytest.raises(SettingError, match="at most 128 tokens for this model, but is 256"):
        gather_set(pico, OWN, 2, 256, 0, tmp_path)


def test_a_set_is_saved_with_its_record_and_loaded(pico, tmp_path):
    made = gather_set(pico, OWN, 4, 32, 0, tmp_path, judged=True)
    file = tmp_path / "set.safetensors"
    made.save(file)
    again = CalibrationSet.load(file)
    assert torch.equal(again.tokens, made.tokens)
    assert torch.equal(again.losses, made.losses)
    assert again.record == json.loads(json.dumps(made.record))
    assert [entry.name for entry in tmp_path.iterdir() if entry.suffix == ".partial"] == []
    changed = CalibrationSet(made.tokens.roll(1), made.record)
    changed.save(file)
    with pytest.raises(TextError, match=r"must be as it was made, but .* was changed"):
        CalibrationSet.load(file)


def test_a_file_that_is_no_set_is_refused(tmp_path):
    from safetensors.torch import save_file

    for name, write in (("none", None), ("text", b"hello"), ("other", "tensors")):
        file = tmp_path / f"{name}.safetensors"
        if write == "tensors":
            save_file({"tokens": torch.zeros(2)}, file)
        elif write:
            file.write_bytes(write)
        with pytest.raises(TextError, match="must be a file that `secateur calibrate` wrote"):
            CalibrationSet.load(file)


def test_documents_go_on_from_those_that_were_written(pico, tmp_path):
    longer = write_documents(pico, 6, 16, CALIBRATION, 0, tmp_path)
    first = write_documents(pico, 3, 16, CALIBRATION, 0, tmp_path / "other")
    more = write_documents(pico, 3, 16, CALIBRATION, 0, tmp_path / "other", first=3)
    assert len(rows(torch.cat([first, more]))) == 6
    # The same prefixes in the same order, wherever the writing was cut.
    assert torch.equal(torch.cat([first, more])[:, 0], longer[:, 0])
