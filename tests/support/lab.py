"""A lab's cluster for the tests: two nodes that pretend eight GPUs each, the image, a prepared dataset in its S3.

Releases are installed as a person does it, with helm and files from `configs/`, plus `tests/e2e/values/small.yaml`,
which makes model, data and resources small.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from giblet.checkpoint import list_checkpoints
from giblet.config.schema import CheckpointConfig
from giblet.storage import Storage, open_storage
from tests.support.chart import tool
from tests.support.cluster import REPOSITORY, TestCluster

NAMESPACE = "giblet"
BUCKET = "s3://giblet/e2e"
SMALL = "tests/e2e/values/small.yaml"
LOCAL = "configs/cluster/local.yaml"
DEADLINE_SECONDS = 900.0
"""How long anything may take on a machine that is slow and busy. No test passes or fails by being quicker."""


@dataclass(frozen=True)
class Lab:
    """A cluster and what runs on it. `image` is a reference by digest; `storage` its S3; `own` that tests made it."""

    cluster: TestCluster
    image: str
    dataset: str
    storage: Storage
    own: bool

    # ------------------------------------------------------------------ helm

    def helm(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Helm on this cluster, from the repository's root."""
        here = ["--kubeconfig", str(self.cluster.state / "kubeconfig"), "--namespace", NAMESPACE]
        command = [str(tool("helm")), *here, *words]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done

    def values(self, files: Sequence[str], overrides: Mapping[str, object]) -> list[str]:
        """The words that a release of these values files takes, here and small."""
        repository, _, digest = self.image.partition("@")
        ours = {
            "image.repository": repository, "image.digest": digest, "config.checkpoint.url": BUCKET,
            "config.data.prepared": self.dataset, **overrides,
        }  # fmt: skip
        words = [word for file in (*files, LOCAL, SMALL) for word in ("-f", file)]
        return [*words, *(word for key, value in ours.items() for word in ("--set", f"{key}={value}"))]

    def install(self, release: str, *files: str, check: bool = True, **overrides: object) -> Any:
        """`helm install`; dots in a key's name are written `__`."""
        chosen = {key.replace("__", "."): value for key, value in overrides.items()}
        words = ("install", release, "helm/giblet", *self.values(files, chosen))
        deadline = time.monotonic() + DEADLINE_SECONDS
        while "failed calling webhook" in (done := self.helm(*words, check=False)).stderr:
            # a machine that is so busy that the operator does not answer within its ten seconds
            assert time.monotonic() < deadline, done.stderr
            self.helm("uninstall", release, "--wait", "--ignore-not-found", check=False)
        assert not check or done.returncode == 0, done.stderr
        return done

    def upgrade(self, release: str, *files: str, check: bool = True, **overrides: object) -> Any:
        """`helm upgrade` with the whole values again."""
        chosen = {key.replace("__", "."): value for key, value in overrides.items()}
        return self.helm("upgrade", release, "helm/giblet", *self.values(files, chosen), check=check)

    def install_together(self, releases: Mapping[str, tuple[str, Mapping[str, object]]]) -> dict[str, str]:
        """Several releases at once, each of one values file and overrides; what `helm install` printed of each."""

        def install(name: str) -> str:
            file, overrides = releases[name]
            return str(self.install(name, file, **overrides).stdout)

        with ThreadPoolExecutor(len(releases)) as pool:
            return dict(zip(releases, pool.map(install, releases), strict=True))

    def uninstall_together(self, *names: str) -> None:
        """Several releases at once, until all is gone; no error if one is not there."""
        with ThreadPoolExecutor(len(names)) as pool:
            words = ("--wait", "--ignore-not-found")
            list(pool.map(lambda name: self.helm("uninstall", name, *words, check=False), names))

    def typed(self, line: str) -> subprocess.CompletedProcess[str]:
        """A command line as a person types it, with helm, kubectl and this cluster at hand."""
        with TemporaryDirectory() as programs:
            (Path(programs) / "helm").symlink_to(tool("helm"))
            ours = {"KUBECONFIG": str(self.cluster.state / "kubeconfig"), "PATH": f"{programs}:{os.environ['PATH']}"}
            words = ["bash", "-euc", line]
            return subprocess.run(
                words, env=os.environ | ours, capture_output=True, text=True, timeout=600, check=False
            )

    @contextmanager
    def release(self, name: str, *files: str, **overrides: object) -> Iterator[str]:
        """An installed release, uninstalled at the end. Yields the name of its objects."""
        try:
            self.install(name, *files, **overrides)
            yield name if "giblet" in name else f"{name}-giblet"
        except BaseException:
            print(self.story(name))
            raise
        finally:
            self.helm("uninstall", name, "--wait", "--ignore-not-found", check=False)

    # ------------------------------------------------------------------ what one sees

    def get(self, *words: str) -> Any:
        """`kubectl get … -o json`; an empty list where there is nothing."""
        done = self.cluster.kubectl("-n", NAMESPACE, "get", *words, "-o", "json", "--ignore-not-found")
        return json.loads(done.stdout) if done.stdout else {"items": []}

    def conditions(self, job: str) -> set[str]:
        """The conditions of a PyTorchJob that hold."""
        rows = self.get("pytorchjob", job).get("status", {}).get("conditions", [])
        return {row["type"] for row in rows if row["status"] == "True"}

    def reasons(self, pod: str) -> str:
        """What a pod's events say."""
        events = self.get("events", "--field-selector", f"involvedObject.name={pod}")["items"]
        return "\n".join(f"{event['reason']}: {event['message']}" for event in events)

    def last_words(self, job: str) -> dict[str, Any]:
        """The termination message of a job's only worker."""
        (pod,) = self.pods(job)
        found: dict[str, Any] = json.loads(pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"])
        return found

    def objects(self, *releases: str) -> set[str]:
        """Kind/name of all that releases left in the namespace."""
        kinds = "all,configmaps,secrets,serviceaccounts,roles,rolebindings,networkpolicies,pytorchjobs,pdb,pvc"
        names = self.cluster.kubectl("-n", NAMESPACE, "get", kinds, "-o", "name").stdout.split()
        return {name for name in names if any(release in name for release in releases)}

    def pods(self, job: str, component: str = "worker") -> list[dict[str, Any]]:
        """A release's pods of one component."""
        found = self.get("pods", "-l", f"giblet.dev/run,app.kubernetes.io/component={component}")
        mine = [pod for pod in found["items"] if pod["metadata"]["name"].startswith(f"{job}-")]
        return sorted(mine, key=lambda pod: str(pod["metadata"]["name"]))

    def logs(self, pod: str, *words: str) -> str:
        """What `kubectl logs` shows of a pod; empty while there is nothing."""
        return self.cluster.kubectl("-n", NAMESPACE, "logs", pod, *words, check=False).stdout

    def committed_steps(self, run: str) -> list[int]:
        """The steps of a run's committed checkpoints."""
        return [row.step for row in list_checkpoints(self.storage, run)]

    def verdict(self, job: str) -> str | None:
        """What the verifier wrote on the PyTorchJob."""
        annotations = self.get("pytorchjob", job).get("metadata", {}).get("annotations", {})
        found = annotations.get("giblet.dev/verdict")
        return None if found is None else str(found)

    def verified(self, job: str) -> bool:
        """Whether the verification Job ended well."""
        return self.get("job", f"{job}-verify").get("status", {}).get("succeeded", 0) == 1

    def story(self, release: str) -> str:
        """What a person would look at when a test failed."""
        parts = [
            self.cluster.kubectl("-n", NAMESPACE, "get", "pods,pytorchjobs,jobs", "-o", "wide", check=False).stdout
        ]
        parts.append(self.cluster.kubectl("-n", NAMESPACE, "get", "events", check=False).stdout[-4000:])
        for pod in self.get("pods")["items"]:
            name = pod["metadata"]["name"]
            if name.startswith(release):
                parts.append(f"--- {name}\n{self.logs(name, '--all-containers', '--tail=40')}")
        return "\n".join(parts)


def until(condition: Callable[[], object], what: str, seconds: float = DEADLINE_SECONDS) -> None:
    """Wait for something that is to come about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(1.0)


def storage_of(address: str) -> Storage:
    """The cluster's S3, seen from here."""
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "giblet-development")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "giblet-development-only")
    return open_storage(BUCKET, CheckpointConfig(url=BUCKET, endpoint_url=address, region="us-east-1"))
