"""Four splits that share no sequence, text that the model writes itself, and refusals that say what to do."""

import json
import random

import pytest
import torch

from evaluator import SPLITS, SplitSizes, load_texts, open_model, prepare_texts, text_to_write
from evaluator.decoding import Draw
from evaluator.generation import (
    CALIBRATION,
    MEASURING,
    Writing,
    generate_tokens,
    tokens_to_write,
    write_documents,
)
from evaluator.openings import OPENINGS
from evaluator.sources import tokenise
from space import SettingError, TextError
from tests.evaluator.pieces import logits_of
from tests.pico import SENTENCE, VOCABULARY, save_pico_of

SIZES = SplitSizes(calibrate=3, search=2, validate=2, report=4, sequence_length=16)


def sentences(count: int, first: int = 0) -> str:
    """Return text of which no two parts are alike."""
    words = SENTENCE.split()
    drawn = [random.Random(number).sample(words, len(words)) for number in range(first, first + count)]
    return " ".join(" ".join(sentence) for sentence in drawn)


@pytest.fixture(scope="module")
def trained(stories):
    return open_model(str(stories), dtype="float32")


@pytest.fixture
def text_file(tmp_path):
    file = tmp_path / "garden.txt"
    file.write_text(sentences(60))
    return file


def rows(tokens):
    return {tuple(row) for row in tokens.tolist()}


def test_splits_are_disjoint_regions_of_a_file(pico, text_file, tmp_path):
    texts = prepare_texts(pico, str(text_file), SIZES, 0, tmp_path / "cache")
    assert {split: tuple(tokens.shape) for split, tokens in texts.tokens.items()} == {
        "calibrate": (3, 16),
        "search": (2, 16),
        "validate": (2, 16),
        "report": (4, 16),
    }
    stream = tokenise(pico, str(text_file))
    sequences = stream[: len(stream) // 16 * 16].view(-1, 16).tolist()
    assert len(rows(torch.tensor(sequences))) == len(sequences)  # else a place could not be told from its content
    places = {split: [sequences.index(row) for row in texts.tokens[split].tolist()] for split in SPLITS}
    places["calibrate"].sort()  # drawn in a random order
    in_order = [place for split in SPLITS for place in places[split]]
    assert in_order == sorted(set(in_order))
    assert set(texts.sources.values()) == {"garden.txt"}


def test_the_beginning_of_a_split_is_a_text_of_its_own(pico, text_file, tmp_path):
    texts = prepare_texts(pico, str(text_file), SIZES, 0, tmp_path / "cache")
    assert texts.of("report:3").tolist() == texts.tokens["report"][:3].tolist()
    assert texts.source("report:3") == texts.sources["report"]
    assert texts.fingerprint("report:4") == texts.fingerprint("report") != texts.fingerprint("report:3")
    for split in ("report:5", "report:0"):
        with pytest.raises(SettingError, match="1 to 4 sequences"):
            texts.of(split)
    for split in ("page", "report:x"):
        with pytest.raises(SettingError, match="one of calibrate, search"):
            texts.of(split)


def test_the_seed_chooses_the_sequences(pico, text_file, tmp_path):
    first, same, other = (prepare_texts(pico, str(text_file), SIZES, seed, tmp_path) for seed in (0, 0, 1))
    assert first.fingerprint("search") == same.fingerprint("search")
    assert first.fingerprint("search") != other.fingerprint("search")


def test_a_text_of_exactly_the_needed_length_is_enough_and_one_less_is_not(pico, tmp_path):
    tokens = tokenise(pico, write(tmp_path / "long.txt", sentences(60)))
    words = pico.tokenizer.decode(tokens[: 11 * 16 + 8])
    short = write(tmp_path / "short.txt", words)
    available = len(tokenise(pico, short)) // 16
    sizes = SplitSizes(3, 2, 2, available - 7, 16)
    assert len(prepare_texts(pico, short, sizes, 0, tmp_path).tokens["report"]) == available - 7
    with pytest.raises(TextError, match=f"must hold {available + 1} sequences of 16 .* holds {available}; give a long"):
        prepare_texts(pico, short, SplitSizes(3, 2, 2, available - 6, 16), 0, tmp_path)


def write(file, text):
    file.write_text(text)
    return str(file)


def test_a_report_from_another_file_takes_its_leading_sequences(pico, text_file, tmp_path):
    other = write(tmp_path / "other.txt", sentences(30, first=500))
    texts = prepare_texts(pico, str(text_file), SIZES, 0, tmp_path, other)
    assert texts.tokens["report"].flatten().tolist() == tokenise(pico, other)[: 4 * 16].tolist()
    assert texts.sources == {**dict.fromkeys(("calibrate", "search", "validate"), "garden.txt"), "report": "other.txt"}


def test_the_same_file_twice_is_still_split(pico, text_file, tmp_path):
    spelt_otherwise = str(text_file.parent / "." / "x" / ".." / text_file.name)
    (text_file.parent / "x").mkdir()
    texts = prepare_texts(pico, str(text_file), SIZES, 0, tmp_path, spelt_otherwise)
    assert not rows(texts.tokens["report"]) & rows(texts.tokens["search"])
    plain = prepare_texts(pico, str(text_file), SIZES, 0, tmp_path)
    assert texts.fingerprint("report") == plain.fingerprint("report")


def test_splits_are_saved_and_loaded(pico, text_file, tmp_path):
    texts = prepare_texts(pico, str(text_file), SIZES, 0, tmp_path)
    texts.save(tmp_path / "texts.safetensors")
    again = load_texts(tmp_path / "texts.safetensors")
    assert again.sources == texts.sources
    assert [again.fingerprint(split) for split in SPLITS] == [texts.fingerprint(split) for split in SPLITS]


def test_self_generated_text_is_seeded(pico, tmp_path):
    first, same, other = (
        generate_tokens(pico, 4, 20, CALIBRATION, seed, tmp_path / name)
        for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    )
    assert first.shape == (4, 20)
    assert first.dtype == torch.int64
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert len(rows(first)) == 4
    assert first.max() < VOCABULARY


def test_self_generated_text_is_documents_with_an_opening_and_without_bos(trained, tmp_path):
    told = []
    tokens = generate_tokens(trained, 30, 296, CALIBRATION, 0, tmp_path, told.append)
    # A sequence of 296 tokens is two documents and the beginning of a third, each of its own.
    documents = [row[first : first + 128] for row in tokens for first in (0, 128, 256)]
    assert sum(told) == tokens_to_write(30, 296, CALIBRATION) == 90 * 128
    ids = [trained.tokenizer(opening, add_special_tokens=False)["input_ids"] for opening in OPENINGS]
    begun = [[i for i, own in enumerate(ids) if document[: len(own)].tolist() == own] for document in documents]
    assert all(begun)
    chosen = {max(found, key=lambda i: len(ids[i])) for found in begun}
    assert len(chosen) > 80  # of 111, none comes again before all have come
    assert len({tuple(document[-30:].tolist()) for document in documents}) == 90
    assert (tokens[:, 0] != trained.tokenizer.bos_token_id).all()


def test_the_model_writes_what_it_would_write_alone(trained, tmp_path):
    # Padding on the left changes nothing: greedy continuations equal those of one prompt at a time.
    generate = trained.model.generate
    written = generate_tokens(trained, 3, 64, Writing(64, top_k=1), 1, tmp_path)
    for row in written:
        ids = max((own for own in _openings(trained) if row[: len(own)].tolist() == own), key=len)
        prompt = torch.tensor([[trained.tokenizer.bos_token_id, *ids]])
        alone = generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64 - len(ids), do_sample=False,
            min_new_tokens=64 - len(ids), eos_token_id=None, pad_token_id=2,
        )  # fmt: skip
        assert alone[0, 1:].tolist() == row.tolist()


def _openings(dense):
    return [dense.tokenizer(opening, add_special_tokens=False)["input_ids"][:32] for opening in OPENINGS]


def test_a_model_without_bos_begins_with_the_opening(pico, tmp_path):
    with_bos = generate_tokens(pico, 2, 16, MEASURING, 0, tmp_path / "a")
    pico.tokenizer.bos_token = None
    pico.model.config.bos_token_id = None
    without = generate_tokens(pico, 2, 16, MEASURING, 0, tmp_path / "b")
    assert torch.equal(without[:, :2], with_bos[:, :2])
    assert not torch.equal(without, with_bos)


def test_temperatures_take_turns_and_a_lower_one_writes_what_the_model_finds_likelier(trained, tmp_path):
    tokens = generate_tokens(trained, 24, 64, Writing(64, (1.5, 1.0, 0.5)), 0, tmp_path)
    logits = logits_of(trained.model, tokens)[:, :-1].log_softmax(-1)
    likelihood = logits.gather(-1, tokens[:, 1:, None]).mean(dim=(1, 2))
    hot, warm, cold = (likelihood[turn::3].mean().item() for turn in range(3))
    assert hot + 0.3 < warm < cold - 0.3


def test_tokens_are_drawn_by_their_probability():
    scores = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]]).expand(20_000, 4)
    drawn = Draw(0)(None, scores)
    assert (drawn.isfinite().sum(dim=1) == 1).all()
    shares = drawn.isfinite().float().mean(dim=0)
    torch.testing.assert_close(shares, scores[0].softmax(dim=0), atol=0.01, rtol=0)
    assert shares[2] == 0
    certain = torch.tensor([[-torch.inf, -torch.inf, 5.0]]).expand(100, 3)
    assert (Draw(1)(None, certain)[:, 2] == 0).all()


def test_generation_leaves_the_callers_random_numbers_alone(pico, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    generate_tokens(pico, 2, 16, MEASURING, 0, tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_generation_goes_on_batch_by_batch(pico, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluator.generation.BATCH_TOKENS", 32 * 16)
    count = 2 * 32 + 5
    whole = generate_tokens(pico, count, 16, CALIBRATION, 3, tmp_path)
    files = sorted(tmp_path.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    assert len(files) == 3
    times = {file: file.stat().st_mtime_ns for file in files}
    files[1].unlink()
    written = []
    generate = pico.model.generate
    monkeypatch.setattr(pico.model, "generate", lambda prompt, **more: written.append(1) or generate(prompt, **more))
    again = generate_tokens(pico, count, 16, CALIBRATION, 3, tmp_path)
    assert len(written) == 1
    assert torch.equal(again, whole)
    assert all(file.stat().st_mtime_ns == times[file] for file in (files[0], files[2]))
    assert [file for file in tmp_path.iterdir() if file.suffix == ".partial"] == []


def test_splits_of_self_generated_text(pico, tmp_path):
    texts = prepare_texts(pico, "self", SIZES, 0, tmp_path)
    seen = [rows(texts.tokens[split]) for split in SPLITS]
    assert sum(map(len, seen)) == 11 == len(set.union(*seen))
    assert set(texts.sources.values()) == {"self-generated"}
    with pytest.raises(SettingError, match="must search on it as well"):
        prepare_texts(pico, write(tmp_path / "a.txt", sentences(60)), SIZES, 0, tmp_path, "self")


def test_calibration_text_is_short_documents_and_all_other_text_long_ones(trained, tmp_path):
    sizes = SplitSizes(2, 3, 2, 2, 256)
    told = []
    texts = prepare_texts(trained, "self", sizes, 0, tmp_path, progress=told.append)
    assert sum(told) == text_to_write("self", sizes) == 9 * 256
    assert text_to_write("self", sizes, "a.txt") == 7 * 256
    assert text_to_write("a.txt", sizes) == 0

    def begins(tokens):
        return [any(tokens[: len(own)].tolist() == own for own in _openings(trained)) for tokens in tokens]

    middle = CALIBRATION.document
    for split in SPLITS:
        assert all(begins(texts.tokens[split]))
        assert all(begins(texts.tokens[split][:, middle:])) is (split == "calibrate")
    # The same opening in both does not make the same text of it.
    documents = {tuple(row[:64].tolist()) for split in SPLITS for row in texts.tokens[split].view(-1, middle)}
    assert len(documents) == 18


def test_a_jsonl_file_joins_its_documents_with_the_end_token(pico, tmp_path):
    lines = [json.dumps({"text": "The old gardener"}), "", json.dumps({"text": "cut the rose", "more": 1})]
    tokens = tokenise(pico, write(tmp_path / "docs.jsonl", "\n".join(lines)))
    parts = [
        pico.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("The old gardener", "cut the rose")
    ]
    assert tokens.tolist() == [*parts[0], pico.tokenizer.eos_token_id, *parts[1]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "must exist, but there is no .*missing.txt'; check the path"),
        ("latin.txt", "Gärtner".encode("latin-1"), "must be UTF-8, but .*latin.txt' is not; convert it"),
        ("empty.txt", b"", "must hold at least one word, but .*empty.txt' holds none"),
        (
            "text.pdf",
            b"%PDF",
            "must be `self`, a .txt, .jsonl or .parquet file, hub:DATASET or .*, but is .*text.pdf'; rename",
        ),
        ("broken.jsonl", b'{"text": "a"}\n{"text": ', "line 2 of .*broken.jsonl' is not; repair or remove it"),
        ("other.jsonl", b'{"content": "a"}\n', "line 1 of .*other.jsonl' is not"),
        ("list.jsonl", b'{"text": "a"}\n\n[1]\n', "line 3 of .*list.jsonl' is not"),
    ],
)
def test_refusals(name, content, message, pico, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=message):
        tokenise(pico, str(tmp_path / name))


def test_sequences_longer_than_the_models_positions_are_refused(pico, text_file, tmp_path):
    with pytest.raises(SettingError, match="at most 128 tokens for this model, but is 200; lower it"):
        prepare_texts(pico, str(text_file), SplitSizes(1, 1, 1, 1, 200), 0, tmp_path)


def test_sizes_are_checked():
    with pytest.raises(SettingError, match="at least 1 sequence, but search has 0"):
        SplitSizes(search=0)
    with pytest.raises(SettingError, match="at least 16 tokens, but is 8"):
        SplitSizes(sequence_length=8)


class TestHub:
    @pytest.fixture(autouse=True)
    def _datasets(self):
        pytest.importorskip("datasets", reason="needs the package `datasets`: pip install 'secateur[hub]'")

    def test_a_local_folder_through_the_hub_library(self, pico, tmp_path):
        folder = tmp_path / "garden"
        folder.mkdir()
        write(folder / "train.jsonl", "\n".join(json.dumps({"text": sentences(1, n)}) for n in range(40)))
        tokens = tokenise(pico, f"hub:{folder}")
        assert tokens.tolist() == tokenise(pico, str(folder / "train.jsonl")).tolist()
        assert tokenise(pico, f"hub:{folder}", at_most=50).tolist() == tokens[:50].tolist()
        texts = prepare_texts(pico, f"hub:{folder}", SIZES, 0, tmp_path / "cache")
        assert texts.sources["search"] == f"hub:{folder}"

    def test_a_missing_data_set_is_refused(self, pico):
        with pytest.raises(TextError, match="must be reachable and have a column \"text\", but 'hub:no-such/data'"):
            tokenise(pico, "hub:no-such/data")

    def test_a_data_set_without_text_is_refused(self, pico, tmp_path):
        folder = tmp_path / "numbers"
        folder.mkdir()
        write(folder / "train.jsonl", '{"number": 3}\n')
        with pytest.raises(TextError, match='a column "text"'):
            tokenise(pico, f"hub:{folder}")


def test_documents_end_where_learned_positions_do(tmp_path):
    dense = open_model(str(save_pico_of("gpt2", tmp_path / "model")), dtype="float32")
    told = []
    with pytest.raises(SettingError, match=r"tokens at most, .* but are to be of 128; write shorter ones"):
        write_documents(dense, 4, 128, Writing(128), 0, tmp_path / "cache")
    written = write_documents(dense, 4, 100, Writing(100), 0, tmp_path / "cache", told.append)
    assert written.shape == (4, 100)
    assert sum(told) == 4 * 100
    # A model that turns its positions goes on beyond the length it is said to have.
    llama = open_model(str(save_pico_of("llama", tmp_path / "llama")), dtype="float32")
    assert write_documents(llama, 4, 128, Writing(128), 0, tmp_path / "cache").shape == (4, 128)
