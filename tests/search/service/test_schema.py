"""Every route does what its documentation says, whatever it is asked."""

import socket
import threading
import time

import hypothesis
import pytest
import schemathesis
import uvicorn
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import status_code_conformance

from search.service.app import create_app
from search.service.workers import Workers


@pytest.fixture(scope="module")
def schema(settings):
    """The schema of a service whose jobs wait for ever, since it has no worker."""
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as listening:
        patch.setattr(Workers, "start", lambda _: None)
        patch.setattr(Workers, "alive", settings.slots)
        app = create_app(settings.model_copy(update={"submissions_per_minute": 1e9}))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield schemathesis.openapi.from_url(f"http://127.0.0.1:{listening.getsockname()[1]}/openapi.json")
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_answer_is_undocumented_and_none_is_a_fault(schema, mode):
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 20
    for operation in operations:
        _ask(operation, mode)


def _ask(operation, mode):
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    @hypothesis.settings(max_examples=8, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
    def ask(case):
        answer = case.call(timeout=60)
        case.validate_response(answer, checks=[not_a_server_error, status_code_conformance])

    try:
        ask()
    except hypothesis.errors.Unsatisfiable:  # a route without parameters cannot be asked wrongly
        assert mode == GenerationMode.NEGATIVE
