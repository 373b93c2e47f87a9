"""What the gate tells: a Pushgateway over real HTTP, events and their words."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from giblet.telemetry.metrics import Metrics
from giblet.verify.announce import event_of, forget, push, tell_metrics
from giblet.verify.report import Check, Report


class Gateway(HTTPServer):
    """Keeps what it is told, as a Pushgateway does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.groups: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Gateway

    def do_PUT(self) -> None:
        self.server.groups[self.path] = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self._answer()

    def do_DELETE(self) -> None:
        self.server.groups.pop(self.path, None)
        self._answer()

    def _answer(self) -> None:
        self.send_response(202)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def report(*checks: Check) -> Report:
    return Report("memory://store/x", "giblet", 8, checks, {}, {}, {}, 123, 0.5, judged_unix_seconds=1e9)


def test_the_gateway_is_told_and_forgets(gateway):
    metrics = Metrics("movie")
    tell_metrics(metrics, report(Check("finite", "failed", "w has 3 NaN")))
    metrics.set("job_active", 1)
    push(metrics, gateway.url, "lab")
    ((path, body),) = gateway.groups.items()
    assert path.startswith("/metrics/job/giblet_verify/")
    assert "/run/movie" in path
    assert "/namespace/lab" in path
    assert 'giblet_verify_verdict{run="movie"} 0.0' in body
    assert "job_active" not in body, "it would stay true for ever"
    other = Metrics("other")
    push(other, gateway.url, "lab")
    assert forget("movie", gateway.url, "lab")
    assert list(gateway.groups) == [path.replace("movie", "other")]


def test_a_gateway_that_does_not_answer_changes_nothing(gateway):
    url = gateway.url
    gateway.server_close()
    push(Metrics("movie"), url, "lab")
    assert not forget("movie", url, "lab")
    push(Metrics("movie"), None, "lab")
    assert forget("movie", None, "lab")


def test_an_event_says_which_step_and_what_failed():
    kind, reason, message = event_of(report(Check("finite", "failed", "w has 3 NaN")), 8)
    assert (kind, reason) == ("Warning", "CheckpointRejected")
    assert message == "checkpoint of step 8 is UNSAFE: finite: w has 3 NaN"
    kind, reason, message = event_of(report(Check("finite", "warning", "idle")), 8)
    assert (kind, reason) == ("Normal", "CheckpointAccepted")
    assert "SAFE WITH WARNINGS" in message
