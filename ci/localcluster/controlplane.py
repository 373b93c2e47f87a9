"""The control plane: a machine with a bridge, on which run etcd, apiserver, controllers, scheduler and a registry."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from localcluster.machine import Machine
from localcluster.pki import Authority
from localcluster.settings import (
    API_PORT,
    BRIDGE_PREFIX,
    CONTROL_PLANE_IP,
    KUBERNETES_SERVICE_IP,
    POD_CIDR,
    REGISTRY_PORT,
    SERVICE_CIDR,
    Paths,
    node_name,
)
from localcluster.shell import succeeds, tail, wait_for, write_atomically
from localcluster.tools import Toolbox

API_SERVER = f"https://{CONTROL_PLANE_IP}:{API_PORT}"
BRIDGE = "br0"


class ControlPlane:
    """Starts the control plane's parts; each method may be called again, and does what is still missing."""

    def __init__(self, paths: Paths, tools: Toolbox) -> None:
        self.paths = paths
        self.tools = tools
        self.machine = Machine(paths, "control-plane")
        self.authority = Authority(paths.state / "pki")
        self._folder = self.machine.folder

    def start_machine(self) -> None:
        """The namespaces, with a bridge that the nodes join. The default route leads nowhere but to it."""
        self.machine.start(self.tools.debian("catatonit"))
        if self.machine.configured.exists():
            return
        ip = ("ip", "link")
        self.machine.run(*ip, "add", BRIDGE, "type", "bridge")
        self.machine.run("ip", "address", "add", f"{CONTROL_PLANE_IP}/{BRIDGE_PREFIX}", "dev", BRIDGE)
        self.machine.run(*ip, "set", BRIDGE, "up")
        # Service addresses must be routable before kube-proxy's rules can turn them into a pod's.
        self.machine.run("ip", "route", "add", "default", "dev", BRIDGE)
        self.machine.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.machine.configured.touch()

    def issue_certificates(self) -> None:
        """The authority, one identity for each component, and their kubeconfigs."""
        authority = self.authority
        authority.create()
        names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost")
        addresses = ("127.0.0.1", KUBERNETES_SERVICE_IP, CONTROL_PLANE_IP)
        hosts = (*(f"DNS:{name}" for name in names), *(f"IP:{address}" for address in addresses))
        authority.issue("kube-apiserver", "kube-apiserver", hosts=hosts)
        authority.issue("apiserver-kubelet-client", "kube-apiserver-kubelet-client")
        authority.issue("admin", "giblet-admin", group="system:masters")
        for component in ("kube-controller-manager", "kube-scheduler", "kube-proxy"):
            identity = authority.issue(component, f"system:{component}")
            authority.kubeconfig(self.kubeconfig(component), identity, API_SERVER)

    def kubeconfig(self, component: str) -> Path:
        """The kubeconfig that a component uses inside."""
        return self._folder / f"{component}.kubeconfig"

    def start_api(self) -> None:
        """etcd and the apiserver, until it says that it is ready."""
        pki = self.authority.folder
        self.machine.daemon("etcd", [self.tools.go("etcd"), *self._etcd_flags()])
        flags = {
            "etcd-servers": "http://127.0.0.1:2379",
            "bind-address": "0.0.0.0",
            "advertise-address": CONTROL_PLANE_IP,
            "secure-port": API_PORT,
            "service-cluster-ip-range": SERVICE_CIDR,
            "tls-cert-file": pki / "kube-apiserver.crt",
            "tls-private-key-file": pki / "kube-apiserver.key",
            "client-ca-file": self.authority.certificate,
            "service-account-key-file": self.authority.service_accounts.certificate,
            "service-account-signing-key-file": self.authority.service_accounts.key,
            "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction",
            "kubelet-client-certificate": pki / "apiserver-kubelet-client.crt",
            "kubelet-client-key": pki / "apiserver-kubelet-client.key",
            "kubelet-preferred-address-types": "InternalIP",  # there is no name server that knows the nodes
            "allow-privileged": "true",
        }
        self.machine.daemon("kube-apiserver", [self.tools.go("kube-apiserver"), *_flags(flags)])
        admin = self.authority.issue("admin", "giblet-admin", group="system:masters")
        inside = self.authority.kubeconfig(self.kubeconfig("admin"), admin, API_SERVER)
        ready: list[str | Path] = [
            *self.machine.enter(processes=False),
            self.tools.go("kubectl"),
            f"--kubeconfig={inside}",
        ]
        wait_for(
            "the apiserver",
            lambda: succeeds([*ready, "get", "--raw", "/readyz"]),
            timeout_seconds=90,
            poll_seconds=0.3,
            hint=lambda: tail(self.paths.log("control-plane-kube-apiserver")),
        )

    def _etcd_flags(self) -> list[str]:
        flags = {
            "data-dir": self._folder / "etcd",
            "listen-client-urls": "http://127.0.0.1:2379",
            "advertise-client-urls": "http://127.0.0.1:2379",
            "listen-peer-urls": "http://127.0.0.1:2380",
            "unsafe-no-fsync": "true",  # a cluster to try things on may forget them when the machine loses power
            "log-level": "warn",
        }
        return _flags(flags)

    def start_controllers(self) -> None:
        """Controllers, scheduler, and a kube-proxy, through which the apiserver reaches webhooks' services."""
        controllers = {
            "kubeconfig": self.kubeconfig("kube-controller-manager"),
            "service-account-private-key-file": self.authority.service_accounts.key,
            "root-ca-file": self.authority.certificate,
            "cluster-signing-cert-file": self.authority.certificate,
            "cluster-signing-key-file": self.authority.key,
            "use-service-account-credentials": "true",
            "allocate-node-cidrs": "false",
            "leader-elect": "false",
            "node-monitor-grace-period": "20s",
        }
        self.machine.daemon("kube-controller-manager", [self.tools.go("kube-controller-manager"), *_flags(controllers)])
        scheduler = {"kubeconfig": self.kubeconfig("kube-scheduler"), "leader-elect": "false"}
        self.machine.daemon("kube-scheduler", [self.tools.go("kube-scheduler"), *_flags(scheduler)])
        # kube-proxy waits half a minute for a node of its name before it writes rules; this machine is none, so it
        # goes by the first node's, which matters only for node ports.
        start_kube_proxy(self.machine, self.tools, self.kubeconfig("kube-proxy"), node=node_name(1))

    def start_registry(self) -> None:
        """An image registry on the bridge, for the nodes, and by `open_loopback` for whoever builds images."""
        config = self._folder / "registry.json"
        content = {
            "version": "0.1",
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": str(self._folder / "registry")}, "delete": {"enabled": True}},
            "http": {"addr": f"{CONTROL_PLANE_IP}:{REGISTRY_PORT}"},
        }
        write_atomically(config, json.dumps(content))
        self.machine.daemon("registry", [self.tools.debian("docker-registry"), "serve", config])

    def open_loopback(self, ports: dict[str, int]) -> None:
        """Forward two ports of the host's loopback to the apiserver and the registry, and write the kubeconfig."""
        if self.machine.daemon_pid("forward") is None:
            with contextlib.ExitStack() as opened:
                listeners = {name: opened.enter_context(_listen(port)) for name, port in ports.items()}
                targets = {"api": API_PORT, "registry": REGISTRY_PORT}
                routes = [
                    f"{listeners[name].fileno()}={CONTROL_PLANE_IP}:{targets[name]}" for name in sorted(listeners)
                ]
                descriptors = [listener.fileno() for listener in listeners.values()]
                program: list[str | Path] = [sys.executable, Path(__file__).with_name("forward.py"), *routes]
                self.machine.daemon("forward", program, pass_fds=descriptors)
        admin = self.authority.issue("admin", "giblet-admin", group="system:masters")
        self.authority.kubeconfig(self.paths.kubeconfig, admin, f"https://127.0.0.1:{ports['api']}")


def start_kube_proxy(machine: Machine, tools: Toolbox, kubeconfig: Path, *, node: str) -> None:
    """Service addresses by iptables rules, in one machine's namespace."""
    flags = {
        "kubeconfig": kubeconfig,
        "proxy-mode": "iptables",
        "cluster-cidr": POD_CIDR,
        "hostname-override": node,
        "conntrack-max-per-core": 0,  # a setting of the whole host's, not to be touched
        "iptables-localhost-nodeports": "false",
        "iptables-min-sync-period": "100ms",
    }
    machine.daemon("kube-proxy", [tools.go("kube-proxy"), *_flags(flags)])


def choose_ports(preferred: dict[str, int]) -> dict[str, int]:
    """The preferred ports of the host's loopback where they are free, else any that are."""
    ports = {}
    for name, port in preferred.items():
        try:
            with _listen(port):
                ports[name] = port
        except OSError:
            with _listen(0) as listener:
                ports[name] = int(listener.getsockname()[1])
    return ports


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def _flags(values: Mapping[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]
