"""The verbs on a cluster that is already there (KUBECONFIG), and on one that kind makes."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from functools import partial
from typing import Any

from localcluster.kube import ADD_ONS, Kubectl
from localcluster.local import cluster_status
from localcluster.record import Record
from localcluster.settings import REPOSITORY, Paths
from localcluster.shell import ClusterError, run, succeeds
from localcluster.steps import Step, Steps

KIND_NAME = "giblet"

# folder of k8s/ → what says that the cluster has this already
BASES = {
    "namespace": ("namespace", "giblet"),
    "operator": ("customresourcedefinition", "pytorchjobs.kubeflow.org"),
    "dev-s3": ("namespace", "giblet-s3"),
    "monitoring": ("namespace", "giblet-monitoring"),
}


def kind_can_run() -> bool:
    """Whether kind is installed and a Docker engine answers."""
    return shutil.which("kind") is not None and succeeds(["docker", "info"])


@dataclass
class GivenCluster:
    """Somebody's cluster: only what is missing is added, and only what was added is taken away."""

    paths: Paths
    kubeconfig: str

    @property
    def kubectl(self) -> Kubectl:
        """Whatever kubectl is in PATH, on the given kubeconfig."""
        return Kubectl("kubectl", self.kubeconfig, self.paths.cache / "kubectl-cache")

    def up(self, *, gpus: int, steps: Steps) -> float:
        """Apply the bases of k8s/ that the cluster lacks, and wait for them."""
        if gpus:
            remedy = "leave --gpus away, or unset KUBECONFIG for a cluster of its own"
            raise ClusterError("--gpus changes nodes, and these are not ours to change", remedy=remedy)
        if not self.kubectl.succeeds("get", "--raw", "/readyz"):
            raise ClusterError(f"no answer from the cluster in {self.kubeconfig}", remedy="kubectl cluster-info")
        before = Record.load(self.paths.record)
        installed = list(before.installed) if before is not None else []
        installed += [base for base, mark in BASES.items() if base not in installed and not self._has(*mark)]
        record = Record("kubeconfig", installed=installed, kubeconfig=self.kubeconfig)
        record.save(self.paths.record)
        wanted = [Step(f"apply k8s/{base}", partial(self._apply, base), 8) for base in installed]
        ready = Step("wait for the add-ons", lambda: self._wait(installed), 60)
        return steps.run([*wanted, ready])

    def down(self, steps: Steps) -> float:
        """Delete what `up` applied, last first; the cluster itself stays as it was."""
        record = Record.load(self.paths.record)
        installed = record.installed if record is not None else []
        delete = [Step(f"delete k8s/{base}", partial(self._delete, base), 20) for base in reversed(installed)]
        seconds = steps.run(delete)
        shutil.rmtree(self.paths.state, ignore_errors=True)
        return seconds

    def status(self) -> dict[str, Any]:
        """Nodes and add-ons of the cluster."""
        return cluster_status(self.kubectl)

    def _has(self, kind: str, name: str) -> bool:
        return self.kubectl.succeeds("get", kind, name)

    def _apply(self, base: str) -> None:
        self.kubectl.apply(REPOSITORY / "k8s" / base)

    def _delete(self, base: str) -> None:
        folder = REPOSITORY / "k8s" / base
        self.kubectl.run("delete", "--ignore-not-found", "-k", folder, timeout_seconds=180)

    def _wait(self, installed: list[str]) -> None:
        bases = dict(zip(("operator", "dev-s3", "monitoring"), ADD_ONS, strict=True))
        added = [deployment for base, deployment in bases.items() if base in installed]
        self.kubectl.wait_for_deployments(added, timeout_seconds=300)


@dataclass
class KindCluster:
    """A cluster of kind's: containers of a Docker engine as nodes, images from public registries."""

    paths: Paths

    @property
    def kubectl(self) -> Kubectl:
        """Whatever kubectl is in PATH, on the kubeconfig that kind wrote."""
        return Kubectl("kubectl", self.paths.kubeconfig, self.paths.state / "kubectl-cache")

    def up(self, *, nodes: int, gpus: int, steps: Steps) -> float:
        """Make the cluster unless it is there, and apply k8s/dev."""

        def create() -> None:
            Record("kind", nodes=nodes, gpus=gpus).save(self.paths.record)
            if KIND_NAME not in run(["kind", "get", "clusters"]).split():
                roles = [{"role": "control-plane"}, *({"role": "worker"} for _ in range(nodes))]
                config = json.dumps({"kind": "Cluster", "apiVersion": "kind.x-k8s.io/v1alpha4", "nodes": roles})
                command = ["kind", "create", "cluster", f"--name={KIND_NAME}", "--config=-"]
                run([*command, f"--kubeconfig={self.paths.kubeconfig}"], stdin=config)

        def ready() -> None:
            self.kubectl.wait_for_deployments(ADD_ONS, timeout_seconds=300)
            workers = [row["name"] for row in self.kubectl.node_rows() if "worker" in row["name"]]
            if gpus:
                self.kubectl.pretend_gpus(workers, gpus)

        apply = Step("apply k8s/dev", lambda: self.kubectl.apply(REPOSITORY / "k8s/dev"), 10)
        return steps.run([Step("kind create cluster", create, 60), apply, Step("wait for the add-ons", ready, 90)])

    def down(self, steps: Steps) -> float:
        """Delete the cluster."""
        delete = Step("kind delete cluster", lambda: run(["kind", "delete", "cluster", f"--name={KIND_NAME}"]), 5)
        seconds = steps.run([delete])
        shutil.rmtree(self.paths.state, ignore_errors=True)
        return seconds

    def status(self) -> dict[str, Any]:
        """Nodes and add-ons of the cluster."""
        return cluster_status(self.kubectl)


def given_kubeconfig(paths: Paths) -> str | None:
    """KUBECONFIG, unless it is unset or names the kubeconfig that a cluster of ours wrote."""
    given = os.environ.get("KUBECONFIG", "")
    return None if given in ("", str(paths.kubeconfig)) else given
