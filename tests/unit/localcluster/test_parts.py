"""The parts of ci/cluster that need neither root nor a cluster."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from tests.support.cluster import PROGRAM, REPOSITORY, TestCluster

# isort: split
from localcluster import addons, forward, tools
from localcluster.cli import choose
from localcluster.controlplane import choose_ports
from localcluster.external import GivenCluster
from localcluster.images import ImageCache, ImageSpec, push
from localcluster.local import LocalCluster, reachable_state
from localcluster.pki import Authority
from localcluster.record import Record
from localcluster.settings import Paths
from localcluster.shell import ClusterError, run, wait_for
from localcluster.steps import Step, Steps


def test_steps_say_how_much_is_left_and_learn_from_the_last_run(tmp_path: Path) -> None:
    said: list[str] = []
    steps = [Step("first", lambda: None, 40), Step("second", lambda: None, 2)]
    Steps(tmp_path / "timings.json", write=said.append).run(steps)
    assert [re.sub(r" +\d+\.\d s", " T", line) for line in said] == [
        "[1/2] T  first (about 42 s left)\n",
        "[2/2] T  second (about 2 s left)\n",
    ]
    said.clear()
    Steps(tmp_path / "timings.json", write=said.append).run(steps)
    assert "about 1 s left" in said[0]


def test_an_up_that_finds_all_done_teaches_nothing(tmp_path: Path) -> None:
    Steps(tmp_path / "timings.json", write=len).run([Step("first", lambda: None, 40)], learn=False)
    assert not (tmp_path / "timings.json").exists()


def test_a_damaged_timings_file_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "timings.json").write_text('{"first": ')
    Steps(tmp_path / "timings.json", write=len).run([Step("first", lambda: None, 1)])
    assert "first" in json.loads((tmp_path / "timings.json").read_text())


def test_a_failing_command_shows_what_it_said() -> None:
    with pytest.raises(ClusterError, match=r"exit 3 from: sh -c .*\n +so there"):
        run(["sh", "-c", "echo so there >&2; exit 3"])
    with pytest.raises(ClusterError, match="no such program"):
        run(["giblet-no-such-program"])
    with pytest.raises(ClusterError, match="no answer in"):
        run(["sleep", "5"], timeout_seconds=0.05)
    with pytest.raises(ClusterError, match="the thing: not after"):
        wait_for("the thing", lambda: False, timeout_seconds=0.01)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    made = Authority(tmp_path / "pki")
    made.create()
    return made


def test_certificates_verify_and_carry_their_names(authority: Authority, tmp_path: Path) -> None:
    node = authority.issue("node1", "system:node:node1", group="system:nodes", hosts=("IP:10.0.0.1", "DNS:node1"))
    verify = ["openssl", "verify", "-CAfile", str(authority.certificate), str(node.certificate)]
    assert subprocess.check_output(verify, text=True).endswith("OK\n")
    show = ["openssl", "x509", "-in", str(node.certificate), "-noout", "-text"]
    text = subprocess.check_output(show, text=True)
    assert "O = system:nodes, CN = system:node:node1" in text
    assert "IP Address:10.0.0.1, DNS:node1" in text
    assert "CA:FALSE" in text
    assert node.key.stat().st_mode & 0o077 == 0
    before = node.certificate.read_bytes()
    assert authority.issue("node1", "system:node:node1").certificate.read_bytes() == before, "kept on the next up"
    config = authority.kubeconfig(tmp_path / "kubeconfig", node, "https://127.0.0.1:1")
    assert config.stat().st_mode & 0o077 == 0
    assert yaml.safe_load(config.read_text())["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:1"


class _Registry(http.server.BaseHTTPRequestHandler):
    """As much of the distribution API as a push uses; counts uploads, and checks digests as a registry does."""

    protocol_version = "HTTP/1.1"
    blobs: ClassVar[dict[str, bytes]] = {}
    manifests: ClassVar[dict[str, bytes]] = {}

    def _answer(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self._answer(200 if self.path.rpartition("/")[2] in self.blobs else 404)

    def do_POST(self) -> None:
        self._answer(202, Location=f"http://elsewhere{self.path}session?state=1")

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if "/manifests/" in self.path:
            self.manifests[self.path] = body
        elif not self.path.endswith(f"state=1&digest={digest}"):
            self._answer(400)
            return
        self.blobs[digest] = body
        self._answer(201)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[int]:
    _Registry.blobs.clear()
    _Registry.manifests.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Registry) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield int(server.server_address[1])
        server.shutdown()
        thread.join()


def test_an_image_is_the_same_wherever_it_is_built_and_travels_once(tmp_path: Path, registry: int) -> None:
    program = Path(shutil.which("true") or "/bin/true").resolve()
    spec = ImageSpec("tool", {"/bin/tool": program}, ("/bin/tool",), {"/bin/alias": "tool"})
    image = ImageCache(tmp_path / "a").image(spec)
    again = ImageCache(tmp_path / "b").image(spec)
    assert (image.tag, image.layer_digest) == (again.tag, again.layer_digest)

    push(image, registry)
    manifest = json.loads(_Registry.manifests[f"/v2/tool/manifests/{image.tag}"])
    layer = _Registry.blobs[manifest["layers"][0]["digest"]]
    assert len(layer) == manifest["layers"][0]["size"]
    assert json.loads(_Registry.blobs[manifest["config"]["digest"]])["rootfs"]["diff_ids"] == [image.layer_digest]
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        names = set(archive.getnames())
        assert archive.extractfile("bin/tool").read() == program.read_bytes()  # type: ignore[union-attr]
        assert archive.getmember("bin/alias").linkname == "tool"
        assert {member.mtime for member in archive} == {0}
    needed = re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", program], capture_output=True, text=True).stdout)
    assert {path.lstrip("/") for path in needed} <= names, "a dynamic program brings its libraries"

    sent = dict(_Registry.blobs)
    _Registry.blobs = dict.fromkeys(sent, b"")
    push(image, registry)
    assert [digest for digest, body in _Registry.blobs.items() if body and digest == image.layer_digest] == []


def test_connections_are_forwarded_both_ways() -> None:
    with socket.create_server(("127.0.0.1", 0)) as target, socket.create_server(("127.0.0.1", 0)) as listener:
        route = f"{listener.fileno()}=127.0.0.1:{target.getsockname()[1]}"
        command = [sys.executable, forward.__file__, route]
        with subprocess.Popen(command, pass_fds=[listener.fileno()]) as process:
            try:
                client = socket.create_connection(listener.getsockname(), timeout=20)
                target.settimeout(20)
                server, _ = target.accept()
                with client, server:
                    client.sendall(b"there")
                    assert server.recv(16) == b"there"
                    server.sendall(b"x" * 1_000_000)
                    server.shutdown(socket.SHUT_WR)
                    received = b"".join(iter(lambda: client.recv(65536), b""))
                    assert received == b"x" * 1_000_000
            finally:
                process.kill()


def test_a_port_that_is_taken_is_replaced() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        assert choose_ports({"api": number})["api"] != number
    assert choose_ports({"api": number}) == {"api": number}


def test_the_kind_of_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = Paths(tmp_path / "state", tmp_path / "cache")
    monkeypatch.setattr("localcluster.cli.kind_can_run", lambda: False)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    assert isinstance(choose(paths, "auto"), LocalCluster)
    with pytest.raises(ClusterError, match="KUBECONFIG is not set"):
        choose(paths, "kubeconfig")

    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "theirs"))
    given = choose(paths, "auto")
    assert isinstance(given, GivenCluster)
    assert given.kubeconfig == str(tmp_path / "theirs")
    assert isinstance(choose(paths, "local"), LocalCluster)

    monkeypatch.setenv("KUBECONFIG", str(paths.kubeconfig))
    assert isinstance(choose(paths, "auto"), LocalCluster), "our own kubeconfig is no other cluster"

    Record("kubeconfig", kubeconfig="/theirs", installed=["dev-s3"]).save(paths.record)
    monkeypatch.delenv("KUBECONFIG")
    recorded = choose(paths, "auto")
    assert isinstance(recorded, GivenCluster)
    assert recorded.kubeconfig == "/theirs", "down must find the cluster that up changed"
    with pytest.raises(ClusterError, match="a cluster of kind kubeconfig is up"):
        choose(paths, "local")


def test_folders_that_a_machine_hides_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="cannot lie under /var or /run"):
        reachable_state(Paths(Path("/var/lib/giblet"), tmp_path))
    reachable_state(Paths(Path("/srv/giblet"), tmp_path))


def test_who_is_not_root_is_told_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match=r"missing: iptables, conntrack\n +remedy: sudo apt-get install .*iptables"):
        tools.install(["iptables", "conntrack"])
    cluster = LocalCluster(Paths(tmp_path / "state", tmp_path / "cache"))
    with pytest.raises(ClusterError, match=r"cannot be built here.*\n +remedy: set KUBECONFIG"):
        cluster.up(nodes=2, gpus=0, steps=Steps(tmp_path / "timings.json"))
    assert not (tmp_path / "state").exists()


def test_two_apt_gets_of_ours_take_turns_and_an_old_list_is_updated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, updated = tmp_path / "log", tmp_path / "updated"
    (tmp_path / "apt-get").write_text(
        f'#!/usr/bin/env bash\necho "begin $1" >>{log}; sleep 0.2; echo "end $1" >>{log}\n'
        f"case $1 in update) touch {updated};; *) [ -e {updated} ];; esac\n"
    )
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(tools._apt, ("download", "install")))
    said = [line.split() for line in log.read_text().splitlines()]
    assert all(begun == ["begin", ended[1]] for begun, ended in zip(said[::2], said[1::2], strict=True)), said
    words = [word for _, word in said[::2]]
    first, second = words[0], words[-1]
    assert words == [first, "update", first, second]
    assert {first, second} == {"download", "install"}


def test_a_changed_go_module_is_built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "go"
    shutil.copytree(tools.GO_MODULES, copy)
    monkeypatch.setattr(tools, "GO_MODULES", copy)
    toolbox = tools.Toolbox(tmp_path / "cache")
    before = toolbox.go("kubelet"), toolbox.go("coredns")
    with (copy / "kubernetes/go.sum").open("a") as sums:
        sums.write("example.org/more v1.0.0 h1:x\n")
    assert toolbox.go("kubelet") != before[0]
    assert toolbox.go("coredns") == before[1]
    with (copy / "addons/coredns/main.go").open("a") as program:
        program.write("// more\n")
    assert toolbox.go("coredns") != before[1]


def test_status_of_nothing_is_not_ready(tmp_path: Path) -> None:
    cluster = TestCluster(tmp_path / "state")
    done = cluster.run("status", "--json", "--kind", "local", check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)["reachable"] is False
    assert not cluster.state.exists()


def test_the_program_runs_without_the_project_installed(tmp_path: Path) -> None:
    """A lab's CI calls it before anything is installed: the standard library must do."""
    command = [sys.executable, "-S", "-E", str(PROGRAM), "--help"]
    assert "up|status|down|build" in subprocess.check_output(command, text=True, cwd=tmp_path)


def test_every_version_is_said_once() -> None:
    module = (REPOSITORY / "ci/go/addons/go.mod").read_text()
    version = re.search(r"kubeflow/training-operator (v\S+)", module)
    assert version is not None
    assert version.group(1) == "v1.9.4"
    kustomization = (REPOSITORY / "k8s/operator/kustomization.yaml").read_text()
    assert f"tag {version.group(1)}" in kustomization
    assert f"k8s.io/kubernetes {tools.KUBERNETES_VERSION}" in (REPOSITORY / "ci/go/kubernetes/go.mod").read_text()
    s3 = next(yaml.safe_load_all((REPOSITORY / "k8s/dev-s3/s3.yaml").read_text()))
    image = s3["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == f"chrislusf/seaweedfs:{tools.seaweedfs_version()}"


def test_every_image_in_k8s_has_one_that_takes_its_place() -> None:
    named = set()
    for file in (REPOSITORY / "k8s").rglob("*.yaml"):
        named |= set(re.findall(r"^\s*image: (\S+?)(?::[^:/\s]+)?$", file.read_text(), re.MULTILINE))
    assert named <= set(addons.REPLACED)
    assert named >= {"chrislusf/seaweedfs", "prom/prometheus"}


def test_every_pod_in_k8s_is_restricted() -> None:
    pods = 0
    for file in sorted((REPOSITORY / "k8s").rglob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            if document and document.get("kind") == "Deployment":
                pods += 1
                spec = document["spec"]["template"]["spec"]
                assert spec["securityContext"]["runAsNonRoot"] is True, file
                assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, file
                for container in spec["containers"]:
                    context = container["securityContext"]
                    assert context["capabilities"] == {"drop": ["ALL"]}, file
                    assert context["allowPrivilegeEscalation"] is False, file
                    assert context["readOnlyRootFilesystem"] is True, file
                    assert "memory" in container["resources"]["limits"], file
    assert pods == 3
