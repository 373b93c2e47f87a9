"""ci/cluster's package for the tests, and a cluster of their own to try it on."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = REPOSITORY / "ci/cluster"

sys.path.insert(0, str(REPOSITORY / "ci"))  # where its package lies; it is no part of giblet


@dataclass(frozen=True)
class TestCluster:
    """A cluster in a state folder of its own."""

    __test__ = False

    state: Path

    @property
    def environment(self) -> dict[str, str]:
        """Without KUBECONFIG: these tests never touch a cluster that somebody has."""
        kept = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
        return kept | {"GIBLET_CLUSTER_DIR": str(self.state)}

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """ci/cluster to its end, of kind `local` unless said otherwise."""
        command = [sys.executable, str(PROGRAM), *words]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done

    def kill_when(self, line: str, *words: str) -> None:
        """Start ci/cluster and kill it, as nothing can prevent, when its progress says `line`."""
        command = [sys.executable, str(PROGRAM), *words]
        with subprocess.Popen(command, env=self.environment, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            for said in process.stderr:
                if line in said:
                    process.kill()
                    return
        raise AssertionError(f"it never said {line!r}")

    def status(self) -> dict[str, Any]:
        """What `status --json` says."""
        answer: dict[str, Any] = json.loads(self.run("status", "--json", check=False).stdout)
        return answer

    def kubectl(self, *words: str, stdin: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """kubectl on this cluster."""
        command = ["kubectl", f"--kubeconfig={self.state / 'kubeconfig'}", *words]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Create or update objects."""
        self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    @contextlib.contextmanager
    def port_forward(self, namespace: str, target: str, port: int) -> Iterator[str]:
        """The address on loopback of a port in the cluster; forwarded again when the API server was away."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            local = free.getsockname()[1]
        command = ["kubectl", f"--kubeconfig={self.state / 'kubeconfig'}", "--namespace", namespace, "port-forward"]
        ended = threading.Event()
        with tempfile.TemporaryFile("w+") as said:

            def begin() -> subprocess.Popen[str]:
                return subprocess.Popen([*command, target, f"{local}:{port}"], stdout=said, stderr=said, text=True)

            process = begin()

            def keep() -> None:
                nonlocal process
                while process.wait() is not None and not ended.wait(0.5):
                    process = begin()

            keeper = threading.Thread(target=keep, daemon=True)
            keeper.start()
            try:
                deadline = time.monotonic() + 60
                while not _answers(local):
                    assert time.monotonic() < deadline, (said.seek(0), said.read())
                    time.sleep(0.1)
                yield f"http://127.0.0.1:{local}"
            finally:
                ended.set()
                while keeper.is_alive():
                    process.terminate()
                    keeper.join(0.2)


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
