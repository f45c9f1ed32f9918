"""What requests may name, and what happens to them that name something else: refused, logged, nothing changed."""

import json
import os
import pickle
import shutil
import struct

import pytest

from evaluator.builtin import PACKAGED_MODELS
from evaluator.sources import HUB_NAMES, KINDS
from search.config import parse_config
from search.service.gate import Gate
from search.service.models import check_model
from search.service.settings import ServiceSettings
from space import ModelError, RunFolderError, SecateurError, TextError
from tests.search.command import fingerprints
from tests.search.service.conftest import sentence_of


@pytest.fixture
def place(tmp_path, pico_folder):
    """Folders of an operator, with something outside that is worth stealing."""
    for name in ("runs", "models", "data", "outside"):
        (tmp_path / name).mkdir()
    shutil.copytree(pico_folder, tmp_path / "models" / "pico")
    shutil.copytree(pico_folder, tmp_path / "outside" / "secret")
    (tmp_path / "outside" / "secret.txt").write_text("secret")
    (tmp_path / "data" / "text.txt").write_text("words")
    (tmp_path / "data" / "link.txt").symlink_to(tmp_path / "outside" / "secret.txt")
    (tmp_path / "models" / "link").symlink_to(tmp_path / "outside" / "secret")
    return tmp_path


@pytest.fixture
def gate(place):
    return Gate(ServiceSettings(runs=place / "runs", models=(place / "models",), data=(place / "data",)))


class TestNames:
    def test_models_and_data_are_listed_and_found(self, gate, place):
        assert gate.models() == ["smollm2-135m", "pico"]
        assert gate.data() == ["text.txt"]
        assert gate.model("pico") == str(place / "models" / "pico")
        assert gate.model(str(place / "models" / "pico")) == str(place / "models" / "pico")
        assert gate.text("text.txt") == str(place / "data" / "text.txt")
        assert gate.mixed("self=2+text.txt=0.5") == f"self=2+{place / 'data' / 'text.txt'}=0.5"

    def test_a_run_is_where_the_operator_has_it(self, place):
        folders = {"runs": place / "runs", "models": (place / "models",), "data": (place / "data",)}
        asked = parse_config({"model": "pico", "budget": ["parameters=0.7"], "text": {"source": "text.txt"}})
        assert (found := Gate(ServiceSettings(**folders)).settings(asked)).database is None
        assert found.engine == "local"
        elsewhere = ServiceSettings(**folders, run_database="GARDEN", dask="tcp://10.0.0.1:8786")
        found = Gate(elsewhere).settings(asked)
        assert (found.database, found.engine, found.address) == ("GARDEN", "dask", "tcp://10.0.0.1:8786")

    @pytest.mark.parametrize(
        "name",
        ["../outside/secret", "pico/../../outside/secret", "link", "/etc", "", ".\0", "meta-llama/Llama-3.1-8B", "~"],
    )
    def test_no_model_lies_elsewhere(self, gate, name):
        with pytest.raises(ModelError, match="must"):
            gate.model(name)

    @pytest.mark.parametrize(
        "name", ["../outside/secret.txt", "/etc/passwd", "link.txt", "c4", "hub:allenai/c4", "", "text.txt/..", "\0"]
    )
    def test_no_text_lies_elsewhere(self, gate, name):
        with pytest.raises(TextError):
            gate.text(name)

    def test_the_hub_is_named_where_it_is_allowed(self, place):
        gate = Gate(ServiceSettings(runs=place / "runs", hub=True))
        assert gate.model("meta-llama/Llama-3.1-8B") == "meta-llama/Llama-3.1-8B"
        assert gate.text("c4") == "c4"
        assert gate.text("hub:allenai/c4:en:train") == "hub:allenai/c4:en:train"
        with pytest.raises(ModelError):
            gate.model("../../etc/passwd")

    @pytest.mark.parametrize("name", ["..", ".service", "a/b", "-x", "", "a" * 200, "a\n", "é"])
    def test_no_run_lies_elsewhere(self, gate, name):
        with pytest.raises(RunFolderError):
            gate.run(name)

    def test_a_run_that_is_a_link_is_none(self, gate, place):
        (place / "runs" / "link").symlink_to(place / "outside")
        with pytest.raises(RunFolderError):
            gate.run("link")
        assert gate.runs() == []

    def test_built_in_names_and_the_hubs_are_those_of_the_evaluator(self, gate, place):
        assert gate.models()[: len(PACKAGED_MODELS)] == list(PACKAGED_MODELS)
        hub = Gate(ServiceSettings(runs=place / "runs", hub=True))
        assert [hub.text(name) for name in HUB_NAMES] == list(HUB_NAMES)
        (place / "data" / "more").mkdir()
        for kind in KINDS:
            (place / "data" / "more" / f"x.{kind}").touch()
        assert {name for name in gate.data() if name.startswith("more/")} == {f"more/x.{kind}" for kind in KINDS}


class TestModels:
    def test_an_honest_one_is_let_in(self, place):
        check_model(place / "models" / "pico")

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pkl", "training_args.pt", "sub/x.pickle"])
    def test_a_pickle_is_refused(self, place, name):
        file = place / "models" / "pico" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(pickle.dumps({}))
        with pytest.raises(ModelError, match="can run code"):
            check_model(place / "models" / "pico")

    def test_weights_that_are_holes_are_refused(self, place):
        file = place / "models" / "pico" / "model.safetensors"
        count = 1 << 30
        header = json.dumps({"w": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}).encode()
        file.write_bytes(struct.pack("<Q", len(header)) + header)
        os.truncate(file, 8 + len(header) + 4 * count)
        with pytest.raises(ModelError, match="hole"):
            check_model(place / "models" / "pico")

    @pytest.mark.parametrize(
        "change", [{"num_hidden_layers": 10**9}, {"num_hidden_layers": 99}, {"vocab_size": 10**12}]
    )
    def test_a_small_file_that_opens_to_something_huge_is_refused(self, place, change):
        file = place / "models" / "pico" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        with pytest.raises(ModelError, match="tells of"):
            check_model(place / "models" / "pico")

    @pytest.mark.parametrize("content", [b"", b"\xff" * 8, struct.pack("<Q", 10**15), struct.pack("<Q", 2) + b"[]"])
    def test_damaged_safetensors_are_refused(self, place, content):
        (place / "models" / "pico" / "model.safetensors").write_bytes(content)
        with pytest.raises(ModelError, match="must be"):
            check_model(place / "models" / "pico")

    def test_a_family_without_a_record_is_refused(self, place):
        file = place / "models" / "pico" / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": "mamba"}))
        with pytest.raises(SecateurError, match="mamba"):
            check_model(place / "models" / "pico")


def run(**settings):
    return {"kind": "run", "settings": {"model": "stories260K", "budget": ["parameters=0.7"], **settings}}


REFUSED = {
    "a model elsewhere": run(model="../../etc"),
    "a text elsewhere": run(text={"source": "../../../etc/passwd"}),
    "a report elsewhere": run(text={"report": "/etc/passwd"}),
    "calibration elsewhere": run(calibration={"sources": ["/etc/passwd=2"]}),
    "a set elsewhere": run(calibration={"set": "/etc/x.safetensors"}),
    "a mix elsewhere": run(calibration={"mixes": ["self", "self+/etc/passwd"]}),
    "a prefix elsewhere": run(calibration={"prefix": "/etc/passwd"}),
    "tasks elsewhere": run(tasks={"ask": ["arc_easy"], "data": "/etc"}),
    "tasks of the hub": run(tasks={"ask": ["arc_easy"]}),
    "a device": run(device="cuda; rm -rf /"),
    "a name elsewhere": {**run(), "name": "../x"},
    "another machine": run(engine="dask", address="tcp://10.0.0.1:8786"),
    "another database": run(database="HOME"),
    "an unknown setting": run(trust_remote_code=True),
    "no architecture so small": run(budget=["parameters=0.000000001"]),
    "less than nothing": run(budget=["parameters=-1"]),
    "no number": run(budget=["parameters=nan"]),
    "endless": run(budget=["parameters=1e999"]),
    "an unknown metric": run(budget=["souls=1"]),
    "more text than memory": run(text={"calibrate": 10**9}),
    "an unknown kind": {"kind": "shell"},
    "an option as a prompt's tokens": {"kind": "generate", "run": "done", "prompt": "x", "tokens": "--help"},
    "a member that is none": {"kind": "export", "run": "done", "member": "../../../etc"},
    "an export elsewhere": {"kind": "generate", "run": "done", "prompt": "x", "export": "../done/export"},
}


@pytest.mark.parametrize("asked", REFUSED.values(), ids=REFUSED)
def test_what_may_not_be_is_refused_and_nothing_changes(client, runs, asked):
    before = fingerprints(runs / "done")
    answer = client.post("/api/jobs", json=asked)
    assert answer.status_code == 422
    assert "must" in sentence_of(answer)
    assert client.get("/api/jobs").json() == []
    assert fingerprints(runs / "done") == before
    assert sorted(path.name for path in runs.iterdir()) == [".service", "done"]


@pytest.mark.parametrize(
    "path",
    [
        "/api/runs/..",
        "/api/runs/%2e%2e/report",
        "/api/runs/..%2f..%2fetc/report",
        "/api/runs/.service",
        "/static/../app.py",
        "/static/%2e%2e/%2e%2e/app.py",
        "/api/runs/done/exports/..%2f../archive",
        "/runs/%2e%2e",
        "/plotly-../../x.js",
    ],
)
def test_no_path_leads_elsewhere(client, path):
    assert client.get(path).status_code in (404, 409, 422)


def test_a_prompt_is_never_an_option(client):
    asked = {"kind": "generate", "run": "done", "prompt": "--help", "tokens": 1}
    job = client.post("/api/jobs", json=asked).json()
    client.post(f"/api/jobs/{job['id']}/cancel")
    for command in job["commands"]:
        assert command[command.index("--") + 2] == "--help"
