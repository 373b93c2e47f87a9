"""Nodes that do not exist: kwok keeps them Ready and says of their pods what a kubelet would. Built on demand only.

The operator, the API server, the scheduler and the controllers are the local cluster's real ones. A pod on such a node
is Running as soon as it is bound: nothing is pulled, no init container works, nothing trains.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from localcluster.controlplane import API_SERVER, ControlPlane
from localcluster.kube import GPU, Kubectl
from localcluster.settings import Paths
from localcluster.shell import wait_for
from localcluster.tools import GoProgram, Toolbox

KWOK = GoProgram("kwok", "kwok", "sigs.k8s.io/kwok/cmd/kwok", 90)
LABEL = "giblet.dev/simulated"
STAGES = (
    "node/fast/node-initialize.yaml", "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
    "pod/fast/pod-ready.yaml", "pod/fast/pod-delete.yaml",
)  # fmt: skip
"""What a kubelet would say, as kwok's own module has it; its pod-complete.yaml would end verification's Job."""
TAINT = {"key": LABEL, "value": "true", "effect": "NoSchedule"}


class SimulatedNodes:
    """`count` nodes with eight GPUs each in a running local cluster."""

    def __init__(self, paths: Paths, kubectl: Kubectl) -> None:
        self._kubectl = kubectl
        self._tools = Toolbox(paths.cache)
        self._control_plane = ControlPlane(paths, self._tools)

    def start(self, count: int) -> None:
        """Build kwok unless it is there, start it beside the API server, and have `count` nodes Ready."""
        if not self._tools.program(KWOK).exists():
            self._tools.build(KWOK)
        stages = self._tools.sources("kwok", "sigs.k8s.io/kwok") / "kustomize/stage"
        selector = f"{LABEL}=true"
        words: list[str | Path] = [
            self._tools.program(KWOK), f"--kubeconfig={self._control_plane.kubeconfig('admin')}",
            f"--master={API_SERVER}", "--manage-all-nodes=false", f"--manage-nodes-with-label-selector={selector}",
            "--node-lease-duration-seconds=40", "--server-address=127.0.0.1:10247",
            *(f"--config={stages / name}" for name in STAGES),
        ]  # fmt: skip
        self._control_plane.machine.daemon("kwok", words)
        nodes = {"apiVersion": "v1", "kind": "List", "items": [_node(number) for number in range(1, count + 1)]}
        self._kubectl.run("apply", "--server-side", "-f", "-", stdin=json.dumps(nodes), timeout_seconds=300)
        wait_for(f"{count} simulated nodes", lambda: self.ready() >= count, timeout_seconds=300, poll_seconds=1.0)

    def ready(self) -> int:
        """How many are Ready."""
        nodes = self._kubectl.json("get", "nodes", "--selector", LABEL)["items"]
        conditions = [c for node in nodes for c in node["status"].get("conditions", ()) if c["type"] == "Ready"]
        return sum(condition["status"] == "True" for condition in conditions)


def _node(number: int) -> dict[str, Any]:
    offered = {"cpu": "192", "memory": "2Ti", "pods": "110", "ephemeral-storage": "10Ti", GPU: "8"}
    name = f"simulated-{number:03d}"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {LABEL: "true", "kubernetes.io/hostname": name},
            "annotations": {"kwok.x-k8s.io/node": "fake"},
        },
        "spec": {"taints": [TAINT]},
        "status": {"capacity": offered, "allocatable": offered},
    }
