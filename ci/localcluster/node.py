"""One node: a machine joined to the control plane's bridge, on which run containerd, kubelet and kube-proxy."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from localcluster.controlplane import API_SERVER, BRIDGE, ControlPlane, start_kube_proxy
from localcluster.machine import Machine, make_cgroups
from localcluster.settings import (
    BRIDGE_PREFIX,
    CONTROL_PLANE_IP,
    DNS_SERVICE_IP,
    REGISTRY_PORT,
    Paths,
    node_ip,
    node_name,
    node_pod_cidr,
)
from localcluster.shell import tail, wait_for, write_atomically
from localcluster.tools import Toolbox

# Paths as the node's own mount namespace has them; outside they lie in <state>/<node>/var, or in memory.
_SOCKET = "/run/containerd/containerd.sock"
_CNI = "/var/lib/giblet/cni"
_CERTS = "/var/lib/giblet/registries"

# What a kubelet sets for the whole host, which must be as before when the cluster is gone.
KERNEL_SETTINGS = (
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
)


class Node:
    """Starts one node's parts; each method may be called again, and does what is still missing."""

    def __init__(self, control_plane: ControlPlane, number: int) -> None:
        self.control_plane = control_plane
        self.paths: Paths = control_plane.paths
        self.tools: Toolbox = control_plane.tools
        self.number = number
        self.name = node_name(number)
        self.machine = Machine(self.paths, self.name)

    def start(self, *, image_host: str, pause_image: str) -> None:
        """The machine, its network, and the daemons; the node registers itself a few seconds later."""
        self._start_machine()
        make_cgroups(f"{self.paths.cgroup}/{self.name}")
        self._write_containerd_config(image_host, pause_image)
        containerd: list[str | Path] = [
            self.tools.debian("containerd"),
            "--config",
            self.machine.folder / "containerd.toml",
        ]
        self.machine.daemon("containerd", containerd)
        pid = self.machine.init_pid
        wait_for(
            f"containerd on {self.name}",
            Path(f"/proc/{pid}/root{_SOCKET}").exists,
            timeout_seconds=20,
            hint=lambda: tail(self.paths.log(f"{self.name}-containerd")),
        )
        self._start_kubelet()
        start_kube_proxy(self.machine, self.tools, self.control_plane.kubeconfig("kube-proxy"), node=self.name)

    def _start_machine(self) -> None:
        self.machine.start(self.tools.debian("catatonit"))
        if self.machine.configured.exists():
            return
        control_plane = self.control_plane.machine
        outer = f"veth{self.number}"
        with contextlib.suppress(Exception):  # a node of this number that ended a moment ago
            control_plane.run("ip", "link", "delete", outer)
        inner = ("peer", "name", "eth0", "netns", str(self.machine.init_pid))
        control_plane.run("ip", "link", "add", outer, "type", "veth", *inner)
        control_plane.run("ip", "link", "set", outer, "master", BRIDGE, "up")
        control_plane.run("ip", "route", "replace", node_pod_cidr(self.number), "via", node_ip(self.number))
        self.machine.run("ip", "address", "add", f"{node_ip(self.number)}/{BRIDGE_PREFIX}", "dev", "eth0")
        self.machine.run("ip", "link", "set", "eth0", "up")
        # Other nodes' pods are reached through the control plane, which knows the way to each.
        self.machine.run("ip", "route", "add", "default", "via", CONTROL_PLANE_IP)
        self.machine.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.bridge.bridge-nf-call-iptables=1")
        self.machine.configured.touch()

    def _write_containerd_config(self, image_host: str, pause_image: str) -> None:
        # CAP_SYS_RESOURCE, without which an OOM score cannot be lowered, is missing in many sandboxes.
        config = f"""version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
address = "{_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true
sandbox_image = "{pause_image}"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{_CERTS}"
[plugins."io.containerd.grpc.v1.cri".containerd]
discard_unpacked_layers = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{self.tools.debian("runc")}"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{self.tools.debian("bridge").parent}"
conf_dir = "{_CNI}"
"""
        addresses = {"type": "host-local", "ranges": [[{"subnet": node_pod_cidr(self.number)}]]}
        bridge = {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "hairpinMode": True,
            "ipam": addresses | {"routes": [{"dst": "0.0.0.0/0"}]},
        }
        network = {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}
        registry = f"http://{CONTROL_PLANE_IP}:{REGISTRY_PORT}"
        hosts = f'server = "{registry}"\n[host."{registry}"]\ncapabilities = ["pull", "resolve"]\n'
        write_atomically(self.machine.folder / "containerd.toml", config)
        write_atomically(self._outside(_CNI) / "10-pods.conflist", json.dumps(network))
        write_atomically(self._outside(_CERTS) / image_host / "hosts.toml", hosts)

    def _start_kubelet(self) -> None:
        config = self.machine.folder / "kubelet.json"
        write_atomically(config, json.dumps(self._kubelet_config(), indent=1))
        authority = self.control_plane.authority
        identity = authority.issue(self.name, f"system:node:{self.name}", group="system:nodes")
        kubeconfig = authority.kubeconfig(self.machine.folder / "kubelet.kubeconfig", identity, API_SERVER)
        flags = [f"--config={config}", f"--kubeconfig={kubeconfig}", f"--hostname-override={self.name}"]
        self.machine.daemon("kubelet", [self.tools.go("kubelet"), *flags, f"--node-ip={node_ip(self.number)}"])

    def _kubelet_config(self) -> dict[str, object]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self.control_plane.authority.certificate)},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.paths.cgroup}/{self.name}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "containerRuntimeEndpoint": f"unix://{_SOCKET}",
            "clusterDNS": [DNS_SERVICE_IP],
            "clusterDomain": "cluster.local",
            "resolvConf": "",
            "volumePluginDir": "/var/lib/giblet/volume-plugins",
            "serializeImagePulls": False,
            "nodeStatusUpdateFrequency": "4s",
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        }

    def _outside(self, path: str) -> Path:
        """Where a path under the node's /var lies for us."""
        return self.machine.folder / path.lstrip("/")


def remember_kernel_settings(file: Path) -> None:
    """Note what a kubelet will change, unless it is noted already."""
    if not file.exists():
        values = {name: (Path("/proc/sys") / name).read_text().strip() for name in KERNEL_SETTINGS}
        write_atomically(file, json.dumps(values, indent=1))


def restore_kernel_settings(file: Path) -> None:
    """Set what was noted back, where it differs now."""
    if file.exists():
        for name, value in json.loads(file.read_text()).items():
            setting = Path("/proc/sys") / name
            if name in KERNEL_SETTINGS and setting.read_text().strip() != value:
                setting.write_text(value)
