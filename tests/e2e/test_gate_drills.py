"""The gate on a real cluster: a real operator's conditions, real permissions, a real API server that goes away.

In a namespace of its own, which is removed at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from giblet.checkpoint.resume import verified_ref
from giblet.errors import DeadlineError
from giblet.storage import LocalStorage
from giblet.telemetry.metrics import Metrics
from giblet.verify import verify
from giblet.verify.gate import Gate, GateResult
from giblet.verify.jobs import JobsDeniedError
from giblet.verify.kubernetes_jobs import KubernetesJobs
from giblet.verify.preflight import Permission, kubernetes_may, permissions_of_the_gate
from tests.support.cluster import TestCluster
from tests.support.gate import commit_word, heard, judged_by_its_word, record_start
from tests.support.weights import small_config, trained_tensors, training_state, write_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BASE = small_config()
JOB = "movie"
PATIENCE_SECONDS = 4.0
LONG_SECONDS = 180.0


@dataclass
class Place:
    """A namespace with the verifier's service account, and the job in it."""

    cluster: TestCluster
    namespace: str
    image: str
    kubeconfig: Path
    folder: Path

    def kubectl(self, *words: str, check: bool = True) -> str:
        return self.cluster.kubectl("-n", self.namespace, *words, check=check).stdout

    def start(self, script: str, *, suspend: bool = False) -> None:
        self.cluster.apply(job_of(self.namespace, self.image, script, suspend))

    def remove(self) -> None:
        self.kubectl("delete", "pytorchjob", JOB, "--ignore-not-found", "--wait=true")

    def jobs(self) -> KubernetesJobs:
        return KubernetesJobs.open(JOB, self.namespace)

    def seen(self) -> dict[str, Any]:
        return json.loads(self.kubectl("get", "pytorchjob", JOB, "-o", "json"))

    def annotations(self) -> dict[str, str]:
        found = self.seen()["metadata"].get("annotations", {})
        return {name: value for name, value in found.items() if name.startswith("giblet.dev/")}

    def events(self) -> list[tuple[str, str]]:
        """Type and reason of the gate's events on this very job."""
        uid = self.seen()["metadata"]["uid"]
        found = json.loads(self.kubectl("get", "events", "-o", "json"))["items"]
        return [
            (event["type"], event["reason"])
            for event in found
            if event["involvedObject"].get("uid") == uid and event.get("reportingComponent") == "giblet-gate"
        ]

    def config(self, **settings: object) -> Any:
        quick = {
            "poll_seconds": 0.5, "patience_seconds": PATIENCE_SECONDS, "deadline_seconds": 2 * LONG_SECONDS,
            "restore": False, **settings,
        }  # fmt: skip
        verified = BASE.verify.model_copy(update=quick)
        return BASE.model_copy(update={"verify": verified, "run": BASE.run.model_copy(update={"name": JOB})})

    def gate(self, storage: LocalStorage, **settings: object) -> Gate:
        return Gate(self.config(**settings), storage, self.jobs(), Metrics(JOB), judge=judged_by_its_word)


def job_of(namespace: str, image: str, script: str, suspend: bool) -> dict[str, Any]:
    container = {
        "name": "pytorch", "image": image, "command": ["sh", "-c", script],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }  # fmt: skip
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    worker = {"replicas": 1, "restartPolicy": "Never", "template": {"spec": pod}}
    return {
        "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": JOB, "namespace": namespace},
        "spec": {"runPolicy": {"suspend": suspend}, "pytorchReplicaSpecs": {"Worker": worker}},
    }  # fmt: skip


def rights(namespace: str) -> list[dict[str, Any]]:
    """The namespace, and in it what the chart gives the verifier: no more than the contract in docs/architecture.md."""
    meta = {"name": "movie-verify", "namespace": namespace}
    group = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {
            "name": namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": meta, "rules": [
            {"apiGroups": ["kubeflow.org"], "resources": ["pytorchjobs"], "resourceNames": [JOB],
             "verbs": ["get", "list", "watch", "patch"]},
            {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]}]},
        {"apiVersion": f"{group}/v1", "kind": "RoleBinding", "metadata": meta,
         "roleRef": {"apiGroup": group, "kind": "Role", "name": "movie-verify"},
         "subjects": [{"kind": "ServiceAccount", **meta}]},
    ]  # fmt: skip


@pytest.fixture(scope="module")
def place(two_nodes: tuple[TestCluster, bool], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    cluster, _ = two_nodes
    namespace = f"giblet-gate-{uuid.uuid4().hex[:6]}"
    folder = tmp_path_factory.mktemp("gate")
    try:
        cluster.apply(*rights(namespace))
        settings = yaml.safe_load((cluster.state / "kubeconfig").read_text())
        token = cluster.kubectl("-n", namespace, "create", "token", "movie-verify", "--duration=2h").stdout.strip()
        settings["users"] = [{"name": settings["users"][0]["name"], "user": {"token": token}}]
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(settings))
        yield Place(cluster, namespace, cluster.status()["images"]["busybox"], kubeconfig, folder)
    finally:
        cluster.kubectl("delete", "namespace", namespace, "--ignore-not-found", "--wait=false")


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path)


@pytest.fixture(autouse=True)
def _as_the_verifier(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("KUBECONFIG", str(place.kubeconfig))
    yield
    place.remove()


@pytest.fixture
def told() -> Iterator[Callable[[], str]]:
    """What was logged so far."""
    with heard() as stream:
        yield stream.getvalue


@contextlib.contextmanager
def running(gate: Gate) -> Iterator[Future[GateResult]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(gate.run)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.5)


@pytest.mark.parametrize(("script", "bad", "event"), [
    ("sleep 2", False, ("Normal", "CheckpointAccepted")),
    ("sleep 2; exit 3", True, ("Warning", "CheckpointRejected")),
])  # fmt: skip
def test_a_job_that_ended(place, storage, script, bad, event):
    """With the real judge: real weights, one of them NaN in the second case."""
    import torch

    tensors = trained_tensors(BASE, 8)
    if bad:
        tensors["model.encoder.layer5.0.weight"][0, 0] = torch.nan
    written = write_checkpoint(storage, tensors, training_state(BASE, 8), step=8)
    place.start(script)
    result = Gate(place.config(), storage, place.jobs(), Metrics(JOB), judge=verify).run()
    assert result.job.startswith("Failed" if bad else "Succeeded")
    assert result.exit_code == int(bad)
    assert verified_ref(storage, JOB) == (None if bad else written.ref)
    assert place.annotations() == {
        "giblet.dev/verdict": "UNSAFE" if bad else "SAFE",
        "giblet.dev/verified-step": "none" if bad else "8",
        "giblet.dev/report": f"{storage.url}/{written.ref.report_key}",
    }
    assert place.events() == [event]


def test_preflight_asks_the_api_server_what_the_verifier_may(place):
    may = kubernetes_may(place.namespace)
    assert [may(permission) for permission in permissions_of_the_gate(JOB)] == [True, True, True]
    assert not may(Permission("delete", "kubeflow.org", "pytorchjobs", JOB))
    assert not may(Permission("patch", "kubeflow.org", "pytorchjobs", "another"))


def test_permissions_taken_away(place, storage, told):
    record_start(storage, 1)
    commit_word(storage, 4)
    place.start("sleep 3600")
    try:
        with running(place.gate(storage, when="each")) as ended:
            until(lambda: place.annotations().get("giblet.dev/verified-step") == "4")
            place.kubectl("delete", "rolebinding", "movie-verify")
            until(lambda: _refused(place))
            commit_word(storage, 8)
            record_start(storage, 1, exit_code=0)
            result = ended.result(timeout=LONG_SECONDS)
    finally:
        place.cluster.apply(*rights(place.namespace))
    assert (result.exit_code, result.ref.step) == (0, 8)
    assert "start 1: done, exit 0" in result.job
    assert place.annotations()["giblet.dev/verified-step"] == "4", "it could not say so any more"
    assert "403" in told()
    assert "get and patch pytorchjobs movie" in told()


def _refused(place: Place) -> bool:
    try:
        place.jobs().look()
    except JobsDeniedError:
        return True
    return False


def test_the_job_deleted_under_it(place, storage):
    commit_word(storage, 4)
    place.start("sleep 3600")
    until(lambda: place.seen().get("status", {}).get("conditions"))
    with running(place.gate(storage)) as ended:
        place.remove()
        commit_word(storage, 6, bad=True)
        result = ended.result(timeout=LONG_SECONDS)
    assert (result.exit_code, result.ref.step, result.job) == (1, 6, "the job was deleted")


def test_the_job_replaced_by_one_of_the_same_name(place, storage):
    commit_word(storage, 4)
    place.start("sleep 3600")
    first = place.jobs().look()
    assert first is not None
    with running(place.gate(storage, patience_seconds=LONG_SECONDS)) as ended:
        place.remove()
        place.start("sleep 2")
        assert place.jobs().annotate(first, {"giblet.dev/verdict": "of another job"}) is False
        result = ended.result(timeout=LONG_SECONDS)
    assert result.job.startswith("Succeeded")
    assert place.annotations()["giblet.dev/verdict"] == "SAFE"


def test_a_suspended_job_and_one_that_never_ends(place, storage):
    commit_word(storage, 4)
    place.start("sleep 3600", suspend=True)
    until(lambda: (found := place.jobs().look()) is not None and found.phase == "Suspended")
    with running(place.gate(storage, deadline_seconds=3.0)) as ended:
        time.sleep(8)
        assert not ended.done(), "suspended time does not count"
        place.kubectl("patch", "pytorchjob", JOB, "--type=merge", "-p", '{"spec": {"runPolicy": {"suspend": false}}}')
        with pytest.raises(DeadlineError, match="step 4, is SAFE"):
            ended.result(timeout=LONG_SECONDS)


def test_an_api_server_that_is_away_for_a_while(place, storage, tmp_path, monkeypatch):
    settings = yaml.safe_load(place.kubeconfig.read_text())
    host, _, port = settings["clusters"][0]["cluster"]["server"].removeprefix("https://").partition(":")
    commit_word(storage, 4)
    place.start("sleep 6")
    with Wire((host, int(port))) as wire:
        settings["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{wire.port}"
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(settings))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        with running(place.gate(storage)) as ended:
            until(lambda: wire.connections > 0)
            wire.cut()
            until(lambda: place.seen().get("status", {}).get("completionTime"))
            time.sleep(2 * PATIENCE_SECONDS)
            assert not ended.done(), "nothing says that the run has ended"
            wire.mend()
            result = ended.result(timeout=LONG_SECONDS)
    assert (result.exit_code, result.job.startswith("Succeeded")) == (0, True)
    assert place.annotations()["giblet.dev/verdict"] == "SAFE"


def test_the_process_serves_metrics_and_stops_when_asked_to(place, storage, tmp_path):
    commit_word(storage, 4)
    place.start("sleep 3600")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    tree = json.loads(place.config().model_dump_json())
    tree["checkpoint"]["url"] = str(storage.url)
    tree["telemetry"]["metrics_port"] = port
    config = tmp_path / "giblet.yaml"
    config.write_text(yaml.safe_dump({"config": tree}))
    environment = {**os.environ, "GIBLET_CONFIG": str(config), "GIBLET_JOB": JOB, "GIBLET_NAMESPACE": place.namespace}
    command = [sys.executable, "-m", "giblet", "gate"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        told = iter(process.stderr.readline, "")
        assert any("job is Running" in line for line in told)
        until(lambda: 'giblet_job_active{run="movie"} 1.0' in _scrape(port))
        scraped = _scrape(port)
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(LONG_SECONDS) == 143
    assert 'giblet_verify_verified_step{run="movie"} 0.0' in scraped
    assert "asked to stop (SIGTERM)" in rest
    assert "last metrics" not in rest, "asked to stop, it waits for no scrape"


def _scrape(port: int) -> str:
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return answer.read().decode()


class Wire:
    """A TCP relay to the API server that can be cut: connections end, and new ones are refused."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target, self._open, self.connections = target, True, 0
        self._pairs: list[socket.socket] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Wire:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self._thread.join()

    def cut(self) -> None:
        with self._lock:
            self._open = False
            for end in self._pairs:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            self._pairs.clear()

    def mend(self) -> None:
        self._open = True

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if not self._open:
                    near.close()
                    continue
                far = socket.create_connection(self._target)
                self._pairs += [near, far]
                self.connections += 1
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=_relay, args=(source, sink), daemon=True).start()


def _relay(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError), source:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
