"""`secateur merge`: between two recoveries of one export, and the mean of several."""

import json

import pytest
import torch
from safetensors.torch import load_file

from evaluator import open_model
from evaluator.recovery.finetune import Recipe
from search import merging
from search.export import huggingface
from search.recovery import recover
from search.recovery_data import RecoverySettings
from tests.pico import save_pico
from tests.search.command import call, fingerprints, refusal
from tests.search.recoveries import nothing, same, weights

pytestmark = pytest.mark.usefixtures("checked_here")


@pytest.fixture(scope="module")
def recoveries(finished_folder, tmp_path_factory):
    """Two recoveries of the same run that learned in another order from another start; not to be changed."""
    folder = tmp_path_factory.mktemp("recoveries")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface, "verify", lambda *_, **__: None)
        for seed, name in enumerate(("first", "second")):
            recipe = Recipe(steps=3, step_tokens=64, distillation=1, learning_rate=1e-2, seed=seed)
            recover(finished_folder, RecoverySettings(recipe, text=("self",)), out=folder / name)
    return folder / "first", folder / "second"


def merged(capsys, *arguments):
    """Call a merger that has to succeed and return its folder's tensors."""
    assert call("merge", *arguments, "--json") == 0
    return load_file(f"{json.loads(capsys.readouterr().out)['folder']}/model.safetensors")


def refused(capsys, *arguments):
    """Call a merger that has to be refused and return the sentence."""
    assert call("merge", *arguments) == 2
    return refusal(capsys.readouterr().err)


def close(one, other):
    return all(torch.allclose(tensor, other[name], rtol=1e-5, atol=1e-6) for name, tensor in one.items())


def test_the_ends_of_slerp_are_the_models_bit_for_bit(recoveries, tmp_path, capsys):
    first, second = map(weights, recoveries)
    assert not same(first, second)
    assert same(merged(capsys, *recoveries, "--share", 0, "--out", tmp_path / "a"), first)
    assert same(merged(capsys, *recoveries, "--share", 1, "--out", tmp_path / "b"), second)


def test_it_opens_and_tells_what_it_is_of(recoveries, tmp_path, capsys):
    before = [fingerprints(folder) for folder in recoveries]
    assert call("merge", *recoveries, "--out", tmp_path / "mine", "--share", 0.25) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'mine'}\n"
    record, own = (json.loads((folder / "secateur.json").read_text()) for folder in (tmp_path / "mine", recoveries[0]))
    assert record["merged"] == {"method": "slerp", "of": [str(folder) for folder in recoveries], "share": 0.25}
    assert record["architecture"] == own["architecture"]
    assert record["model"] == own["model"]
    assert "recovery" in own
    assert "recovery" not in record
    assert (tmp_path / "mine" / "README.md").read_text().count("\n## Merged\n\nslerp of first, second.\n") == 1
    assert call("generate", tmp_path / "mine", "Once upon a time", "--tokens", 5) == 0
    assert [fingerprints(folder) for folder in recoveries] == before


def test_between_the_models_and_from_where_they_began(recoveries, finished_folder, tmp_path, capsys):
    first, second, start = (weights(folder) for folder in (*recoveries, finished_folder / "export"))
    name = "model.layers.2.mlp.up_proj.weight"
    line = merged(capsys, *recoveries, "--out", tmp_path / "a")
    between = (first[name] + second[name]) / 2
    assert not torch.equal(first[name], second[name])
    assert torch.allclose(line[name], between, rtol=1e-2, atol=1e-3)
    turned = merged(capsys, *recoveries, "--start", finished_folder / "export", "--out", tmp_path / "b")
    learned = [(tensors[name] - start[name]).double() for tensors in (first, second, turned)]
    cosine = torch.nn.functional.cosine_similarity(learned[0].flatten(), learned[1].flatten(), dim=0)
    assert abs(cosine) < 0.9  # so that the circle is far from the line
    weight = 1 / torch.sqrt(2 * (1 + cosine))  # sin(w / 2) / sin(w)
    assert torch.allclose(learned[2], weight * (learned[0] + learned[1]), atol=1e-6)
    assert not close(turned, line)


def test_the_mean_of_several(recoveries, finished_folder, tmp_path, capsys):
    folders = (*recoveries, finished_folder / "export")
    found = merged(capsys, *folders, "--method", "average", "--out", tmp_path / "mine")
    each = [weights(folder) for folder in folders]
    assert close(found, {name: sum(tensors[name] for tensors in each) / 3 for name in found})
    assert json.loads((tmp_path / "mine" / "secateur.json").read_text())["merged"]["share"] is None


def test_plain_models_are_merged_as_well(pico_folder, tmp_path, capsys):
    other = save_pico(tmp_path / "other", seed=1)
    found = merged(capsys, pico_folder, other, "--method", "average", "--out", tmp_path / "mine")
    one, two = weights(pico_folder), weights(other)
    assert close(found, {name: (one[name] + two[name]) / 2 for name in found})
    assert open_model(str(tmp_path / "mine")).layout == open_model(str(pico_folder)).layout


class TestRefusals:
    @pytest.mark.parametrize("method", ["slerp", "average"])
    def test_one_folder(self, method, recoveries, tmp_path, capsys):
        sentence = refused(capsys, recoveries[0], "--method", method, "--out", tmp_path / "mine")
        told = {"slerp": "between 2 models, but 1 were given", "average": "must be of at least 2 models, but is of 1"}
        assert told[method] in sentence
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--method", "dare"], "--method must be one of slerp, average, but is 'dare'; choose one."),
            (["--share", 2], "share of the second model must be 0..1, but is 2.0"),
            (["--method", "average", "--start", "x"], "--start is of SLERP"),
            (["--start", "nothing"], "a folder with a config.json, but 'nothing' holds none"),
        ],
    )
    def test_options(self, options, message, recoveries, tmp_path, capsys):
        assert message in refused(capsys, *recoveries, *options, "--out", tmp_path / "mine")
        assert list(tmp_path.iterdir()) == []

    def test_three_folders_of_slerp(self, recoveries, tmp_path, capsys):
        sentence = refused(capsys, *recoveries, recoveries[0], "--out", tmp_path / "mine")
        assert "between 2 models, but 3 were given; give two, or --method average for several." in sentence

    @pytest.mark.parametrize("method", ["slerp", "average"])
    def test_models_of_other_shapes(self, method, recoveries, stories, pico_folder, tmp_path, capsys):
        options = ("--method", method, "--out", tmp_path / "mine")
        sentence = refused(capsys, recoveries[0], stories, *options)
        assert f"but {stories} has other layers than {recoveries[0]}; merge what was one model." in sentence
        narrow = save_pico(tmp_path / "narrow", intermediate_size=40)
        sentence = refused(capsys, pico_folder, narrow, *options)
        assert "mlp.gate_proj.weight has (48, 32) in model 1 and (40, 32) in model 2" in sentence
        assert [path.name for path in tmp_path.iterdir()] == ["narrow"]

    def test_other_work_in_the_target_before_any(self, recoveries, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(merging, "open_student", nothing)
        (tmp_path / "thesis.tex").write_text("x")
        sentence = refused(capsys, *recoveries, "--out", tmp_path)
        assert f"but '{tmp_path}' holds something else; choose another with --out." in sentence
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
