"""The chart's job at 1, 16 and 128 workers of 8 GPUs: the real operator, API server and scheduler, nodes by kwok.

Each size is one release: installed, bound, one worker lost, uninstalled. Between the stages the API server's own
counters and the operator's are read; what the cluster does anyway meanwhile (leases, watches) is not taken out, but
the tables name only what belongs to the job.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from charttools.tools import ChartTools
from localcluster.kube import Kubectl
from localcluster.local import LocalCluster
from localcluster.record import Record
from localcluster.settings import REPOSITORY, Paths
from localcluster.shell import ClusterError, run, wait_for

from scale.kwok import LABEL, TAINT, SimulatedNodes

CHART = REPOSITORY / "helm/giblet"
NAMESPACE, RELEASE, JOB = "giblet-scale", "scale", "scale-giblet"
OURS = (
    "pods",
    "services",
    "pytorchjobs",
    "events",
    "endpointslices",
    "endpoints",
    "configmaps",
    "poddisruptionbudgets",
)
_METRIC = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclasses.dataclass
class Stage:
    """One stage: how long, and the API calls meanwhile, by `VERB resource[/subresource]`."""

    seconds: float = 0.0
    calls: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def total_calls(self) -> int:
        """All calls that belong to the job."""
        return sum(self.calls.values())


@dataclasses.dataclass
class ClusterResult:
    """One release at one size."""

    workers: int
    stages: dict[str, Stage]
    seconds_to_all_pods: float
    objects: dict[str, int]
    job_bytes: int
    pod_bytes: int
    operator_memory_bytes: int
    operator_processor_seconds: float
    disruptions: str
    left_behind: list[str]


def values(workers: int) -> dict[str, Any]:
    """What is laid over configs/prod.yaml: so many workers, on simulated nodes, and a batch that all ranks share."""
    here = {"nodeSelector": {LABEL: "true"}, "tolerations": [{**TAINT, "operator": "Equal"}]}
    return {
        "image": {"repository": "registry.example.org/none", "tag": "none"},
        "workers": {"replicas": workers, "min": 1, "max": workers, "gpusPerWorker": 8},
        "rendezvous": here,
        "verify": here,
        "data": {"existingClaim": ""},
        **here,
        "config": {
            "data": {"bids": None, "prepared": "s3://none/datasets/0000"},
            "training": {"global_batch_samples": 16 * workers},
            "checkpoint": {"url": "s3://none/scale"},
        },
    }


def measure(sizes: list[int], say: Callable[[str], None]) -> list[ClusterResult]:
    """Every size in a running local cluster (`ci/cluster up`). Raises `ClusterError` without one."""
    paths = Paths.from_environment()
    record = Record.load(paths.record)
    if record is None or record.kind != "local":
        raise ClusterError("no local cluster is up", remedy="ci/cluster up --nodes 1, as root on Linux")
    kubectl = LocalCluster(paths).kubectl
    say(f"{max(sizes)} simulated nodes")
    SimulatedNodes(paths, kubectl).start(max(sizes))
    results = []
    for workers in sizes:
        say(f"{workers} workers")
        results.append(_Trial(kubectl, workers).run())
    return results


class _Trial:
    def __init__(self, kubectl: Kubectl, workers: int) -> None:
        self._kubectl, self._workers = kubectl, workers
        self._helm: list[str | Path] = [
            ChartTools.default().helm,
            f"--kubeconfig={kubectl.kubeconfig}",
            "--namespace",
            NAMESPACE,
        ]
        self._stages: dict[str, Stage] = {}

    def run(self) -> ClusterResult:
        before = self._operator()
        with tempfile.TemporaryDirectory(prefix="giblet-scale-") as folder:
            file = Path(folder) / "values.json"
            file.write_text(json.dumps(values(self._workers)))
            try:
                with self._stage("install and bind"):
                    began = time.monotonic()
                    files = ("--values", REPOSITORY / "configs/prod.yaml", "--values", file)
                    run([*self._helm, "install", RELEASE, CHART, "--create-namespace", *files], timeout_seconds=300)
                    wait_for("all workers bound", lambda: self._bound() == self._workers, timeout_seconds=600)
                    bound = time.monotonic() - began
                    wait_for("the job Running", self._running, timeout_seconds=600, poll_seconds=0.5)
                with self._stage("at rest, 30 s"):
                    time.sleep(30)
                facts = self._facts()
                with self._stage("one worker lost"):
                    self._lose(self._workers - 1)
            finally:
                with self._stage("uninstall"):
                    run([*self._helm, "uninstall", RELEASE, "--ignore-not-found", "--wait", "--cascade", "foreground"],
                        timeout_seconds=600)  # fmt: skip
                    wait_for("the end of all pods", lambda: not self._pods(), timeout_seconds=300, poll_seconds=0.5)
                    with contextlib.suppress(ClusterError):  # what stays is a result, and no failure
                        wait_for("nothing left", lambda: not self._left_behind(), timeout_seconds=60, poll_seconds=0.5)
        after = self._operator()
        return ClusterResult(
            workers=self._workers, stages=self._stages, seconds_to_all_pods=bound, left_behind=self._left_behind(),
            operator_memory_bytes=int(after["process_resident_memory_bytes"]),
            operator_processor_seconds=after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"],
            **facts,
        )  # fmt: skip

    @contextlib.contextmanager
    def _stage(self, name: str) -> Any:
        before, began = self._calls(), time.monotonic()
        yield
        seconds = time.monotonic() - began
        calls = self._calls()
        calls.subtract(before)
        self._stages[name] = Stage(seconds, {call: count for call, count in sorted(calls.items()) if count > 0})

    def _calls(self) -> Counter[str]:
        """Writes that the API server has answered, of the resources that belong to the job."""
        found: Counter[str] = Counter()
        for name, labels, value in _metrics(self._kubectl.run("get", "--raw", "/metrics")):
            if name == "apiserver_request_total" and labels.get("resource") in OURS:
                inside = f"/{labels['subresource']}" if labels.get("subresource") else ""
                if labels["verb"] not in ("GET", "LIST", "WATCH"):
                    found[f"{labels['verb']} {labels['resource']}{inside}"] += int(value)
        return found

    def _operator(self) -> dict[str, float]:
        pods = self._kubectl.json(
            "get", "pods", "--namespace", "kubeflow", "--selector=control-plane=kubeflow-training-operator"
        )
        name = pods["items"][0]["metadata"]["name"]
        raw = self._kubectl.run("get", "--raw", f"/api/v1/namespaces/kubeflow/pods/{name}:8080/proxy/metrics")
        return {name: value for name, labels, value in _metrics(raw) if name.startswith("process_") and not labels}

    def _pods(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self._kubectl.json("get", "pods", "--namespace", NAMESPACE)["items"]
        return items

    def _bound(self) -> int:
        return sum(_is_worker(pod) and "nodeName" in pod["spec"] for pod in self._pods())

    def _job(self) -> dict[str, Any]:
        return self._kubectl.json("get", "pytorchjob", JOB, "--namespace", NAMESPACE)

    def _running(self) -> bool:
        replicas = self._job().get("status", {}).get("replicaStatuses", {}).get("Worker", {})
        return bool(replicas.get("active") == self._workers)

    def _facts(self) -> dict[str, Any]:
        kinds = (
            "pods,services,endpointslices,configmaps,secrets,serviceaccounts,networkpolicies,events,deployments,jobs"
        )
        listed = self._kubectl.json(
            "get", f"{kinds},pytorchjobs,poddisruptionbudgets,roles,rolebindings", "--namespace", NAMESPACE
        )
        pods = self._kubectl.json("get", "pods", "--namespace", NAMESPACE, "--show-managed-fields")["items"]
        budget = self._kubectl.json("get", "poddisruptionbudgets", "--namespace", NAMESPACE)["items"]
        job = self._kubectl.json("get", "pytorchjob", JOB, "--namespace", NAMESPACE, "--show-managed-fields")
        allowed = f"{budget[0]['status'].get('disruptionsAllowed')} disruptions allowed" if budget else "no budget"
        return {
            "objects": dict(sorted(Counter(item["kind"] for item in listed["items"]).items())),
            "job_bytes": len(json.dumps(job)),
            "pod_bytes": max(len(json.dumps(pod)) for pod in pods if _is_worker(pod)),
            "disruptions": allowed,
        }

    def _lose(self, number: int) -> None:
        """One worker's container is killed (137): the operator takes the pod away and makes another."""
        name = f"{JOB}-worker-{number}"
        pod = self._kubectl.json("get", "pod", name, "--namespace", NAMESPACE)
        killed = {"exitCode": 137, "reason": "Error", "finishedAt": pod["status"]["startTime"]}
        container = {**pod["status"]["containerStatuses"][0], "ready": False, "state": {"terminated": killed}}
        patch = {"status": {"phase": "Failed", "containerStatuses": [container]}}
        self._kubectl.run(
            "patch",
            "pod",
            name,
            "--namespace",
            NAMESPACE,
            "--subresource=status",
            "--type=merge",
            f"--patch={json.dumps(patch)}",
        )

        def replaced() -> bool:
            now = [p for p in self._pods() if p["metadata"]["name"] == name and p["status"].get("phase") == "Running"]
            return bool(now) and now[0]["metadata"]["uid"] != pod["metadata"]["uid"]

        wait_for(f"another {name}", replaced, timeout_seconds=300)

    def _left_behind(self) -> list[str]:
        kinds = (
            "all,configmaps,secrets,serviceaccounts,networkpolicies,pytorchjobs,poddisruptionbudgets,roles,rolebindings"
        )
        items = self._kubectl.json("get", kinds, "--namespace", NAMESPACE)["items"]
        names = [f"{item['kind']}/{item['metadata']['name']}" for item in items]
        return [name for name in names if name not in ("ConfigMap/kube-root-ca.crt", "ServiceAccount/default")]


def _is_worker(pod: dict[str, Any]) -> bool:
    return bool(pod["metadata"]["labels"].get("app.kubernetes.io/component") == "worker")


def _metrics(text: str) -> list[tuple[str, dict[str, str], float]]:
    found = (_METRIC.match(line) for line in text.splitlines())
    return [(m["name"], dict(_LABEL.findall(m["labels"] or "")), float(m["value"])) for m in found if m is not None]
