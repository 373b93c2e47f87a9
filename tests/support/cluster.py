"""ci/cluster's package for the tests, and a cluster of their own to try it on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
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
        """The address on loopback of a port in the cluster."""
        command = ["kubectl", f"--kubeconfig={self.state / 'kubeconfig'}", "--namespace", namespace]
        with subprocess.Popen(
            [*command, "port-forward", target, f":{port}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            try:
                said = process.stdout.readline()
                found = re.search(r"127\.0\.0\.1:(\d+)", said)
                assert found is not None, said
                yield f"http://127.0.0.1:{found.group(1)}"
            finally:
                process.terminate()
