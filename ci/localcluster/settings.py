"""Folders, addresses and versions of the local cluster: every constant stands here."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

KUBERNETES_VERSION = "v1.35.4"  # the last that works with Debian 12's containerd 1.6; 1.36 wants containerd 2
OPERATOR_MODULE = "github.com/kubeflow/training-operator"
PROMETHEUS_MODULE = "github.com/prometheus/prometheus"

# Addresses exist only inside the cluster's own network namespaces; two clusters on one machine may share them.
CONTROL_PLANE_IP = "10.88.0.1"
BRIDGE_PREFIX = 24
SERVICE_CIDR = "10.96.0.0/16"
KUBERNETES_SERVICE_IP = "10.96.0.1"
DNS_SERVICE_IP = "10.96.0.10"
POD_CIDR = "10.244.0.0/16"
API_PORT = 6443
REGISTRY_PORT = 5001
MAX_NODES = 9


def node_name(number: int) -> str:
    """node1, node2, …"""
    return f"node{number}"


def node_ip(number: int) -> str:
    """A node's address on the control plane's bridge."""
    return f"10.88.0.{10 + number}"


def node_pod_cidr(number: int) -> str:
    """The addresses of one node's pods."""
    return f"10.244.{number}.0/24"


@dataclass(frozen=True)
class Paths:
    """Where one cluster keeps what it needs. `state` goes away with the cluster; `cache` serves the next one."""

    state: Path
    cache: Path

    @classmethod
    def from_environment(cls) -> Paths:
        """GIBLET_CLUSTER_DIR, else XDG's state folder; the cache is XDG's."""
        home = Path.home()
        state_home = Path(os.environ.get("XDG_STATE_HOME") or home / ".local/state")
        cache_home = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
        state = Path(os.environ.get("GIBLET_CLUSTER_DIR") or state_home / "giblet/cluster")
        return cls(state.resolve(), (cache_home / "giblet/cluster").resolve())

    @property
    def identity(self) -> str:
        """Six letters that mark this cluster's processes and control groups; one state folder, one cluster."""
        return hashlib.sha256(str(self.state).encode()).hexdigest()[:6]

    @property
    def cgroup(self) -> str:
        """The control group, in every hierarchy, under which the nodes' pods live."""
        return f"giblet-{self.identity}"

    @property
    def kubeconfig(self) -> Path:
        """The stable path that is printed: valid as long as the cluster runs."""
        return self.state / "kubeconfig"

    @property
    def record(self) -> Path:
        """What `up` decided: kind of cluster, ports, nodes; written before anything is started."""
        return self.state / "cluster.json"

    @property
    def lock(self) -> Path:
        """Held while a verb runs; outside `state`, which `down` removes."""
        return self.state.parent / f".{self.state.name}.lock"

    def log(self, name: str) -> Path:
        """The log of one daemon."""
        return self.state / "logs" / f"{name}.log"
