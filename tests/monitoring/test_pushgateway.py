"""What the gate tells a real Pushgateway, as a real Prometheus sees it; and that nothing stays when it should not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import pytest

from giblet.cli import main
from giblet.storage import MemoryStorage
from giblet.telemetry.metrics import Metrics
from giblet.verify.announce import push
from giblet.verify.gate import Gate, GateResult
from giblet.verify.jobs import Job, MemoryJobs
from tests.support.gate import commit_word, judged_by_its_word
from tests.support.monitoring import Prometheus, Target, program, pushgateway
from tests.support.weights import small_config

BASE = small_config()
SECONDS = 60.0
VERDICT = 'giblet_verify_verdict{namespace="lab",run="movie"}'


@dataclass
class Watched:
    """A Pushgateway and the Prometheus that scrapes it, with `honor_labels` as it has to."""

    url: str
    prometheus: Prometheus
    storage: MemoryStorage

    def gate(self, during: Callable[[], None] = lambda: None) -> GateResult:
        """A gate from its begin to its verdict; `during` is called while it waits for the job."""

        class Waits(MemoryJobs):
            def look(self) -> Job | None:
                if self.job is not None and not self.job.ended:
                    during()
                    self.job = Job("one", "Succeeded")
                    return Job("one", "Running")
                return self.job

        settings = {"pushgateway_url": self.url, "poll_seconds": 0.1, "restore": False, "when": "last"}
        verify = BASE.verify.model_copy(update=settings)
        config = BASE.model_copy(update={"verify": verify, "run": BASE.run.model_copy(update={"name": "movie"})})
        jobs = Waits(job=Job("one", "Running"))
        return Gate(config, self.storage, jobs, Metrics("movie"), judge=judged_by_its_word).run()

    def sees(self, query: str, *values: float) -> None:
        """Until Prometheus answers so."""
        deadline = time.monotonic() + SECONDS
        while (found := [float(row["value"][1]) for row in self.prometheus.samples(query)]) != list(values):
            assert time.monotonic() < deadline, f"{query}: {found}, not {values}"
            time.sleep(0.1)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    program("prometheus")  # skips where there is none
    with ExitStack() as stack:
        url = stack.enter_context(pushgateway())
        port = urlparse(url).port
        assert port is not None
        prometheus = Prometheus(tmp_path / "prometheus", [Target("pushgateway", port, {})])
        stack.callback(prometheus.close)
        prometheus.wait_until_ready()
        yield Watched(url, prometheus, MemoryStorage())


def test_a_verdict_is_seen_until_the_next_gate_begins_or_it_is_forgotten(watched: Watched) -> None:
    other = Metrics("other")
    other.set("verify_verdict", 2)
    push(other, watched.url, "lab")
    commit_word(watched.storage, 4)
    assert watched.gate().exit_code == 0
    watched.sees(VERDICT, 2)
    watched.sees('giblet_verify_verified_step{run="movie"}', 4)
    watched.sees('giblet_job_active{run="movie"}')

    commit_word(watched.storage, 8, bad=True)
    assert watched.gate(during=lambda: watched.sees(VERDICT)).exit_code == 1
    watched.sees(VERDICT, 0)
    watched.sees('giblet_verify_judged_step{run="movie"}', 8)
    watched.sees('giblet_verify_verified_step{run="movie"}', 4)
    watched.sees('ALERTS{alertname="GibletVerificationFailed",alertstate="firing",run="movie"}', 1)

    words = ["gate", "--forget", "--job=movie", "--namespace=lab", "--set=run.name=movie"]
    assert main([*words, f"--set=verify.pushgateway_url={watched.url}"]) == 0
    watched.sees(VERDICT)
    watched.sees('giblet_verify_verdict{namespace="lab",run="other"}', 2)
