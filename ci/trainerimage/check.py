"""The image test: docker/smoke.py inside the image, with fewer rights than Kubernetes' `restricted` leaves."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from localcluster.kube import Kubectl
from localcluster.settings import REPOSITORY, Paths
from localcluster.shell import ClusterError, run
from localcluster.steps import Step, Steps

from trainerimage.builders import Docker, choose
from trainerimage.inputs import Inputs

UID = 123456  # known to nobody: no name, no home, no group of the image's
NAMESPACE = "giblet-image-test"
# What runs inside, and what it imports; a package must stay a package, so the folders are kept.
_FILES = {"smoke.py": "docker/smoke.py"} | {f"tests/support/{n}.py": f"tests/support/{n}.py" for n in ("bids", "media")}
_COMMAND = ["python", "-W", "ignore", "/smoke/smoke.py", "/cache/smoke"]
_SECONDS = 240.0


def run_anywhere(reference: str, cache: Path, inputs: Inputs, steps: Steps, *, builder: str) -> dict[str, Any]:
    """Test an image where it can be run: Docker, else the cluster. Returns what docker/smoke.py saw.

    Raises ClusterError when a command in the container fails, or it has a right that it should not have.
    """
    chosen = choose(cache, builder)
    seen: list[dict[str, Any]] = []
    if isinstance(chosen, Docker):
        from trainerimage.cli import built

        image = reference or built(chosen, inputs, steps)[0]
        action: Callable[[], None] = lambda: seen.append(_docker(image))  # noqa: E731
    else:
        from localcluster.trainer_image import ensure, the_cluster

        cluster = the_cluster(Paths.from_environment())
        image = reference or ensure(cluster, inputs, steps)["image"]
        action = lambda: seen.append(in_pod(cluster.kubectl, image))  # noqa: E731
    steps.run([Step("test it", action, 40)])
    judge(seen[0])
    return {"image": image} | seen[0]


def judge(facts: dict[str, Any]) -> None:
    """Raise ClusterError where the container could do more than it should, or the checkpoint is not SAFE."""
    rights = facts["rights"]
    expected = {"uid": UID, "capabilities": 0, "no_new_privileges": True, "writable": ["/cache", "/tmp"]}
    if wrong := {name: rights[name] for name in expected if rights[name] != expected[name]}:
        raise ClusterError(f"the container has other rights than it should: {wrong}; wanted {expected}")
    if facts["setuid"]:
        raise ClusterError(f"the image has setuid programs: {', '.join(facts['setuid'])}")
    if not facts["verdict"].startswith("SAFE"):
        raise ClusterError(f"the checkpoint that it trained is {facts['verdict']}")


def table(facts: dict[str, Any]) -> str:
    """The facts for people."""
    return "\n".join(f"{name:<18}{value}" for name, value in facts.items())


def in_pod(kubectl: Kubectl, image: str) -> dict[str, Any]:
    """Run the test as a pod of its own namespace, where Pod Security `restricted` is enforced; all of it goes away."""
    with contextlib.ExitStack() as stack:
        stack.callback(kubectl.run, "delete", "namespace", NAMESPACE, "--ignore-not-found", timeout_seconds=None)
        kubectl.run(
            "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": pod_objects(image)})
        )
        try:
            kubectl.run(
                "wait", "pod/test", f"--namespace={NAMESPACE}", f"--timeout={_SECONDS:.0f}s",
                "--for=jsonpath={.status.containerStatuses[0].state.terminated}", timeout_seconds=None,
            )  # fmt: skip
        except ClusterError as error:
            events = kubectl.run("get", "events", f"--namespace={NAMESPACE}", "--sort-by=.lastTimestamp")
            raise ClusterError(f"the test pod did not end\n{events}") from error
        said = kubectl.run("logs", "pod/test", f"--namespace={NAMESPACE}")
        return _last_line(said)


def _docker(image: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        for inside, path in _FILES.items():
            target = Path(folder) / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / path, target)
        Path(folder).chmod(0o755)
        limits = ["--read-only", f"--user={UID}:{UID}", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
        limits += ["--network=none", "--tmpfs=/tmp:mode=1777,exec", "--tmpfs=/cache:mode=1777,exec"]
        command = ["docker", "run", "--rm", *limits, f"--volume={folder}:/smoke:ro", "--env=PYTHONPATH=/app:/smoke"]
        return _last_line(
            run([*command, f"--entrypoint={_COMMAND[0]}", image, *_COMMAND[1:]], timeout_seconds=_SECONDS)
        )


def pod_objects(image: str) -> list[dict[str, Any]]:
    """Namespace, the test's files, and the pod."""
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
    keys = {inside: inside.replace("/", ".") for inside in _FILES}
    files = {keys[inside]: (REPOSITORY / path).read_text() for inside, path in _FILES.items()}
    items = [{"key": key, "path": inside} for inside, key in keys.items()]
    container = {
        "name": "test",
        "image": image,
        "command": _COMMAND,
        "env": [{"name": "PYTHONPATH", "value": "/app:/smoke"}, {"name": "OMP_NUM_THREADS", "value": "1"}],
        "resources": {"limits": {"memory": "3Gi"}, "requests": {"cpu": "100m", "memory": "1Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "cache", "mountPath": "/cache"},
            {"name": "smoke", "mountPath": "/smoke", "readOnly": True},
        ],
    }
    user = {"runAsNonRoot": True, "runAsUser": UID, "runAsGroup": UID, "fsGroup": UID}
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": user | {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            {"name": "cache", "emptyDir": {}},
            {"name": "smoke", "configMap": {"name": "smoke", "items": items}},
        ],
    }
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "smoke", "namespace": NAMESPACE}, "data": files},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "test", "namespace": NAMESPACE}, "spec": pod},
    ]


def _last_line(said: str) -> dict[str, Any]:
    lines = said.strip().splitlines() or [""]
    try:
        facts: dict[str, Any] = json.loads(lines[-1])
    except ValueError as error:
        print(said, file=sys.stderr)
        raise ClusterError("the image test failed; what it said stands above") from error
    return facts
