"""Whom a service answers, and that a refusal changes nothing and is told."""

import json
import logging
import stat
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient

from search.service.app import create_app
from search.service.guard import Guard, Rate, Tokens
from search.service.telemetry import LOGGER
from tests.search.service.conftest import sentence_of


@pytest.fixture(scope="module")
def token(settings):
    return Tokens(settings.home / "token.sha256").make()


@pytest.fixture(scope="module")
def guarded(client, settings, token):
    """The same service on an address that others reach; its own lifetime is the other's."""
    app = create_app(settings.model_copy(update={"host": "0.0.0.0"}))
    [tokens] = [each.kwargs["tokens"] for each in app.user_middleware if each.cls is Guard]
    app.state.service = replace(client.app.state.service, tokens=tokens)
    return app


@pytest.fixture
def stranger(guarded):
    return TestClient(guarded, base_url="http://example.org", follow_redirects=False)


@pytest.fixture
def logged(caplog):
    """What the service logs."""
    caplog.set_level(logging.INFO, LOGGER.name)
    return caplog


class TestToken:
    def test_it_is_kept_as_a_hash_that_its_owner_alone_reads(self, settings, token):
        file = settings.home / "token.sha256"
        assert token not in file.read_text()
        assert len(token) >= 43  # 256 bits
        assert stat.S_IMODE(file.stat().st_mode) == 0o600

    def test_none_or_a_wrong_one_is_refused(self, stranger, token):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {token}"}):
            answer = stranger.get("/api/runs", headers=headers)
            assert answer.status_code == 401
            assert sentence_of(answer).startswith("A request must carry the service's token")
            assert answer.headers["www-authenticate"].startswith("Bearer")

    def test_the_right_one_is_let_in(self, stranger, token):
        answer = stranger.get("/api/runs", headers={"Authorization": f"Bearer {token}"})
        assert [run["name"] for run in answer.json()] == ["done"]

    def test_health_needs_none(self, stranger):
        assert stranger.get("/healthz").status_code == 200

    def test_a_page_asks_for_it_and_begins_a_session(self, stranger, token):
        answer = stranger.get("/")
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")
        assert stranger.get("/login").status_code == 200
        begun = stranger.post("/login", data={"token": token})
        cookie = begun.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=strict"} <= {part.strip() for part in cookie.split(";")}
        assert token not in cookie
        assert stranger.get("/").status_code == 200
        assert stranger.post("/logout").status_code == 303
        assert stranger.get("/").status_code == 303

    def test_a_wrong_one_begins_none(self, stranger):
        answer = stranger.post("/login", data={"token": "wrong"})
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers

    def test_a_new_one_ends_the_old(self, tmp_path):
        tokens = Tokens(tmp_path / "token")
        old, new = tokens.make(), tokens.make()
        assert not tokens.accepts(old)
        assert tokens.accepts(new)
        assert not Tokens(tmp_path / "missing").accepts("")

    def test_it_is_in_no_line_of_the_log(self, stranger, token, logged):
        stranger.get(f"/api/runs?token={token}", headers={"Authorization": f"Bearer {token}x"})
        stranger.post("/login", data={"token": token})
        assert logged.records
        assert token not in json.dumps([[str(record.msg), record.told] for record in logged.records])


class TestOrigin:
    @pytest.mark.parametrize(
        "headers",
        [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "same-site"}],
    )
    def test_another_sites_page_changes_nothing(self, client, headers):
        answer = client.post("/api/jobs", json={"kind": "export", "run": "done"}, headers=headers)
        assert answer.status_code == 403
        assert client.get("/api/jobs").json() == []

    def test_a_form_of_another_site_is_no_request(self, client):
        body = json.dumps({"kind": "export", "run": "done"})
        answer = client.post("/api/jobs", content=body, headers={"Content-Type": "text/plain"})
        assert answer.status_code == 422
        assert client.get("/api/jobs").json() == []

    def test_the_own_page_may(self, client):
        headers = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
        assert client.post("/api/runs/done/predict", json={}, headers=headers).status_code == 200

    @pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8765", ""])
    def test_a_name_that_leads_here_is_refused(self, client, host):
        answer = client.get("/api/runs", headers={"Host": host})
        assert (answer.status_code, sentence_of(answer)[:8]) == (400, "The Host")

    @pytest.mark.parametrize("host", ["localhost", "localhost:8765", "127.0.0.1:1", "[::1]:8765", "[::1]"])
    def test_this_machine_is_not(self, client, host):
        assert client.get("/healthz", headers={"Host": host}).status_code == 200

    def test_no_page_may_frame_or_load_from_elsewhere(self, client):
        policy = client.get("/").headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy


class TestLimits:
    def test_a_body_that_is_too_large_is_refused(self, client, settings):
        body = b"[" + b" " * settings.most_body_bytes + b"]"
        answer = client.post("/api/jobs", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
        parts = (body[i : i + 65536] for i in range(0, len(body), 65536))  # without a length that says so
        answer = client.post("/api/jobs", content=parts, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413

    def test_a_rate_is_kept_for_each_client(self):
        rate = Rate(per_second=0.001, burst=2)
        assert [rate.take("one") > 0 for _ in range(3)] == [False, False, True]
        assert rate.take("other") == 0

    def test_who_asks_too_often_waits(self, settings, client):
        app = create_app(settings.model_copy(update={"requests_per_second": 1.0, "submissions_per_minute": 1.0}))
        app.state.service = client.app.state.service
        hasty = TestClient(app, base_url="http://localhost")
        assert hasty.get("/healthz").status_code == 200
        answer = hasty.get("/healthz")
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1


def test_a_person_is_told_on_a_page(client):
    for path, words in (
        ("runs/none", "A run must be there"),
        ("runs/<i>none", "must be as /openapi.json says"),
        ("nothing", "Not Found"),
    ):
        page = client.get(f"/{path}", headers={"Accept": "text/html,*/*;q=0.8"})
        assert page.status_code in (404, 409, 422)
        assert page.headers["content-type"].startswith("text/html")
        assert "<h1>Not to be had</h1>" in page.text
        assert words in page.text
        assert "<i>" not in page.text
    assert sentence_of(client.get("/runs/none")).startswith("A run must be there")
    assert sentence_of(client.get("/api/runs/none", headers={"Accept": "text/html"})).startswith("A run must be there")


class TestTelemetry:
    def test_a_request_has_an_id_in_answer_and_log(self, client, logged):
        answer = client.get("/api/runs", headers={"X-Request-ID": "mine-1"})
        assert answer.headers["x-request-id"] == "mine-1"
        assert [record.told["id"] for record in logged.records if record.msg == "request"] == ["mine-1"]
        assert client.get("/api/runs", headers={"X-Request-ID": "no\tgood"}).headers["x-request-id"].isalnum()

    def test_figures_are_told(self, client):
        client.get("/api/runs/nothing")
        client.get("/api/runs", headers={"Host": "evil.example"})
        text = client.get("/metrics").text
        assert 'secateur_requests_total{method="GET",route="/api/runs/{run}",status="404"}' in text
        assert 'secateur_refusals_total{reason="host"}' in text
        assert 'secateur_jobs{state="queued"} 0.0' in text
        assert "secateur_workers 1.0" in text
