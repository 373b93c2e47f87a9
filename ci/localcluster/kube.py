"""kubectl on one cluster: the few things that the verbs ask of it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localcluster.shell import ClusterError, run, succeeds, wait_for

GPU = "nvidia.com/gpu"

# (namespace, deployment): what is ready when the cluster is
ADD_ONS = (("kubeflow", "training-operator"), ("giblet-s3", "s3"), ("giblet-monitoring", "prometheus"))


@dataclass(frozen=True)
class Kubectl:
    """A kubectl program and the kubeconfig it uses."""

    program: str | Path
    kubeconfig: str | Path
    cache: Path

    def run(self, *words: str | Path, stdin: str | None = None, timeout_seconds: float | None = 120) -> str:
        """Run kubectl to its end; raises ClusterError with what it said."""
        return run([*self._head(), *words], stdin=stdin, timeout_seconds=timeout_seconds)

    def succeeds(self, *words: str) -> bool:
        """Whether kubectl exits 0."""
        return succeeds([*self._head(), "--request-timeout=5s", *words])

    def json(self, *words: str) -> dict[str, Any]:
        """What `kubectl get … -o json` answers."""
        answer: dict[str, Any] = json.loads(self.run(*words, "-o", "json"))
        return answer

    def _head(self) -> list[str]:
        return [str(self.program), f"--kubeconfig={self.kubeconfig}", f"--cache-dir={self.cache}"]

    def apply(self, folder: Path) -> None:
        """Server-side: the PyTorchJob definition is larger than the annotation that a client-side apply writes."""
        self.run("apply", "--server-side", "--force-conflicts", "-k", folder, timeout_seconds=180)

    def wait_for_nodes(self, names: Sequence[str], *, timeout_seconds: int) -> None:
        """Until each node has registered and is Ready."""
        nodes = [f"node/{name}" for name in names]
        wait_for(
            f"registration of {', '.join(names)}",
            lambda: self.succeeds("get", *nodes),
            timeout_seconds=timeout_seconds,
            poll_seconds=0.5,
        )
        self.run("wait", "--for=condition=Ready", *nodes, f"--timeout={timeout_seconds}s", timeout_seconds=None)

    def wait_for_deployments(self, deployments: Sequence[tuple[str, str]], *, timeout_seconds: int) -> None:
        """Until each is Available; otherwise say which pods are not well, and what happened to them."""
        deadline = time.monotonic() + timeout_seconds
        for namespace, name in deployments:
            left = max(1, round(deadline - time.monotonic()))
            options = ("--namespace", namespace, f"--timeout={left}s")
            try:
                self.run("rollout", "status", f"deployment/{name}", *options, timeout_seconds=None)
            except ClusterError as error:
                message = f"{namespace}/{name} is not ready after {timeout_seconds} s\n{self._story(namespace, name)}"
                raise ClusterError(message) from error

    def _story(self, namespace: str, deployment: str) -> str:
        """Why a deployment's pods are not well: the pods, the last events, and what its last container said."""
        events = self.run("get", "events", "--namespace", namespace, "--sort-by=.lastTimestamp").splitlines()
        pods = self.run("get", "pods", "--namespace", namespace, "-o", "wide")
        try:
            logs = self.run("logs", f"deployment/{deployment}", "--namespace", namespace, "--tail=8")
        except ClusterError as error:
            logs = str(error)
        return "\n".join([pods, *events[-12:], logs])

    def pretend_gpus(self, nodes: Sequence[str], count: int) -> None:
        """Have nodes offer `nvidia.com/gpu`, which the scheduler then counts as it counts real ones."""
        amount = {GPU: str(count)}
        patch = json.dumps({"status": {"capacity": amount, "allocatable": amount}})
        for node in nodes:
            self.run("patch", "node", node, "--subresource=status", "--type=merge", f"--patch={patch}")

    def node_rows(self) -> list[dict[str, str]]:
        """One row a node: name, whether it is ready, version, GPUs offered."""
        rows = []
        for node in self.json("get", "nodes")["items"]:
            status = node["status"]
            ready = next((c["status"] for c in status.get("conditions", []) if c["type"] == "Ready"), "Unknown")
            rows.append(
                {
                    "name": node["metadata"]["name"],
                    "ready": ready,
                    "version": status["nodeInfo"]["kubeletVersion"],
                    "gpus": status.get("allocatable", {}).get(GPU, "0"),
                }
            )
        return rows

    def add_on_rows(self, deployments: Sequence[tuple[str, str]] = ADD_ONS) -> list[dict[str, str]]:
        """One row a deployment: where it is, and how many of its pods are ready."""
        found = {_key(item): item for item in self.json("get", "deployments", "--all-namespaces")["items"]}
        return [_add_on_row(namespace, name, found.get((namespace, name))) for namespace, name in deployments]


def _key(item: Mapping[str, Any]) -> tuple[str, str]:
    return item["metadata"]["namespace"], item["metadata"]["name"]


def _add_on_row(namespace: str, name: str, item: Mapping[str, Any] | None) -> dict[str, str]:
    ready = "absent"
    if item is not None:
        ready = f"{item['status'].get('readyReplicas', 0)}/{item['spec']['replicas']}"
    return {"namespace": namespace, "name": name, "ready": ready}
