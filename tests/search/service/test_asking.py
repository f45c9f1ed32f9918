"""What the API says of runs: predictions, pairs, figures, and how many ask at once."""

import asyncio
import io
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pandas as pd
import pytest

from evaluator import PairStore
from predictor import AccuracyPredictor, pairs_of_table, sub_block_damages
from search.folder import RunFolder
from search.service.asking import Oracle
from search.service.pairs import held_out_of, pair_rows, read_pairs
from search.session import rewrite_report
from space import Architecture, sample
from space.architecture import genes_of
from tests.search.command import ROOT, fingerprints
from tests.search.service.conftest import sentence_of


@pytest.fixture(scope="module")
def run(runs):
    return RunFolder(runs / "done")


@pytest.fixture(scope="module")
def predictor(run):
    return AccuracyPredictor.load(run.predictor)


@pytest.fixture(scope="module")
def drawn(run):
    """Architectures of the run's space."""
    space = run.search_space()
    return space.decode(sample(space, 8, np.random.default_rng(3)))


class TestPredict:
    def test_one_is_what_the_predictor_says(self, client, predictor, drawn, run):
        told = client.post("/api/runs/done/predict", json={"architectures": [drawn[0].to_dict()]}).json()
        mine = told["targets"][0]
        expected = predictor.predict([drawn[0]])
        assert (mine["title"], mine["protocol"]) == ("kl", predictor.protocol)
        assert mine["value"] == pytest.approx([expected.value[0]])
        assert (mine["lower"], mine["upper"]) == (
            pytest.approx([expected.lower[0]]),
            pytest.approx([expected.upper[0]]),
        )
        costs = {metric: values[0] for metric, values in told["costs"].items()}
        assert costs == pytest.approx(run.search_space().amounts(drawn[0]))
        assert told["within"] == [run.search_space().allows(drawn[0])]

    def test_a_batch_in_either_form_is_what_each_is_alone(self, client, drawn):
        long = client.post("/api/runs/done/predict", json={"architectures": [each.to_dict() for each in drawn]}).json()
        short = client.post("/api/runs/done/predict", json={"genes": genes_of(drawn).tolist()}).json()
        assert long == short
        for place, each in enumerate(drawn):
            alone = client.post("/api/runs/done/predict", json={"architectures": [each.to_dict()]}).json()
            assert alone["targets"][0]["value"][0] == pytest.approx(long["targets"][0]["value"][place])

    def test_changes_are_made_to_the_winner(self, client, run, predictor):
        winner = Architecture.from_dict(run.best()["architecture"])
        changes = [{"layer": 2, "gene": "mlp_width", "value": 64}, {"layer": 1, "gene": "kv_groups", "value": 0}]
        told = client.post("/api/runs/done/predict", json={"changes": changes, "targets": ["kl"]}).json()
        changed = winner.replace(2, mlp_width=64).replace(1, kv_groups=0)
        assert [target["title"] for target in told["targets"]] == ["kl"]
        assert told["targets"][0]["value"][0] == pytest.approx(float(predictor.predict([changed]).value[0]))
        assert told["targets"][0]["winner"] == pytest.approx(float(predictor.predict([winner]).value[0]))

    @pytest.mark.parametrize(
        ("asked", "words"),
        [
            ({"genes": [[[1, 0, 16, 0]]]}, "shape (architectures, 5, 4)"),
            ({"genes": [[[1, 0, 16]] * 5]}, "shape (architectures, 5, 4)"),
            ({"architectures": [{"layers": [{"kv_groups": 1, "mlp_width": 1}]}]}, "one entry for each"),
            ({"genes": [[[9, 0, 16, 0]] * 5]}, "kv_groups must be a whole number between 0 and 4 in layer 0"),
            ({"genes": [[[1.5, 0, 16, 0]] * 5]}, "kv_groups must be a whole number"),
            ({"genes": [[[1, 1, 16, 0]] * 5]}, "attention_sparsity must be at least 0 and below 1"),
            ({"changes": [{"layer": 7, "gene": "mlp_width", "value": 0}]}, "layer of 0 to 4"),
            ({"targets": ["taste"]}, "one of kl, perplexity"),
            (
                {"genes": [[[1, 0, 16, 0]] * 5], "architectures": [{"layers": [{"kv_groups": 1, "mlp_width": 1}]}]},
                "one form",
            ),
        ],
    )
    def test_what_is_no_architecture_is_refused(self, client, asked, words):
        answer = client.post("/api/runs/done/predict", json=asked)
        assert answer.status_code == 422
        assert words in sentence_of(answer)

    def test_a_run_that_is_missing_or_not_finished_says_so(self, client, runs):
        assert client.post("/api/runs/nothing/predict", json={}).status_code == 404
        (runs / "begun").mkdir()
        (runs / "begun" / "config.yaml").write_bytes((runs / "done" / "config.yaml").read_bytes())
        (runs / "begun" / "layout.json").write_bytes((runs / "done" / "layout.json").read_bytes())
        try:
            answer = client.post("/api/runs/begun/predict", json={})
            assert (
                answer.status_code,
                "no predictor" in sentence_of(answer) or "has none yet" in sentence_of(answer),
            ) == (409, True)
            assert [each["state"] for each in client.get("/api/runs").json() if each["name"] == "begun"] == [
                "unfinished"
            ]
            assert client.get("/runs/begun").status_code == 200
        finally:
            for file in (runs / "begun").iterdir():
                file.unlink()
            (runs / "begun").rmdir()


def test_many_who_ask_at_once_get_each_their_own(run, predictor, drawn):
    async def ask():
        oracle = Oracle()
        calls = [oracle.predict(run, genes_of([each]), ["kl"]) for each in drawn * 20]
        found = await asyncio.gather(*calls)
        oracle.close()
        return [float(each.predicted["kl"].value[0]) for each in found]

    expected = predictor.predict(drawn).value.tolist() * 20
    assert asyncio.run(ask()) == pytest.approx(expected)


def test_what_one_asks_wrongly_hurts_no_other(run, drawn):
    async def ask():
        oracle = Oracle()
        good, bad = genes_of([drawn[0]]), np.full((1, 2, 4), np.nan)  # of another model
        found = await asyncio.gather(*[oracle.predict(run, each) for each in (good, bad, good)], return_exceptions=True)
        oracle.close()
        return found

    good, bad, also = asyncio.run(ask())
    assert isinstance(bad, Exception)
    assert good.predicted["kl"].value == also.predicted["kl"].value


def test_damages_are_told_by_layer(client, run, predictor):
    winner = Architecture.from_dict(run.best()["architecture"])
    told = client.post("/api/runs/done/damages").json()["damages"]
    np.testing.assert_allclose(told, sub_block_damages(predictor, winner))
    other = client.post("/api/runs/done/damages", json=winner.replace(0, mlp_width=0).to_dict()).json()["damages"]
    assert other[0][1] > told[0][1]


class TestPairs:
    def test_they_are_those_of_the_store(self, run):
        store = PairStore(run.measurements_file)
        [protocol] = [key for key, each in store.protocols().items() if each.split == "search"]
        kept = store.pairs(protocol)
        store.close()
        found = pair_rows(read_pairs(run), run.search_space(), held_out_of(run))
        assert len(found) > 20
        told = [(each.architecture, each.kind, each.kl, each.kl_standard_error) for each in found]
        assert told == [(p.architecture, p.origin, p.measurement.kl, p.measurement.kl_standard_error) for p in kept]
        assert [each.perplexity for each in found] == pytest.approx([p.measurement.perplexity for p in kept])
        assert sum(each.predicted is not None for each in found) > 10

    def test_a_predictor_fits_on_what_was_downloaded(self, client, run):
        for form, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
            answer = client.get(f"/api/runs/done/pairs?format={form}")
            assert answer.headers["content-disposition"] == f'attachment; filename="done-pairs.{form}"'
            table = read(io.BytesIO(answer.content))
            architectures, values = pairs_of_table(table, run.layout(), "kl")
            assert [each.fingerprint for each in architectures] == table["fingerprint"].tolist()
            assert values == pytest.approx(table["kl"].tolist())

    def test_one_is_found_by_its_fingerprint(self, client, run):
        best = run.best()
        told = client.get(f"/api/runs/done/pairs/{best['fingerprint']}").json()
        assert told["architecture"] == best["architecture"]
        assert told["measured"]["kl"] == best["measured"]["search"]["kl"]
        assert client.get("/api/runs/done/pairs/0123456789abcdef").status_code == 409

    def test_a_report_that_is_made_anew_keeps_what_was_predicted(self, finished_run):
        run = RunFolder(finished_run)
        kept = held_out_of(run)
        run.held_out_file.unlink()
        assert held_out_of(run) == {}
        rewrite_report(run)
        again = held_out_of(run)
        assert set(again) == set(kept)
        for key, value in kept.items():
            assert again[key] == pytest.approx(value)


class TestRuns:
    def test_they_are_listed_and_told(self, client, run):
        [told] = client.get("/api/runs").json()
        assert (told["name"], told["state"], told["budgets"]) == ("done", "finished", ["parameters=0.7"])
        assert told["pairs"] == len(read_pairs(run))
        full = client.get("/api/runs/done").json()
        assert full["headline"] == told["headline"]
        assert full["best"]["fingerprint"] == run.best()["fingerprint"]
        assert {"winner", "uniform"} <= {row["label"] for row in full["rows"]}

    def test_figures_are_those_of_the_report(self, client):
        found = client.get("/api/runs/done/figures").json()
        assert {"pareto", "layers", "prediction", "damages", "curve", "rounds"} <= set(found)
        assert all(each["summary"] and '"data"' in each["figure"] for each in found.values())

    def test_sliders_stand_where_the_winner_is(self, client, run):
        told = client.get("/api/runs/done/sliders").json()
        assert told["starts"]["winner"] == run.best()["architecture"]
        assert len(told["columns"]) == 2 * told["layers"]
        assert told["columns"][0][-1] == [run.layout().kv_groups, 0.0]
        assert told["budgets"][0]["metric"] == "parameters"

    def test_its_report_is_sent_with_a_policy_of_its_own(self, client, run):
        answer = client.get("/api/runs/done/report")
        assert answer.text == run.report_file.read_text()
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "sandbox" in answer.headers["content-security-policy"]

    def test_an_export_is_listed_and_downloaded(self, client, run, tmp_path):
        [told] = client.get("/api/runs/done/exports").json()
        assert (told["name"], told["format"], told["recovered"]) == ("export", "huggingface", False)
        archive = client.get("/api/runs/done/exports/export/archive")
        with tarfile.open(fileobj=io.BytesIO(archive.content)) as opened:
            opened.extractall(tmp_path, filter="data")
        assert fingerprints(tmp_path / "done-export") == fingerprints(run.export)
        assert client.get("/api/runs/done/exports/nothing/archive").status_code == 404

    def test_without_a_set_there_is_none(self, client):
        assert client.get("/api/runs/done/pareto").status_code == 409


def test_whoever_answers_loads_no_torch(finished_folder, tmp_path):
    shutil.copytree(finished_folder, tmp_path / "done")
    code = """
import sys
from pathlib import Path
from fastapi.testclient import TestClient
from search.service import serve
from search.service.settings import ServiceSettings
from search.service.workers import Workers
Workers.start = lambda _: None
with TestClient(serve.create_app(ServiceSettings(runs=Path(sys.argv[1]))), base_url="http://localhost") as client:
    run = "/api/runs/done"
    answers = [client.get(path) for path in ("/", "/runs/done", "/api/runs", run, f"{run}/figures", f"{run}/sliders")]
    answers += [client.get(path) for path in (f"{run}/pairs", f"{run}/report", f"{run}/exports", "/docs", "/metrics")]
    answers += [client.post(f"{run}/predict", json={}), client.post(f"{run}/damages")]
    print([answer.status_code for answer in answers], sorted({"torch", "transformers", "optuna"} & set(sys.modules)))
"""
    told = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == f"{[200] * 13} []"
