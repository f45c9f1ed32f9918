"""An export is the model that was measured, wherever it is loaded, and harms nothing that was there before."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from evaluator import open_model, standalone
from search.export import huggingface as exporting
from search.export import place
from search.export.best import FORMATS, export_best, generate_text
from search.export.card import licence_of
from search.export.gguf import write_gguf
from search.export.huggingface import write_folder
from search.export.picture import PICTURE
from search.export.place import MARK
from space import Architecture, ExportError, ModelError, RunFolderError, SettingError, cost_of
from space.cost import fixed_cost
from tests.evaluator.pieces import logits_of, make_surgeon, mixed
from tests.pico import pico_tokens
from tests.search.command import ROOT, call, fingerprints, refusal


def export(dense, architecture, folder, verified=True):
    """Install an architecture and export it; returns the logits of the model in memory."""
    make_surgeon(dense).install(architecture)
    with pytest.MonkeyPatch.context() as patch:
        if not verified:
            patch.setattr(exporting, "verify", lambda *_, **__: None)
        write_folder(standalone(dense, architecture), dense, folder, {"architecture": architecture.to_dict()})
    return logits_of(dense.model)


@pytest.fixture(scope="module")
def exported(pico_folder, tmp_path_factory):
    """An export with the first attention, the last MLP and a whole layer removed, and one KV group left in another."""
    folder = tmp_path_factory.mktemp("export") / "pruned"
    dense = open_model(str(pico_folder), dtype="float32")
    architecture = mixed(dense)
    first, last = architecture.layers[0], architecture.layers[-1]
    assert (first.kv_groups, last.mlp_width, architecture.layers[3].kv_groups) == (0, 0, 1)
    assert (architecture.layers[2].kv_groups, architecture.layers[2].mlp_width) == (0, 0)
    return folder, architecture, export(dense, architecture, folder), dense


def probe(folder, code, **variables):
    """Run code in a fresh process far from our packages, given an export."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | variables
    # An editable install may put our packages in sight; None makes their import fail as if they were not there.
    hidden = "import sys; sys.modules.update(dict.fromkeys(['evaluator', 'search', 'space', 'predictor'])); "
    run = subprocess.run(
        [sys.executable, "-c", hidden + code, str(folder)],
        cwd=folder.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_it_loads_where_our_packages_are_not(exported, tmp_path):
    folder, _, logits, _ = exported
    save_file({"tokens": pico_tokens(2, 24, 9)}, tmp_path / "tokens.safetensors")
    code = f"""
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
try:
    import evaluator
except ImportError:
    pass
else:
    raise SystemExit("evaluator can be imported, so this test proves nothing")
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, dtype="auto").eval()
# Without its code allowed transformers would ask on the terminal, for the tokenizer as well.
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
with torch.inference_mode():
    found = model(load_file("{tmp_path}/tokens.safetensors")["tokens"], use_cache=False).logits
save_file({{"logits": found.contiguous()}}, "{tmp_path}/logits.safetensors")
inputs = tokenizer("The old gardener", return_tensors="pt")
print(tokenizer.decode(model.generate(inputs["input_ids"], max_new_tokens=6, do_sample=False)[0]))
"""
    told = probe(folder, code, HF_MODULES_CACHE=str(tmp_path / "modules"), OMP_NUM_THREADS=str(torch.get_num_threads()))
    assert torch.equal(load_file(tmp_path / "logits.safetensors")["logits"], logits)
    assert told.startswith("The old gardener")


def test_it_loads_here_without_trust(exported):
    folder, _, logits, _ = exported
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    assert torch.equal(logits_of(model), logits)
    assert model.dtype == torch.float32


def test_generating_with_a_cache_equals_generating_without(exported):
    model = AutoModelForCausalLM.from_pretrained(exported[0], dtype="auto").eval()
    prompt = pico_tokens(2, 8, 4)
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached, uncached = (
        model.generate(prompt, attention_mask=torch.ones_like(prompt), use_cache=use_cache, **options)
        for use_cache in (True, False)
    )
    assert torch.equal(cached, uncached)
    # By hand as well: the likeliest next token of the whole text so far, again and again.
    text = prompt
    for _ in range(12):
        text = torch.cat([text, logits_of(model, text)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(cached, text)


@pytest.mark.parametrize(
    "change",
    [
        lambda dense: dense,
        lambda dense: dense.replace(0, kv_groups=0, mlp_width=0),
        lambda dense: dense.replace(5, kv_groups=0, mlp_width=0),
        lambda dense: dense.replace(2, kv_groups=1, mlp_width=1),
        lambda dense: Architecture(tuple(dense.replace(i, kv_groups=0).layers[i] for i in range(6))).replace(
            4, kv_groups=2
        ),
    ],
    ids=["dense", "no first layer", "no last layer", "as narrow as can be", "one attention"],
)
def test_other_shapes_load_and_generate(change, pico, tmp_path):
    architecture = change(Architecture.dense(pico.layout))
    logits = export(pico, architecture, tmp_path / "out", verified=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
    assert torch.equal(logits_of(model), logits)
    prompt = pico_tokens(1, 8, 4)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    made = [model.generate(prompt, use_cache=cached, **options).tolist() for cached in (True, False)]
    assert made[0] == made[1]


def test_its_parameters_are_those_of_the_closed_form(exported):
    folder, architecture, _, dense = exported
    cost = cost_of(dense.layout, architecture)
    weights = load_file(folder / "model.safetensors")
    assert 2 * sum(weight.numel() for weight in weights.values()) == cost.weight_bytes
    inside = sum(weight.numel() for name, weight in weights.items() if ".layers." in name)
    assert 2 * inside == cost.weight_bytes - fixed_cost(dense.layout).weight_bytes == 2 * cost.parameters


def test_no_file_of_it_can_run_code_when_read(exported):
    names = {path.name for path in exported[0].iterdir()}
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"))]
    assert {"model.safetensors", "config.json", "modeling_secateur.py", "README.md", MARK, "tokenizer.json"} <= names
    assert json.loads((exported[0] / MARK).read_text())["architecture"] == exported[1].to_dict()


def test_a_target_that_holds_something_else_is_left_alone(pico, tmp_path):
    target = tmp_path / "mine"
    target.mkdir()
    (target / "thesis.tex").write_text("x")
    with pytest.raises(ExportError, match=r"must go to a new folder or replace an export of ours, .*choose another"):
        export(pico, mixed(pico), target)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.tex"]


def test_an_older_export_is_replaced_whole(pico, tmp_path):
    target = tmp_path / "mine"
    export(pico, mixed(pico), target, verified=False)
    (target / "left-over.txt").write_text("x")
    before = (target / "model.safetensors").stat().st_size
    pico = open_model(pico.name, dtype="float32")
    export(pico, Architecture.dense(pico.layout), target, verified=False)
    assert (target / "model.safetensors").stat().st_size > before
    assert not (target / "left-over.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_export_that_is_not_the_model_in_memory_is_refused(pico, tmp_path, monkeypatch):
    target = tmp_path / "mine"
    export(pico, mixed(pico), target, verified=False)
    before = fingerprints(target)
    save = exporting._save

    def damage(dense, architecture, folder):
        save(dense, architecture, folder)
        weights = load_file(folder / "model.safetensors")
        weights["model.layers.4.mlp.up_proj.weight"][0, 0] += 1
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(exporting, "_save", damage)
    monkeypatch.chdir(ROOT)
    with pytest.raises(ExportError, match=r"must load in a fresh process .* its logits differ by up to"):
        write_folder(standalone(pico, mixed(pico)), pico, target, {})
    assert fingerprints(target) == before  # the export that was there before is still whole


def test_an_export_whose_cache_goes_wrong_is_refused(pico, tmp_path, monkeypatch):
    save = exporting._save

    def forget(model, dense, folder):
        """Leave out of the configuration that the first layer has no attention, which a cache has to know."""
        save(model, dense, folder)
        config = json.loads((folder / "config.json").read_text())
        del config["kv_sharing_modes"]
        (folder / "config.json").write_text(json.dumps(config))

    monkeypatch.setattr(exporting, "_save", forget)
    monkeypatch.chdir(ROOT)
    architecture = Architecture.dense(pico.layout).replace(0, kv_groups=0)
    with pytest.raises(ExportError, match=r"with a cache it writes tokens whose logits are .* below the best without"):
        export(pico, architecture, tmp_path / "mine")


def test_an_export_with_other_weights_is_refused(pico, tmp_path, checked_here, monkeypatch):
    monkeypatch.setattr(exporting, "_weights", lambda _: 12345)
    with pytest.raises(ExportError, match=r"it has [\d,]+ weights instead of 12,345"):
        export(pico, mixed(pico), tmp_path / "mine")


def test_an_export_with_other_weights_than_its_cost_counts_is_refused(pico, tmp_path):
    model = standalone(pico, Architecture.dense(pico.layout))
    for write in (write_folder, write_gguf):
        with pytest.raises(ExportError, match=r"must have the 50 weights that its cost counts, but has [\d,]+; report"):
            write(model, pico, tmp_path / "mine", {"cost": {"weight_bytes": 100}})
    assert not (tmp_path / "mine").exists()


def test_layers_that_are_alike_need_no_code_of_ours(pico, tmp_path, checked_here):
    architecture = Architecture.dense(pico.layout).replace(2, kv_groups=0, mlp_width=0)
    logits = export(pico, architecture, tmp_path / "mine")
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"]) == ("llama", 5)
    assert "auto_map" not in config
    assert not list((tmp_path / "mine").glob("*.py"))
    told = json.loads((tmp_path / "mine" / MARK).read_text())
    assert (told["form"], told["architecture"]) == ("plain", architecture.to_dict())
    assert "import evaluator" not in (tmp_path / "mine" / "README.md").read_text()
    assert torch.equal(logits_of(LlamaForCausalLM.from_pretrained(tmp_path / "mine", dtype="auto")), logits)


def test_a_padded_export_is_a_stock_model(finished_run, checked_here, capsys):
    assert call("export", finished_run, "--format", "padded", "--json") == 0
    folder = Path(json.loads(capsys.readouterr().out)["export"])
    assert folder == finished_run / "export-padded"
    own, stock = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (finished_run / "export", folder)
    )
    assert type(stock) is LlamaForCausalLM
    torch.testing.assert_close(logits_of(stock), logits_of(own), atol=1e-4, rtol=1e-4)
    assert stock.num_parameters() > own.num_parameters()
    assert "padded with zeros to the widest" in (folder / "README.md").read_text()


def test_an_export_goes_into_another_format(finished_run, checked_here, tmp_path, capsys):
    assert call("export", finished_run / "export", "--format", "padded") == 0
    folder = finished_run / "export-padded"
    assert capsys.readouterr().out == f"{folder}\n"
    own, other = (json.loads((path / MARK).read_text()) for path in (finished_run / "export", folder))
    assert other["form"] == "padded"
    assert {name: other[name] for name in own if name not in ("form", "files", "weights")} == {
        name: own[name] for name in own if name not in ("form", "files", "weights")
    }
    assert call("export", finished_run / "export", "--member", "abc") == 2
    assert "--member is of a run with a Pareto set" in refusal(capsys.readouterr().err)
    assert call("export", tmp_path) == 2
    assert "must hold a best.json" in refusal(capsys.readouterr().err)


class TestPlace:
    def test_a_name_on_a_hub_is_no_folder(self, finished_run, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        before = set(tmp_path.rglob("*"))
        for name in ("someone/my-model", "hf://someone/my-model", "https://huggingface.co/someone/my-model"):
            assert call("export", finished_run, "--out", name) == 2
            assert "looks like a name on a hub (there is no folder" in refusal(capsys.readouterr().err)
        assert set(tmp_path.rglob("*")) == before

    def test_killed_between_its_renamings_the_older_export_comes_back(self, pico, tmp_path, checked_here):
        target = tmp_path / "mine"
        export(pico, mixed(pico), target, verified=False)
        before = fingerprints(target)
        target.rename(tmp_path / ".mine.old")
        place.check_target(target)
        assert fingerprints(target) == before
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]

    @pytest.mark.parametrize("renaming", [1, 2, 3])
    def test_killed_at_any_of_its_renamings_it_leaves_the_older_one_or_the_new_one(self, renaming, tmp_path):
        code = """
import os, signal, sys
from pathlib import Path
from search.export import place

left, plain = int(sys.argv[2]), Path.rename

def rename(self, target):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, target)

def fill(folder):
    (folder / "model").write_text("new")
    return {}

Path.rename = rename
place.write(Path(sys.argv[1]), fill, {}, lambda _: "card")
"""
        target = tmp_path / "mine"
        target.mkdir()
        (target / "model").write_text("old")
        (target / MARK).write_text("{}")
        command = [sys.executable, "-c", code, str(target), str(renaming)]
        killed = subprocess.run(command, cwd=ROOT, check=False).returncode
        assert killed == (0 if renaming == 3 else -signal.SIGKILL)
        place.check_target(target)
        assert (target / "model").read_text() == ("new" if renaming == 3 else "old")
        assert (tmp_path / ".mine.old").exists() is False

    def test_a_folder_beside_that_is_none_of_ours_stays(self, tmp_path):
        (tmp_path / ".mine.old").mkdir()
        (tmp_path / ".mine.old" / "thesis.tex").write_text("x")
        place.check_target(tmp_path / "mine")
        assert [path.name for path in tmp_path.rglob("*")] == [".mine.old", "thesis.tex"]

    @pytest.mark.parametrize("form", ["huggingface", "padded", "gguf"])
    def test_a_full_disk_leaves_what_was_there(self, small_disk, finished_run, form, checked_here, capsys):
        place, grow = small_disk
        command = ("export", finished_run, "--format", form, "--out", place / "out")
        for size in ("16k", "300k"):
            grow(size)
            assert call(*command) == 2
            assert "disk, but it is full; free some space" in refusal(capsys.readouterr().err)
            assert list(place.iterdir()) == []
        grow("8m")
        assert call(*command) == 0
        before = fingerprints(place / "out")
        filler = place / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(place).free - (100 << 10)))
        assert call(*command) == 2
        assert fingerprints(place / "out") == before
        assert {path.name for path in place.iterdir()} == {"out", "filler"}

    def test_a_card_says_what_is_known(self, finished_run):
        card = (finished_run / "export" / "README.md").read_text()
        record = json.loads((finished_run / "export" / MARK).read_text())
        for told in (
            "| uniform |",
            "| **this model** |",
            "decoder FLOPs per token",
            f"secateur run --model {record['model']} --budget parameters=0.7",
            f"calibration set {record['calibration']['hash']}",
            record["files"]["model.safetensors"]["sha256"],
            f"![What is kept of each layer's attention and MLP]({PICTURE})",
        ):
            assert told in card
        picture = (finished_run / "export" / PICTURE).read_text()
        assert ElementTree.fromstring(picture).tag.endswith("svg")
        removed = sum(
            layer[gene] == 0 for layer in record["architecture"]["layers"] for gene in ("kv_groups", "mlp_width")
        )
        assert picture.count(" removed</title>") == removed

    def test_the_licence_of_a_base_model_comes_from_its_card(self, tmp_path):
        (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
        assert licence_of(str(tmp_path)) == "mit"
        (tmp_path / "README.md").write_text("# Mine --- and only mine ---")
        assert licence_of(str(tmp_path)) is None
        assert licence_of("smollm2-135m") == "apache-2.0"


def test_a_failed_verification_leaves_nothing_half_written(pico, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ExportError("no")

    monkeypatch.setattr(exporting, "verify", fail)
    with pytest.raises(ExportError):
        write_folder(standalone(pico, Architecture.dense(pico.layout)), pico, tmp_path / "mine", {})
    assert list(tmp_path.iterdir()) == []


def test_the_export_of_a_run_speaks(finished_folder):
    text = generate_text(finished_folder / "export", "Once upon a time", 20)
    assert text.startswith("Once upon a time")
    assert len(text) > len("Once upon a time") + 10
    assert generate_text(finished_folder / "export", "Once upon a time", 20) == text
    card = (finished_folder / "export" / "README.md").read_text()
    assert "| perplexity" in card


def test_a_built_in_model_speaks_by_its_name(stories, monkeypatch):
    monkeypatch.setattr("evaluator.checkpoint.PACKAGED_MODELS", {"own": None})
    monkeypatch.setattr("evaluator.checkpoint.packaged_gguf", lambda name: name)
    monkeypatch.setattr("evaluator.checkpoint._converted", lambda _: stories)
    assert generate_text("own", "Once upon a time", 8) == generate_text(stories, "Once upon a time", 8)


def test_refusals(finished_run, tmp_path):
    assert "huggingface" in FORMATS
    with pytest.raises(SettingError, match=r"must be one of huggingface.*, but is 'onnx'; choose one"):
        export_best(finished_run, "onnx")
    with pytest.raises(RunFolderError, match=r"must hold a best.json"):
        export_best(tmp_path)
    with pytest.raises(ModelError, match=r"must hold a config.json"):
        generate_text(tmp_path, "Hello")
