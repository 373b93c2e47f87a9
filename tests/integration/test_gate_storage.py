"""The gate while a real S3 server goes away in the middle of its reading, comes back, or says no."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from torch import Tensor

from giblet.checkpoint.resume import quarantine, verified_ref
from giblet.cli import main
from giblet.errors import StorageDeniedError, StorageUnavailableError
from giblet.storage.embedded import EmbeddedServer, embedded_s3
from giblet.storage.s3 import S3Storage
from giblet.telemetry.metrics import Metrics
from giblet.verify.gate import Gate, GateResult
from giblet.verify.jobs import Job, MemoryJobs
from tests.support.gate import heard
from tests.support.s3 import dead_endpoint, hasty_storage
from tests.support.weights import Written, small_config, trained_tensors, training_state, write_checkpoint

pytestmark = pytest.mark.s3

CONFIG = small_config()
SHARDS = 6
AWAY_SECONDS = 2.0


class Killable:
    """A server that may be killed, and started again where it was."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.server, self.pid = server, server.pid
        process = Path(f"/proc/{server.pid}")
        self._command = (process / "cmdline").read_bytes().decode().split("\0")[:-1]
        self._folder = (process / "cwd").resolve()
        self._again: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def start(self) -> None:
        with (self._folder / "again.log").open("w") as log:
            self._again = subprocess.Popen(self._command, cwd=self._folder, stdout=log, stderr=log)
        self.pid = self._again.pid

    def close(self) -> None:
        if self._again is not None:
            self._again.kill()
            self._again.wait()


@dataclass
class Reading:
    """A checkpoint in a real server, and a gate whose reading of it something befalls."""

    own: Killable
    storage: S3Storage
    written: Written
    metrics: Metrics

    def gate(self, storage: S3Storage | None = None, **settings: object) -> GateResult:
        chosen = {"poll_seconds": 0.1, "restore": False, "patience_seconds": 120.0, **settings}
        verify = CONFIG.verify.model_copy(update=chosen)
        config = CONFIG.model_copy(update={"verify": verify, "run": CONFIG.run.model_copy(update={"name": "movie"})})
        jobs = MemoryJobs(job=Job("one", "Succeeded"))
        return Gate(config, storage or self.storage, jobs, self.metrics).run()

    def in_the_middle(self, fault: Callable[[], None]) -> None:
        """Once half of the shards have been read: that many answers, and no more, came before the fault."""
        seen: list[str] = []

        def observe(operation: str, outcome: str) -> None:
            if operation == "GetObject" and outcome == "ok":
                seen.append(operation)
                if len(seen) == 1 + SHARDS // 2:  # the manifest, and half of the shards
                    fault()

        self.storage.watch(observe)

    def errors(self) -> float | None:
        return self.metrics.registry.get_sample_value(
            "giblet_verify_errors_total", {"run": "movie", "cause": "storage"}
        )


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killable]:
    with embedded_s3(tmp_path_factory.mktemp("s3")) as server:
        killable = Killable(server)
        try:
            yield killable
        finally:
            killable.close()


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return trained_tensors(CONFIG, 8)


@pytest.fixture
def reading(own: Killable, tensors: dict[str, Tensor], request: pytest.FixtureRequest) -> Reading:
    storage = hasty_storage(own.server, f"giblet/{request.node.name}", max_attempts=1)
    written = write_checkpoint(storage, tensors, training_state(CONFIG, 8), step=8, shards=SHARDS)
    return Reading(own, storage, written, Metrics("movie"))


def test_a_server_that_stands_still_in_the_middle_and_goes_on(reading: Reading) -> None:
    resumed = threading.Timer(AWAY_SECONDS, os.kill, (reading.own.pid, signal.SIGCONT))

    def stand_still() -> None:
        os.kill(reading.own.pid, signal.SIGSTOP)
        resumed.start()

    reading.in_the_middle(stand_still)
    try:
        result = reading.gate()
    finally:
        os.kill(reading.own.pid, signal.SIGCONT)
    assert (result.exit_code, result.report.verdict) == (0, "SAFE")
    assert verified_ref(reading.storage, "movie") == reading.written.ref
    assert reading.errors()


def test_a_manifest_quarantined_in_the_middle_is_passed_over(reading: Reading) -> None:
    """By resume on another node, for instance, which found it bad; the one before is the last that counts."""
    tensors = trained_tensors(CONFIG, 12)
    last = write_checkpoint(reading.storage, tensors, training_state(CONFIG, 12), step=12, shards=SHARDS)
    reading.in_the_middle(lambda: quarantine(reading.storage, last.ref, "a person found it bad"))
    with heard() as stream:
        result = reading.gate()
    assert (result.exit_code, result.ref, result.verified) == (0, reading.written.ref, reading.written.ref)
    assert reading.storage.head(last.ref.report_key) is None
    assert "quarantined while it was read" in stream.getvalue()


def test_a_secret_that_is_wrong_is_said_at_once(reading: Reading) -> None:
    credentials = {"aws_access_key_id": reading.own.server.access_key, "aws_secret_access_key": "wrong"}
    storage = S3Storage.open("s3://giblet", reading.own.server.config(), credentials=credentials)
    with pytest.raises(StorageDeniedError) as caught:
        reading.gate(storage)
    assert caught.value.exit_code == 78
    assert "wrong" not in str(caught.value).replace("wrong secret", "")
    assert reading.errors() == 0, "asking again would change nothing"


def test_a_server_killed_in_the_middle_and_started_again(reading: Reading) -> None:
    started = threading.Timer(AWAY_SECONDS, reading.own.start)

    def kill() -> None:
        reading.own.kill()
        started.start()

    reading.in_the_middle(kill)
    try:
        result = reading.gate()
    finally:
        started.join()
    assert (result.exit_code, result.report.verdict) == (0, "SAFE")
    assert verified_ref(reading.storage, "movie") == reading.written.ref
    assert reading.errors()


def test_a_server_killed_in_the_middle_for_good(reading: Reading) -> None:
    """Nothing is left of this module's server after it."""
    reading.in_the_middle(reading.own.kill)
    began = time.monotonic()
    with pytest.raises(StorageUnavailableError) as caught:
        reading.gate(patience_seconds=AWAY_SECONDS)
    assert caught.value.exit_code == 129
    assert time.monotonic() - began >= AWAY_SECONDS
    assert reading.errors()


@pytest.mark.parametrize(("fault", "code"), [("wrong secret", 78), ("nobody answers", 129)])
def test_the_verb_ends_with_the_errors_own_code(
    fault: str, code: int, s3_server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Without a cluster: storage is asked before the API server is."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    if fault == "wrong secret":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    cluster = {"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    users = [{"name": "u", "user": {}}]
    kubeconfig = {"clusters": [cluster], "contexts": [context], "users": users, "current-context": "c"}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("GIBLET_TERMINATION_LOG", str(tmp_path / "last-words"))
    words = ["gate", "--job=movie", "--namespace=lab", "--set=run.name=movie", "--set=checkpoint.url=s3://giblet"]
    words += ["--set=verify.patience_seconds=1", "--set=telemetry.metrics_port=0", "--set=checkpoint.max_attempts=1"]
    with dead_endpoint() as nobody:
        address = s3_server.endpoint_url if fault == "wrong secret" else nobody
        assert main([*words, f"--set=checkpoint.endpoint_url={address}"]) == code
    assert "giblet: error:" in capsys.readouterr().err
    assert json.loads((tmp_path / "last-words").read_text())["exit_code"] == code
