"""A cluster built from the parts in this package: up, down, status."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from localcluster import addons
from localcluster.controlplane import ControlPlane, choose_ports
from localcluster.images import Image, ImageCache, push
from localcluster.kube import ADD_ONS, Kubectl
from localcluster.machine import MACHINE, Machine, cgroups_left, machines, marked_processes, remove_cgroups
from localcluster.node import Node, remember_kernel_settings, restore_kernel_settings
from localcluster.record import Record
from localcluster.settings import MAX_NODES, Paths
from localcluster.shell import ClusterError, wait_for
from localcluster.steps import Step, Steps
from localcluster.tools import Toolbox

_PREFERRED_PORTS = {"api": 6443, "registry": 5001}
_KERNEL_FILE = "kernel-settings.json"


def cannot_run_here() -> str | None:
    """Why this machine cannot hold a local cluster, in a few words; None when it can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"needs Linux on x86_64, and this is {platform.system()} on {platform.machine()}"
    if os.geteuid() != 0:
        return "needs root, for namespaces and control groups"
    if not Path("/sys/fs/cgroup").is_dir():
        return "needs control groups at /sys/fs/cgroup"
    return None


@dataclass
class LocalCluster:
    """One cluster, whose whole state is in `paths.state` and in processes that carry its identity."""

    paths: Paths

    def __post_init__(self) -> None:
        self.tools = Toolbox(self.paths.cache)
        self.images = ImageCache(self.paths.cache / "images")
        self.control_plane = ControlPlane(self.paths, self.tools)

    @property
    def kubectl(self) -> Kubectl:
        """The kubectl that was built for it, or any other when that is gone from the cache."""
        built = self.tools.go("kubectl")
        return Kubectl(
            built if built.exists() else "kubectl", self.paths.kubeconfig, self.paths.state / "kubectl-cache"
        )

    def up(self, *, nodes: int, gpus: int, steps: Steps) -> float:
        """Start what is not running, until every add-on is ready. Returns the seconds that it took."""
        if (reason := cannot_run_here()) is not None:
            remedy = "set KUBECONFIG to a cluster that you have, or start a Docker engine (for kind)"
            raise ClusterError(f"a local cluster cannot be built here: it {reason}", remedy=remedy)
        if not 1 <= nodes <= MAX_NODES:
            raise ClusterError(f"--nodes {nodes}: allowed is 1 to {MAX_NODES}")
        reachable_state(self.paths)
        seconds = self.build(steps)
        images = [self.images.image(spec) for spec in addons.image_specs(self.tools)]
        fresh = self.control_plane.machine.init_pid is None
        return seconds + steps.run(self._start_steps(nodes, gpus, images), learn=fresh)

    def build(self, steps: Steps) -> float:
        """Fetch and build what is not cached: programs first, then images of them. Starts nothing."""
        seconds = steps.run(self.tools.missing())
        unbuilt = [spec for spec in addons.image_specs(self.tools) if not self.images.built(spec)]
        images = [Step(f"image {spec.name}", partial(self.images.image, spec), 2) for spec in unbuilt]
        return seconds + steps.run(images)

    def _start_steps(self, nodes: int, gpus: int, images: list[Image]) -> list[Step]:
        ports = self._ports()
        references = {image.name: f"localhost:{ports['registry']}/{image.name}:{image.tag}" for image in images}
        record = Record("local", nodes=nodes, gpus=gpus, ports=ports, images=references)
        workers = [Node(self.control_plane, number) for number in range(1, nodes + 1)]
        names = [node.name for node in workers]
        deployments = [("kube-system", "coredns"), *ADD_ONS]

        def control_plane() -> None:
            record.save(self.paths.record)
            remember_kernel_settings(self.paths.state / _KERNEL_FILE)
            self.control_plane.start_machine()
            self.control_plane.issue_certificates()
            self.control_plane.start_registry()
            self.control_plane.start_api()
            self.control_plane.start_controllers()
            self.control_plane.open_loopback(record.ports)

        def push_images() -> None:
            wait_for("the image registry", lambda: _pushed(images, record.ports["registry"]), timeout_seconds=60)

        def start_nodes() -> None:
            for node in workers:
                node.start(image_host=f"localhost:{record.ports['registry']}", pause_image=references["pause"])
            self._remove_nodes_beyond(names)

        def apply() -> None:
            for folder in addons.write_kustomizations(self.paths.state / "add-ons", self.tools, references):
                self.kubectl.apply(folder)

        def add_ons_ready() -> None:
            self.kubectl.wait_for_deployments(deployments, timeout_seconds=180)

        return [
            Step("start the control plane", control_plane, 9),
            Step("push images to the local registry", push_images, 3),
            Step(f"start {nodes} node(s)", start_nodes, 2),
            Step("apply CoreDNS, operator, S3 and Prometheus", apply, 5),
            Step("wait for the nodes", lambda: self._nodes_ready(names, gpus), 6),
            Step("wait for the add-ons", add_ons_ready, 15),
        ]

    def _ports(self) -> dict[str, int]:
        """The recorded ports while they are in use by this cluster, else ones that are free now."""
        recorded = Record.load(self.paths.record)
        known = recorded.ports if recorded is not None and recorded.ports else _PREFERRED_PORTS
        if self.control_plane.machine.daemon_pid("forward") is not None:
            return known
        return choose_ports(known)

    def _nodes_ready(self, names: list[str], gpus: int) -> None:
        self.kubectl.wait_for_nodes(names, timeout_seconds=90)
        if gpus:
            self.kubectl.pretend_gpus(names, gpus)

    def _remove_nodes_beyond(self, names: list[str]) -> None:
        """Nodes of an earlier, larger start."""
        for name in machines(self.paths) - {self.control_plane.machine.name, *names}:
            self.kubectl.run("delete", "node", name, "--ignore-not-found")
            Machine(self.paths, name).stop()
            remove_cgroups(f"{self.paths.cgroup}/{name}")

    def down(self, steps: Steps) -> float:
        """End every process of this cluster, and remove what is left of it; the caches stay."""

        def stop() -> None:
            for name in sorted(machines(self.paths)):
                Machine(self.paths, name).stop()

        def clean() -> None:
            remove_cgroups(self.paths.cgroup)
            restore_kernel_settings(self.paths.state / _KERNEL_FILE)
            shutil.rmtree(self.paths.state, ignore_errors=True)
            if left := self.left_behind():
                raise ClusterError(f"still there: {', '.join(left)}", remedy="ci/cluster down, once more")

        return steps.run([Step("end the cluster's processes", stop, 1), Step("remove its files", clean, 1)])

    def left_behind(self) -> list[str]:
        """What of this cluster still exists: processes, control groups, mounts, files."""
        processes = [f"process {pid}" for pid in marked_processes(MACHINE, f"{self.paths.identity}/", prefix=True)]
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        below = [f"mount {mount}" for mount in mounts if Path(mount).is_relative_to(self.paths.state)]
        files = [str(self.paths.state)] if self.paths.state.exists() else []
        return processes + cgroups_left(self.paths.cgroup) + below + files

    def status(self) -> dict[str, Any]:
        """Machines with their daemons, and, when the apiserver answers, nodes and add-ons."""
        names = sorted(machines(self.paths))
        answer: dict[str, Any] = {
            "processes": sum(1 for _ in marked_processes(MACHINE, f"{self.paths.identity}/", prefix=True)),
            "machines": names,
        }
        return answer | cluster_status(self.kubectl)


def _pushed(images: list[Image], port: int) -> bool:
    try:
        for image in images:
            push(image, port)
    except OSError:  # it has just been started
        return False
    return True


def cluster_status(kubectl: Kubectl) -> dict[str, Any]:
    """What can be asked of any cluster: whether it answers, its nodes and add-ons."""
    if not kubectl.succeeds("get", "--raw", "/readyz"):
        return {"reachable": False, "nodes": [], "add_ons": []}
    return {"reachable": True, "nodes": kubectl.node_rows(), "add_ons": kubectl.add_on_rows()}


def reachable_state(paths: Paths) -> None:
    """Raise ClusterError where a machine could not see its own files: it has its own /var and /run."""
    for folder in (paths.state, paths.cache):
        if folder.is_relative_to("/var") or folder.is_relative_to("/run"):
            remedy = "set GIBLET_CLUSTER_DIR and XDG_CACHE_HOME to folders elsewhere"
            raise ClusterError(f"{folder}: the cluster's folders cannot lie under /var or /run", remedy=remedy)
