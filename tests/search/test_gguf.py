"""A GGUF file is the model in memory to llama.cpp, whatever was removed, or it is refused."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, TokenType, quants
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from evaluator import open_model, standalone
from search.export import gguf, gguf_model, llamacpp
from search.export.best import export_best
from search.export.llamacpp import LlamaCpp
from search.export.packing import Block, pack
from search.export.storage import STORAGE_TYPES, stored
from search.export.vocabulary import _BY_PATTERN, vocabulary_of
from space import Architecture, Criterion, ExportError, SettingError
from tests.evaluator.pieces import make_surgeon
from tests.pico import byte_level_tokenizer, save_pico_of
from tests.search.command import call, refusal

pytestmark = pytest.mark.usefixtures("checked_here")
needs_llama_cpp = pytest.mark.skipif(not llamacpp.is_installed(), reason="needs xllamacpp (secateur[llamacpp])")
KINDS = {
    "llama": {},
    "llama multi-head": {},
    "llama multi-query, wide heads": {},
    "llama with biases, tied": {},
    "mistral": {"sliding_window": 64},
    "qwen2": {"sliding_window": 64},
    "qwen3": {"tie_word_embeddings": True},
}
EVEN, UNEVEN = {"qwen2": "qwen2", "qwen3": "qwen3"}, {"qwen3": "openelm"}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("pico")
    return save_pico_of(request.param, place, tokenizer=byte_level_tokenizer(), **KINDS[request.param])


@pytest.fixture
def dense(folder):
    return open_model(str(folder), dtype="float32")


def written(dense, architecture, target, types=("f32",)):
    """Export an architecture and return what the export says of itself."""
    make_surgeon(dense).install(architecture)
    gguf.write_gguf(
        standalone(dense, architecture), dense, target, {"model": "pico", "architecture": architecture.to_dict()}, types
    )
    return json.loads((target / "secateur.json").read_text())


def refused(capsys, *arguments):
    """Call a command that has to be refused and return its sentence."""
    assert call(*arguments) == 2
    return refusal(capsys.readouterr().err)


def changed(layout, **layers):
    """The dense architecture with layers changed: `l0={"kv_groups": 0}`."""
    found = Architecture.dense(layout)
    for name, change in layers.items():
        found = found.replace(int(name[1:]), **change)
    return found


SHAPES = {
    "first attention removed": {"l0": {"kv_groups": 0}},
    "last MLP removed": {"l3": {"mlp_width": 0}},
    "attention and MLP of neighbours removed": {"l1": {"mlp_width": 0}, "l2": {"kv_groups": 0}},
    "two MLPs in a row": {"l1": {"kv_groups": 0}, "l2": {"kv_groups": 0}},
    "two attentions in a row": {"l1": {"mlp_width": 0}, "l2": {"mlp_width": 0}},
    "no attention": {f"l{layer}": {"kv_groups": 0} for layer in range(4)},
    "no MLP": {f"l{layer}": {"mlp_width": 0} for layer in range(4)},
    "one group, odd ends": {"l0": {"kv_groups": 1, "mlp_width": 7}, "l3": {"kv_groups": 1, "mlp_width": 1}},
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model whose rows fit into the blocks of every format."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 32, "initializer_range": 0.05}
    tokenizer = byte_level_tokenizer()
    folder = save_pico_of("llama", tmp_path_factory.mktemp("wide"), tokenizer=tokenizer, **sizes)
    return open_model(str(folder), dtype="float32")


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Export a pico with a tokenizer and return what llama.cpp's does with texts, beside it."""

    def compare(tokenizer, lines):
        place = tmp_path_factory.mktemp("tokenizer")
        dense = open_model(str(save_pico_of("llama", place / "pico", tokenizer=tokenizer)), dtype="float32")
        written(dense, Architecture.dense(dense.layout), place / "out")
        opened = LlamaCpp(next((place / "out").glob("*.gguf")), 64, 1)
        return [(opened.tokenised(line), dense.tokenizer(line)["input_ids"]) for line in lines]

    return compare


@needs_llama_cpp
class TestFamilies:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_any_mix_is_the_model_in_memory(self, dense, shape, tmp_path):
        told = written(dense, changed(dense.layout, **SHAPES[shape]), tmp_path / "out")
        alike = shape == "attention and MLP of neighbours removed"  # which then are one block
        names = (EVEN, "llama") if alike else (UNEVEN, "deci")
        assert told["llama_cpp"] == names[0].get(dense.layout.family, names[1])
        [check] = told["checks"].values()
        assert check["max_logit_difference"] < 1e-4
        assert check["same_best"] == 1

    def test_layers_that_are_alike_have_the_familys_own_name(self, dense, tmp_path):
        name = EVEN.get(dense.layout.family, "llama")
        blocks = {"l1": {"kv_groups": 0, "mlp_width": 0}}
        other = open_model(dense.name, dtype="float32")
        assert written(other, changed(dense.layout, **blocks), tmp_path / "depth")["llama_cpp"] == name
        narrow = {f"l{layer}": {"kv_groups": 1, "mlp_width": 16} for layer in range(4)}
        name = "deci" if name == "qwen2" else name  # has no Qwen2 of fewer heads
        assert written(dense, changed(dense.layout, **narrow), tmp_path / "width")["llama_cpp"] == name

    def test_any_architecture(self, folder, tmp_path):
        rng = np.random.default_rng(0)
        for number in range(5):
            dense = open_model(str(folder), dtype="float32")
            layout = dense.layout
            layers = {
                f"l{layer}": {
                    "kv_groups": int(rng.integers(layout.kv_groups + 1)),
                    "mlp_width": int(rng.choice([0, 1, 8, 33, layout.mlp_width])),
                }
                for layer in range(layout.layers)
            }
            told = written(dense, changed(layout, **layers), tmp_path / str(number))
            assert all(check["max_logit_difference"] < 1e-4 for check in told["checks"].values())


@needs_llama_cpp
def test_rotary_frequencies_that_are_changed_as_llama_3_does(tmp_path):
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    options = {"rope_parameters": scaling, "head_dim": 16, "tokenizer": byte_level_tokenizer()}
    dense = open_model(str(save_pico_of("llama", tmp_path / "llama", **options)), dtype="float32")
    narrow = changed(dense.layout, l1={"mlp_width": 16})
    assert next(iter(written(dense, narrow, tmp_path / "out")["checks"].values()))["max_logit_difference"] < 1e-4
    options["tie_word_embeddings"] = True
    dense = open_model(str(save_pico_of("qwen3", tmp_path / "qwen3", **options)), dtype="float32")
    with pytest.raises(ExportError, match=r"turns positions in the way llama3, which a qwen3 there does not; export"):
        written(dense, narrow, tmp_path / "other")


@needs_llama_cpp
def test_biases_that_pruning_adds(pico_folder, tmp_path):
    folder = save_pico_of("llama", tmp_path / "pico", tokenizer=byte_level_tokenizer())
    dense = open_model(str(folder), dtype="float32")
    surgeon = make_surgeon(dense, Criterion(update="bias"))
    narrow = changed(surgeon.layout, **{f"l{layer}": {"kv_groups": 2, "mlp_width": 16} for layer in range(4)})
    surgeon.install(narrow)
    object.__setattr__(dense, "layout", surgeon.layout)
    gguf.write_gguf(standalone(dense, narrow), dense, tmp_path / "out", {}, ("f32",))
    told = json.loads((tmp_path / "out" / "secateur.json").read_text())
    assert next(iter(told["checks"].values()))["max_logit_difference"] < 1e-4


@needs_llama_cpp
def test_even_layers_with_biases_that_the_familys_own_name_lacks(tmp_path):
    """Pruning gives all MLPs alike a bias, which llama.cpp's Qwen2 has no place for and its uneven kin has."""
    for kind, refused_with in (("qwen2", None), ("qwen3", "has biases .*down.bias.* that a qwen3 there has not")):
        folder = save_pico_of(kind, tmp_path / kind, tokenizer=byte_level_tokenizer(), tie_word_embeddings=True)
        dense = open_model(str(folder), dtype="float32")
        surgeon = make_surgeon(dense, Criterion(update="bias"))
        narrow = changed(surgeon.layout, **{f"l{layer}": {"mlp_width": 16} for layer in range(4)})
        surgeon.install(narrow)
        object.__setattr__(dense, "layout", surgeon.layout)
        model = standalone(dense, narrow)
        if refused_with is None:
            gguf.write_gguf(model, dense, tmp_path / "out", {}, ("f32",))
            assert json.loads((tmp_path / "out" / "secateur.json").read_text())["llama_cpp"] == "deci"
        else:
            with pytest.raises(ExportError, match=refused_with):
                gguf.write_gguf(model, dense, tmp_path / "other", {}, ("f32",))


@pytest.mark.parametrize(("kind", "length"), [("llama", 128), ("mistral", 64), ("qwen2", 64)])
def test_a_context_is_no_longer_than_a_sliding_window(kind, length, tmp_path, monkeypatch):
    monkeypatch.setattr(llamacpp, "is_installed", lambda: False)
    options = {} if kind == "llama" else {"sliding_window": 64}
    folder = save_pico_of(kind, tmp_path / "pico", tokenizer=byte_level_tokenizer(), **options)
    dense = open_model(str(folder), dtype="float32")
    written(dense, Architecture.dense(dense.layout), tmp_path / "out")
    reader = GGUFReader(next((tmp_path / "out").glob("*.gguf")))
    name = reader.get_field("general.architecture").contents()
    assert reader.get_field(f"{name}.context_length").contents() == length


@needs_llama_cpp
class TestStorage:
    def test_every_type_loads_and_is_as_near_as_it_is_wide(self, wide, tmp_path):
        architecture = changed(wide.layout, l1={"mlp_width": 256})
        told = written(wide, architecture, tmp_path / "out", tuple(STORAGE_TYPES))
        kl = {name.rpartition("-")[2].removesuffix(".gguf"): check["kl"] for name, check in told["checks"].items()}
        size = {name.rpartition("-")[2].removesuffix(".gguf"): file["bytes"] for name, file in told["files"].items()}
        assert kl["F32"] < kl["Q8_0"] < kl["Q4_0"]
        assert kl["Q6_K"] < kl["Q4_K_M"] <= kl["Q4_0"] * 1.5
        assert size["Q4_0"] < size["Q4_K_M"] < size["Q5_K_M"] < size["Q6_K"] < size["Q8_0"] < size["F16"]
        assert size["F16"] == size["BF16"] < size["F32"]

        def kinds(name):
            tensors = GGUFReader(tmp_path / f"out/pico-pruned-{name}.gguf").tensors
            return {tensor.name.removesuffix(".weight"): tensor.tensor_type.name for tensor in tensors}

        mixed = kinds("Q4_K_M")
        assert set(mixed.values()) == {"F32", "Q4_K", "Q6_K"}
        assert mixed["token_embd"] == mixed["output"] == "Q6_K"
        assert [mixed[f"blk.{block}.attn_v"] for block in range(4)] == ["Q4_K", "Q4_K", "Q6_K", "Q6_K"]
        assert [mixed[f"blk.{block}.ffn_up"] for block in range(4)] == ["Q4_K"] * 4
        assert {kinds("Q4_0")["token_embd"], kinds("Q4_0")["blk.0.attn_v"]} == {"Q8_0", "Q4_0"}

    @pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K"])
    def test_llama_cpps_own_formats_give_the_weights_back(self, kind):
        values = torch.randn(6, 512, generator=torch.Generator().manual_seed(0))
        content, found = stored(values, GGMLQuantizationType[kind])
        again = quants.dequantize(content, found)
        assert found.name == kind
        assert np.abs(again - values.numpy()).mean() < {"Q4_K": 0.08, "Q5_K": 0.04, "Q6_K": 0.02}[kind]

    def test_rows_that_fit_no_block_get_wider_numbers(self):
        kinds = {columns: stored(torch.ones(2, columns), GGMLQuantizationType.Q4_K)[1].name for columns in (512, 96, 7)}
        assert kinds == {512: "Q4_K", 96: "Q5_0", 7: "F16"}
        assert stored(torch.ones(64), GGMLQuantizationType.Q8_0)[1].name == "F32"


def texts(data):
    """Real lines with punctuation, digits and other scripts."""
    lines = (data / "text" / "wikipedia.txt").read_text(encoding="utf-8").splitlines()[:60]
    return [*lines, *gguf._LINES, "", " ", "\n\n\t x", "don't 12345.678  ...  ½ Ⅳ ٣"]


@needs_llama_cpp
class TestTokenizers:
    @pytest.mark.parametrize("splits", ["gpt-2", "smollm", *_BY_PATTERN.values()])
    def test_byte_level_ones_read_real_text_the_same(self, splits, said, data):
        patterns = {name: pattern for pattern, name in _BY_PATTERN.items()}
        bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splits in ("gpt-2", "smollm"))
        first = (
            {
                "gpt-2": [],
                "smollm": [pre_tokenizers.Digits(individual_digits=True)],
            }.get(splits)
            if splits in ("gpt-2", "smollm")
            else [pre_tokenizers.Split(Regex(patterns[splits]), behavior="isolated")]
        )
        cut = pre_tokenizers.Sequence([*first, bytes_of]) if first else bytes_of
        lines = texts(data)
        tokenizer = byte_level_tokenizer(cut, "\n".join(lines))
        assert vocabulary_of(tokenizer, len(tokenizer)).splits == splits
        assert [
            line for line, (theirs, ours) in zip(lines, said(tokenizer, lines), strict=True) if theirs != ours
        ] == []

    def test_sentencepiece_with_scores_from_its_merges(self, stories, data, tmp_path):
        dense = open_model(str(stories), dtype="float32")
        written(dense, Architecture.dense(dense.layout), tmp_path / "out")
        opened = LlamaCpp(next((tmp_path / "out").glob("*.gguf")), 64, 1)
        for line in texts(data):
            assert opened.tokenised(line) == dense.tokenizer(line)["input_ids"], line

    def test_what_kind_each_token_is(self, stories):
        tokenizer = open_model(str(stories), dtype="float32").tokenizer
        found = vocabulary_of(tokenizer, 515)
        kinds = dict(zip(found.tokens, found.types, strict=True))
        assert (kinds["<unk>"], kinds["<s>"], kinds["</s>"]) == (
            TokenType.UNKNOWN,
            TokenType.CONTROL,
            TokenType.CONTROL,
        )
        assert sum(kind == TokenType.BYTE for kind in found.types) == 256
        assert [kinds[f"[PAD{number}]"] for number in (512, 513, 514)] == [TokenType.UNUSED] * 3
        assert (found.special["bos"], found.special["eos"], found.special["unknown"]) == (1, 2, 0)
        with pytest.raises(ExportError, match="has a token 511, beyond the model's 500"):
            vocabulary_of(tokenizer, 500)

    def test_one_that_cuts_words_in_a_way_of_its_own_is_refused(self):
        cut = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
        with pytest.raises(ExportError, match=r"cuts text into words by Whitespace and ByteLevel in a way of its own"):
            vocabulary_of(byte_level_tokenizer(cut), 400)

    def test_word_pieces_are_refused(self):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordPiece({"a": 0}, unk_token="a")))
        with pytest.raises(ExportError, match=r"has a model of type WordPiece; export to huggingface"):
            vocabulary_of(tokenizer, 1)


class TestRefusals:
    @pytest.fixture
    def small(self, tmp_path):
        return save_pico_of("llama", tmp_path / "pico", tokenizer=byte_level_tokenizer())

    @pytest.mark.parametrize("kind", ["gemma2", "gpt2", "phi3"])
    def test_a_family_that_llama_cpp_has_no_uneven_kin_of(self, kind, tmp_path, capsys):
        folder = save_pico_of(kind, tmp_path / "pico")
        sentence = refused(capsys, "export", folder, "--format", "gguf")
        assert f"no other with layers of different widths, but this one is a {kind}; export to huggingface." in sentence
        assert [path.name for path in tmp_path.iterdir()] == ["pico"]

    def test_an_uneven_qwen3_with_an_output_of_its_own(self, tmp_path):
        folder = save_pico_of("qwen3", tmp_path / "pico", tokenizer=byte_level_tokenizer(), tie_word_embeddings=False)
        dense = open_model(str(folder), dtype="float32")
        with pytest.raises(ExportError, match=r"has an output matrix of its own, and an uneven Qwen3 there must share"):
            written(dense, changed(dense.layout, l1={"mlp_width": 16}), tmp_path / "out")

    def test_an_activation_that_it_has_not(self, tmp_path):
        folder = save_pico_of("llama", tmp_path / "pico", tokenizer=byte_level_tokenizer(), hidden_act="gelu")
        dense = open_model(str(folder), dtype="float32")
        with pytest.raises(ExportError, match=r"has the activation gelu, which its MLPs lack"):
            written(dense, Architecture.dense(dense.layout), tmp_path / "out")

    def test_an_unknown_type(self, small, capsys):
        sentence = refused(capsys, "export", small, "--format", "gguf", "--type", "q3")
        assert "type must be one of f32, f16, bf16, q8_0," in sentence
        assert "but is 'q3'; choose one." in sentence
        assert "--type is of GGUF files, but the format is padded" in refused(
            capsys, "export", small, "--format", "padded", "--type", "f16"
        )

    def test_without_llama_cpp_its_own_formats_are_refused_and_the_rest_says_so(self, small, monkeypatch, capsys):
        monkeypatch.setattr(llamacpp, "is_installed", lambda: False)
        sentence = refused(capsys, "export", small, "--format", "gguf", "--type", "q4_k_m")
        assert "types Q4_K_M are written by llama.cpp, but its package xllamacpp is not installed" in sentence
        assert call("export", small, "--format", "gguf", "--json") == 0
        printed = capsys.readouterr()
        assert "not opened by llama.cpp, which is not installed here" in printed.err
        assert json.loads(printed.out)["checked"] is False
        assert "not opened here: llama.cpp was not installed" in (small.parent / "pico-gguf" / "README.md").read_text()

    @needs_llama_cpp
    def test_a_file_that_is_another_model(self, small, tmp_path, monkeypatch):
        dense = open_model(str(small), dtype="float32")
        monkeypatch.setattr(gguf_model, "neighbours", lambda tensor, _: tensor)
        with pytest.raises(
            ExportError, match=r"must be the model in memory to llama.cpp, but .* is not: its next-token"
        ):
            written(dense, changed(dense.layout, l1={"mlp_width": 16}), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @needs_llama_cpp
    def test_a_coarse_file_that_is_another_model(self, small, tmp_path, monkeypatch):
        """What it costs to store a model coarsely is no proof, so a finer file is made for it, and taken away."""
        dense = open_model(str(small), dtype="float32")
        told = written(dense, Architecture.dense(dense.layout), tmp_path / "right", ("q4_0", "q8_0"))
        assert {name for name in told["files"] if name.endswith("gguf")} == set(told["checks"])
        assert len(told["checks"]) == 2
        monkeypatch.setattr(gguf_model, "neighbours", lambda tensor, _: tensor)
        with pytest.raises(ExportError, match=r"but proof.gguf is not: its next-token distribution is"):
            written(dense, Architecture.dense(dense.layout), tmp_path / "out", ("q4_0",))
        assert not (tmp_path / "out").exists()

    @needs_llama_cpp
    def test_a_file_that_is_another_model_by_a_thousandth(self, small, tmp_path, monkeypatch):
        dense = open_model(str(small), dtype="float32")
        plain = gguf_model.Source.tensors

        def nearly(self):
            return ((name, tensor * (1.001 if "blk.0.ffn_down" in name else 1)) for name, tensor in plain(self))

        monkeypatch.setattr(gguf_model.Source, "tensors", nearly)
        with pytest.raises(ExportError, match=r"its log-probabilities differ by up to 0\.0\d+; report this"):
            written(dense, Architecture.dense(dense.layout), tmp_path / "out")

    @needs_llama_cpp
    def test_what_float32_itself_is_off_is_no_other_model(self, small, tmp_path, monkeypatch):
        monkeypatch.setattr(gguf, "EXACT", 0.0)
        dense = open_model(str(small), dtype="float32")
        [check] = written(dense, Architecture.dense(dense.layout), tmp_path / "out")["checks"].values()
        assert 0 < check["float32_rounding"] < 1e-4

    @needs_llama_cpp
    def test_a_tokenizer_that_reads_otherwise(self, tmp_path, monkeypatch):
        folder = save_pico_of("llama", tmp_path / "pico", tokenizer=byte_level_tokenizer(text=" ".join(gguf._LINES)))
        dense = open_model(str(folder), dtype="float32")
        monkeypatch.setattr("search.export.vocabulary._splits", lambda _: "qwen2")
        with pytest.raises(ExportError, match=r"its tokenizer reads .* otherwise; report this"):
            written(dense, Architecture.dense(dense.layout), tmp_path / "out")

    def test_a_file_with_fewer_weights(self, small, tmp_path, monkeypatch):
        dense = open_model(str(small), dtype="float32")
        monkeypatch.setattr(gguf, "GGUFReader", lambda file: SimpleNamespace(tensors=GGUFReader(file).tensors[1:]))
        with pytest.raises(
            ExportError, match=r"must hold all [\d,]+ weights of the model, but .* holds [\d,]+; report"
        ):
            written(dense, Architecture.dense(dense.layout), tmp_path / "out")

    @needs_llama_cpp
    def test_a_file_that_does_not_load(self, small, tmp_path, monkeypatch):
        dense = open_model(str(small), dtype="float32")
        plain = gguf_model.Source.tensors

        def fewer(self):
            return ((name, tensor) for name, tensor in plain(self) if "ffn_down" not in name)

        monkeypatch.setattr(gguf_model.Source, "tensors", fewer)
        with pytest.raises(ExportError, match=r"must load in llama.cpp"):
            written(dense, Architecture.dense(dense.layout), tmp_path / "out")


def test_sub_blocks_move_to_where_there_is_room():
    whole, attention, mlp, nothing = (True, True), (True, False), (False, True), (False, False)
    assert pack([whole, nothing, whole]) == [Block(0, 0), Block(2, 2)]
    assert pack([attention, mlp]) == [Block(0, 1)]
    assert pack([attention, nothing, mlp, mlp]) == [Block(0, 2), Block(None, 3)]
    assert pack([mlp, attention, attention, whole]) == [Block(None, 0), Block(1, None), Block(2, None), Block(3, 3)]
    assert pack([nothing]) == []


@needs_llama_cpp
def test_a_run_is_exported_by_the_command(finished_run, capsys):
    assert call("export", finished_run, "--format", "gguf", "--type", "f32", "--type", "Q8_0", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["export"] == str(finished_run / "export-gguf")
    assert told["checked"] is True
    names = {path.name for path in (finished_run / "export-gguf").iterdir()}
    files = {"stories260K-pruned-F32.gguf", "stories260K-pruned-Q8_0.gguf"}
    assert names == {*files, "README.md", "secateur.json", "layers.svg"}
    card = (finished_run / "export-gguf" / "README.md").read_text()
    assert "llama-cli -m stories260K-pruned-F32.gguf" in card
    again = finished_run.parent / "again"
    assert call("export", finished_run / "export", "--format", "gguf", "--type", "f32", "--out", again) == 0
    one, other = (
        {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(folder / "stories260K-pruned-F32.gguf").tensors}
        for folder in (finished_run / "export-gguf", again)
    )
    assert one == other
    with pytest.raises(SettingError, match="must be one of huggingface, padded, gguf"):
        export_best(finished_run, "onnx")
