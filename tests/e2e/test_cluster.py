"""ci/cluster: a real cluster on this machine, with the real operator, S3 and Prometheus. Needs root on Linux.

The programs must have been built (`ci/cluster build`: 10 minutes on two cores); the cluster itself takes a minute.
"""

from __future__ import annotations

import base64
import fcntl
import json
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.support.cluster import PROGRAM, TestCluster

# isort: split
from localcluster.local import LocalCluster, cannot_run_here
from localcluster.node import KERNEL_SETTINGS
from localcluster.settings import Paths

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NODES = ("node1", "node2")


@pytest.fixture(scope="module")
def host_before() -> dict[str, object]:
    return host()


def host() -> dict[str, object]:
    """What a cluster might change on the machine that it runs on. Tests beside these mount things in folders of theirs,
    below the temporary folder; `left_behind` looks at the cluster's own."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    names = {line.split()[0] for line in subprocess.check_output(["ip", "-brief", "link"], text=True).splitlines()}
    fixed = ("/var/lib/kubelet", "/var/lib/cni", "/var/log/pods", "/run/containerd", "/run/netns", "/etc/cni")
    return {
        "kernel": {name: (Path("/proc/sys") / name).read_text() for name in KERNEL_SETTINGS},
        "interfaces": names,
        "folders": {path: sorted(map(str, Path(path).rglob("*"))) for path in fixed if Path(path).exists()},
        "mounts": sorted(mount for mount in mounts if not Path(mount).is_relative_to(tempfile.gettempdir())),
    }


def local_cluster(state: Path) -> LocalCluster:
    return LocalCluster(Paths(state.resolve(), Paths.from_environment().cache))


def skip_unless_it_can_be_built(state: Path) -> None:
    if (reason := cannot_run_here()) is not None:
        pytest.skip(f"a local cluster {reason}")
    if missing := [step.name for step in local_cluster(state).tools.missing()]:
        pytest.skip(f"`ci/cluster build` first: {', '.join(missing)}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, host_before: dict[str, object]) -> Iterator[TestCluster]:
    """A cluster whose first start was killed half-way, and which a second start completed."""
    state = tmp_path_factory.mktemp("cluster") / "state"
    skip_unless_it_can_be_built(state)
    ours = TestCluster(state)
    try:
        ours.kill_when("start 2 node(s)", "up", "--kind", "local", "--nodes", "2", "--gpus", "8")
        ours.run("up", "--kind", "local", "--nodes", "2", "--gpus", "8")
        yield ours
    finally:
        ours.run("down", check=False)


def busybox(cluster: TestCluster, **container: Any) -> dict[str, Any]:
    """A pod specification that `restricted` admits, of the image with a shell that every local cluster has."""
    reference = cluster.status()["images"]["busybox"]
    locked = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    return {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "main", "image": reference, "securityContext": locked, **container}],
    }


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.5)


def test_a_start_that_was_killed_is_completed_by_the_next(cluster: TestCluster) -> None:
    status = cluster.status()
    assert status["ready"], status
    assert status["machines"] == ["control-plane", *NODES]
    assert [(row["name"], row["ready"], row["gpus"]) for row in status["nodes"]] == [(n, "True", "8") for n in NODES]
    assert {row["ready"] for row in status["add_ons"]} == {"1/1"}
    assert cluster.run("status").returncode == 0


def test_up_again_restarts_nothing(cluster: TestCluster) -> None:
    def daemons() -> dict[str, int | None]:
        local = local_cluster(cluster.state)
        names = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "registry", "forward")
        return {name: local.control_plane.machine.daemon_pid(name) for name in names}

    before = daemons()
    assert None not in before.values()
    cluster.run("up", "--nodes", "2", "--gpus", "8")
    assert daemons() == before


def test_two_verbs_at_once_are_refused(cluster: TestCluster) -> None:
    with Paths(cluster.state.resolve(), cluster.state).lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = cluster.run("up", check=False)
    assert done.returncode == 1
    assert "another ci/cluster works on" in done.stderr


def test_pods_on_two_nodes_reach_each_other_and_can_be_looked_into(cluster: TestCluster) -> None:
    serve = ["sh", "-c", "echo serving; exec httpd -f -p 8080 -h /bin"]
    for node in NODES:
        spec = busybox(cluster, command=serve) | {"nodeSelector": {"kubernetes.io/hostname": node}}
        labels = {"app": "net"} if node == "node2" else {}
        name = {"name": f"on-{node}", "namespace": "giblet", "labels": labels}
        cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": name, "spec": spec})
    service = {"selector": {"app": "net"}, "ports": [{"port": 80, "targetPort": 8080}]}
    metadata = {"name": "net", "namespace": "giblet"}
    cluster.apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service})
    ready = ["wait", "-n", "giblet", "--for=condition=Ready", "pod/on-node1", "pod/on-node2", "--timeout=60s"]
    cluster.kubectl(*ready)
    assert cluster.kubectl("-n", "giblet", "logs", "on-node2").stdout == "serving\n"
    fetch = ["-n", "giblet", "exec", "on-node1", "--", "timeout", "5", "wget", "-q", "-O", "/dev/null"]
    until(
        lambda: cluster.kubectl(*fetch, "http://net.giblet.svc.cluster.local/busybox", check=False).returncode == 0, 20
    )
    outside = cluster.kubectl(*fetch, "http://example.com/", check=False)
    assert "bad address" in outside.stderr, "a name outside the cluster must not resolve"
    cluster.kubectl("-n", "giblet", "delete", "pod/on-node1", "pod/on-node2", "service/net", "--wait=false")


def test_the_namespace_refuses_a_pod_that_is_not_restricted(cluster: TestCluster) -> None:
    spec = busybox(cluster) | {"hostNetwork": True}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "loose", "namespace": "giblet"}, "spec": spec}
    done = cluster.kubectl("apply", "-f", "-", stdin=json.dumps(pod), check=False)
    assert 'violates PodSecurity "restricted' in done.stderr


def elastic_job(cluster: TestCluster, name: str, container: str) -> dict[str, Any]:
    spec = busybox(
        cluster,
        command=["sh", "-c", 'echo "$PET_NNODES $PET_RDZV_ENDPOINT"; sleep 3'],
        resources={"limits": {"nvidia.com/gpu": "8"}},
    )
    spec["containers"][0]["name"] = container
    worker = {"replicas": 2, "restartPolicy": "OnFailure", "template": {"spec": spec}}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name, "namespace": "giblet"},
        "spec": {
            "nprocPerNode": "8",
            "elasticPolicy": {"minReplicas": 1, "maxReplicas": 2, "rdzvBackend": "c10d"},
            "runPolicy": {"cleanPodPolicy": "None"},
            "pytorchReplicaSpecs": {"Worker": worker},
        },
    }


def test_the_operator_runs_an_elastic_job_on_two_nodes_of_eight_gpus(cluster: TestCluster) -> None:
    cluster.apply(elastic_job(cluster, "elastic", "pytorch"))
    done = ["wait", "-n", "giblet", "--for=condition=Succeeded", "pytorchjob/elastic", "--timeout=90s"]
    cluster.kubectl(*done)
    pods = json.loads(
        cluster.kubectl(
            "get", "pods", "-n", "giblet", "-l", "training.kubeflow.org/job-name=elastic", "-o", "json"
        ).stdout
    )
    assert {pod["spec"]["nodeName"] for pod in pods["items"]} == set(NODES), "eight GPUs a pod: one pod a node"
    logs = cluster.kubectl("-n", "giblet", "logs", "elastic-worker-1").stdout
    assert logs == "1:2 elastic-worker-0:23456\n"
    cluster.kubectl("-n", "giblet", "delete", "pytorchjob/elastic")


def test_the_operators_webhook_refuses_a_job_without_its_container(cluster: TestCluster) -> None:
    job = elastic_job(cluster, "nameless", "trainer")
    done = cluster.kubectl("apply", "-f", "-", stdin=json.dumps(job), check=False)
    assert "denied the request" in done.stderr
    assert "pytorch" in done.stderr


def test_a_ninth_gpu_is_not_there(cluster: TestCluster) -> None:
    spec = busybox(cluster, command=["true"], resources={"limits": {"nvidia.com/gpu": "9"}})
    cluster.apply(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ninth", "namespace": "giblet"}, "spec": spec}
    )
    reason = ["get", "events", "-n", "giblet", "--field-selector=involvedObject.name=ninth", "-o", "json"]
    until(lambda: "Insufficient nvidia.com/gpu" in cluster.kubectl(*reason).stdout, 20)
    cluster.kubectl("-n", "giblet", "delete", "pod/ninth", "--wait=false")


def test_the_development_s3_keeps_objects_and_honours_conditions(cluster: TestCluster) -> None:
    secret = json.loads(cluster.kubectl("get", "secret", "giblet-s3", "-n", "giblet", "-o", "json").stdout)["data"]
    key, password = (base64.b64decode(secret[name]).decode() for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    with cluster.port_forward("giblet-s3", "service/s3", 8333) as address:
        s3 = boto3.client(
            "s3",
            endpoint_url=address,
            aws_access_key_id=key,
            aws_secret_access_key=password,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        )
        s3.put_object(Bucket="giblet", Key="one", Body=b"first", IfNoneMatch="*")
        with pytest.raises(ClientError, match="PreconditionFailed"):
            s3.put_object(Bucket="giblet", Key="one", Body=b"second", IfNoneMatch="*")
        assert s3.get_object(Bucket="giblet", Key="one")["Body"].read() == b"first"
        s3.close()


def test_prometheus_scrapes_what_has_a_port_named_metrics(cluster: TestCluster) -> None:
    with cluster.port_forward("giblet-monitoring", "service/prometheus", 9090) as address:

        def up() -> set[str]:
            with urllib.request.urlopen(f"{address}/api/v1/query?query=up==1", timeout=10) as answer:
                results = json.load(answer)["data"]["result"]
            return {row["metric"].get("container") or row["metric"].get("node", "") for row in results}

        until(lambda: {"training-operator", "seaweedfs", "coredns", *NODES} <= up())


def test_fewer_nodes_on_the_next_up_removes_the_others(cluster: TestCluster) -> None:
    cluster.run("up", "--nodes", "1", "--gpus", "8")
    status = cluster.status()
    assert [row["name"] for row in status["nodes"]] == ["node1"]
    assert status["machines"] == ["control-plane", "node1"]


def test_a_given_cluster_keeps_what_it_had(cluster: TestCluster, tmp_path: Path) -> None:
    """The same cluster, seen as somebody else's: up adds nothing that is there, and down takes nothing of it away."""
    given = TestCluster(tmp_path / "given")
    environment = given.environment | {"KUBECONFIG": str(cluster.state / "kubeconfig")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(PROGRAM), *words], env=environment, capture_output=True, text=True, check=False)

    assert "not ours to change" in run("up", "--gpus", "8").stderr
    assert run("up").returncode == 0
    assert json.loads(run("status", "--json").stdout)["kind"] == "kubeconfig"
    assert run("down").returncode == 0
    assert not given.state.exists()
    assert {row["ready"] for row in cluster.status()["add_ons"]} == {"1/1"}


def test_down_leaves_nothing(cluster: TestCluster, host_before: dict[str, object]) -> None:
    cluster.run("down")
    assert local_cluster(cluster.state).left_behind() == []
    assert host() == host_before
    cluster.run("down")  # once more: nothing to do, and no error


@pytest.mark.parametrize("line", ["start the control plane", "push images"])
def test_down_clears_up_after_a_start_that_was_killed(tmp_path: Path, line: str) -> None:
    ours = TestCluster(tmp_path / "state")
    skip_unless_it_can_be_built(ours.state)
    ours.kill_when(line, "up", "--kind", "local", "--nodes", "1")
    ours.run("down")
    assert local_cluster(ours.state).left_behind() == []
