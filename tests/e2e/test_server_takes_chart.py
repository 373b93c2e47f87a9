"""Every rendering before a real API server, as a dry run: defaults, CEL rules, the operator's webhook over the network.

On the cluster in KUBECONFIG, else the one that `ci/cluster up` left running, else the tests' own. Nothing is created
but a namespace for the time of the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.chart import REPOSITORY, Object, Rendering, render
from tests.support.chart_values import ELASTIC, SCENARIOS, filled

# isort: split
from localcluster.settings import Paths

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NAMESPACE = "giblet-chart-dry-run"
CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))
Kubectl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def kubectl(request: pytest.FixtureRequest) -> Iterator[Kubectl]:
    """kubectl on the cluster, with a namespace like the one that runs live in."""
    kubeconfig = os.environ.get("KUBECONFIG") or str(Paths.from_environment().kubeconfig)
    if not Path(kubeconfig.split(":")[0]).exists():
        kubeconfig = str(request.getfixturevalue("two_nodes")[0].state / "kubeconfig")

    def run(*words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        command = ["kubectl", "--kubeconfig", kubeconfig, *words]
        try:
            return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=120)
        except FileNotFoundError:
            return subprocess.CompletedProcess(command, 127, "", "kubectl is not in PATH")

    there = run("get", "customresourcedefinition/pytorchjobs.kubeflow.org", "--request-timeout=10s")
    if there.returncode != 0:
        pytest.skip(f"no cluster with the operator: {there.stderr.strip().splitlines()[-1]}")
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
    assert run("apply", "-f", "-", stdin=json.dumps(namespace)).returncode == 0
    try:
        yield run
    finally:
        run("delete", "namespace", NAMESPACE, "--wait=false")


def dry_run(kubectl: Kubectl, objects: list[Any]) -> subprocess.CompletedProcess[str]:
    body = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    words = ["apply", "--dry-run=server", "--server-side", "--validate=strict", "--namespace", NAMESPACE]
    return kubectl(*words, "-f", "-", stdin=body)


def in_namespace(chart: Rendering) -> list[Object]:
    """All objects, and each pod on its own: Pod Security only warns of a template, and of a PyTorchJob's not at all."""
    own = json.loads(json.dumps(chart.objects).replace('"namespace": "lab"', f'"namespace": "{NAMESPACE}"'))
    pods = []
    for index, pod in enumerate(chart.pods().values()):
        # A pod is refused if its account does not exist, and in a dry run it does not.
        spec = {**pod["spec"], "serviceAccountName": "default"}
        spec.pop("priorityClassName", None)
        spec.pop("runtimeClassName", None)
        pods.append({**pod, "metadata": {**pod["metadata"], "name": f"alone-{index}"}, "spec": spec})
    return [item for item in own if item["kind"] != "Pod"] + pods


def accepted(kubectl: Kubectl, chart: Rendering) -> None:
    done = dry_run(kubectl, in_namespace(chart))
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_the_server_accepts_every_configuration(kubectl: Kubectl, file: Path) -> None:
    accepted(kubectl, render(filled(file), files=(file,)))


@pytest.mark.parametrize("values", SCENARIOS.values(), ids=SCENARIOS)
def test_the_server_accepts_what_values_can_ask_for(kubectl: Kubectl, values: Object) -> None:
    accepted(kubectl, render(values))


def test_the_server_would_refuse_a_key_that_it_does_not_know(kubectl: Kubectl) -> None:
    objects = in_namespace(render(ELASTIC))
    job = next(item for item in objects if item["kind"] == "PyTorchJob")
    job["spec"]["elasticPolicy"]["maxReplica"] = 3
    assert "maxReplica" in dry_run(kubectl, objects).stderr


def test_the_operators_webhook_would_refuse_a_job_without_its_container(kubectl: Kubectl) -> None:
    objects = in_namespace(render(ELASTIC))
    job = next(item for item in objects if item["kind"] == "PyTorchJob")
    job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["name"] = "trainer"
    assert "must have at least one container with name pytorch" in dry_run(kubectl, objects).stderr


def test_the_namespace_would_refuse_a_pod_that_is_not_restricted(kubectl: Kubectl) -> None:
    objects = in_namespace(render(ELASTIC))
    pod = next(item for item in objects if item["kind"] == "Pod")
    del pod["spec"]["securityContext"]["seccompProfile"]
    assert 'violates PodSecurity "restricted' in dry_run(kubectl, objects).stderr
