"""giblet's own image in the cluster: built, pushed to the local registry (or loaded into kind), pulled on each node."""

from __future__ import annotations

import http.client
import subprocess
from pathlib import Path
from typing import Any

from trainerimage.builders import choose
from trainerimage.inputs import Inputs

from localcluster.external import KIND_NAME, GivenCluster, KindCluster
from localcluster.local import LocalCluster
from localcluster.machine import Machine
from localcluster.record import Record
from localcluster.settings import Paths, node_name
from localcluster.shell import ClusterError, run
from localcluster.steps import Step, Steps

_MANIFEST_TYPES = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
_SOCKET = "/run/containerd/containerd.sock"
Cluster = GivenCluster | KindCluster | LocalCluster


def the_cluster(paths: Paths) -> Cluster:
    """The cluster that `ci/cluster` works with."""
    from localcluster.cli import choose as choose_cluster

    return choose_cluster(paths, "auto")


def ensure(cluster: Cluster, inputs: Inputs, steps: Steps) -> dict[str, Any]:
    """Have the image of this checkout in the cluster, and return its names for the chart's values.

    `image` is the whole reference, by digest where there is a registry; `repository`, `tag`, `digest` its parts.
    Raises ClusterError for a cluster of somebody else's: its registry is not known.
    """
    if isinstance(cluster, GivenCluster):
        remedy = "ci/image push REGISTRY/NAME, and give its reference to the chart as image.repository and image.tag"
        raise ClusterError(
            "a cluster in KUBECONFIG pulls from a registry of its own, which is not known", remedy=remedy
        )
    builder = choose(cluster.paths.cache.parent / "image")
    from trainerimage.cli import built

    if isinstance(cluster, KindCluster):
        tag, _ = built(builder, inputs, steps)
        load = Step(
            "kind load docker-image", lambda: run(["kind", "load", "docker-image", tag, f"--name={KIND_NAME}"]), 60
        )
        steps.run([load])
        repository, _, name = tag.rpartition(":")
        return {"image": tag, "repository": repository, "tag": name, "digest": ""}
    return _in_local(cluster, inputs, steps)


def _in_local(cluster: LocalCluster, inputs: Inputs, steps: Steps) -> dict[str, Any]:
    from dataclasses import replace

    from trainerimage.cli import built

    record = Record.load(cluster.paths.record)
    if record is None or cluster.control_plane.machine.init_pid is None:
        raise ClusterError("no cluster is up", remedy="ci/cluster up")
    port = record.ports["registry"]
    builder = choose(cluster.paths.cache.parent / "image")
    inputs = replace(inputs, base_image=builder.base_image(inputs.base_image))
    repository, name = f"localhost:{port}/giblet", f"{inputs.accelerator}-{inputs.key()}"
    digest = pushed_digest(port, "giblet", name)
    if digest is None:
        tag, _ = built(builder, inputs, steps)
        digests: list[str] = []

        def push() -> None:
            digests.append(builder.push(tag, f"{repository}:{name}", insecure=True))

        steps.run([Step("push it to the local registry", push, 30)])
        digest = digests[0]
    image = f"{repository}@{digest}"
    nodes = [Machine(cluster.paths, node_name(number)) for number in range(1, record.nodes + 1)]
    ctr = cluster.tools.debian("ctr")
    if missing := [node for node in nodes if image not in _pulled(node, ctr)]:
        steps.run([Step(f"pull it on {len(missing)} node(s)", lambda: _pull(missing, ctr, image), 60)])
    return {"image": image, "repository": repository, "tag": name, "digest": digest}


def pushed_digest(port: int, repository: str, tag: str) -> str | None:
    """The digest of a tag in the registry on the host's loopback; None when it has none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("HEAD", f"/v2/{repository}/manifests/{tag}", headers={"Accept": _MANIFEST_TYPES})
        answer = connection.getresponse()
        answer.read()
        return answer.getheader("Docker-Content-Digest") if answer.status == 200 else None
    except OSError as error:
        raise ClusterError(f"the local registry does not answer: {error}", remedy="ci/cluster up") from error
    finally:
        connection.close()


def _ctr(node: Machine, ctr: Path, *words: str) -> list[str]:
    return [*node.enter(processes=False), str(ctr), f"--address={_SOCKET}", "--namespace=k8s.io", "images", *words]


def _pulled(node: Machine, ctr: Path) -> list[str]:
    return run(_ctr(node, ctr, "list", "--quiet")).split()


def _pull(nodes: list[Machine], ctr: Path, image: str) -> None:
    """On all nodes at once, as the kubelets would."""
    hosts = "--hosts-dir=/var/lib/giblet/registries"
    commands = [_ctr(node, ctr, "pull", "--plain-http", hosts, image) for node in nodes]
    running = [subprocess.Popen(c, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for c in commands]
    for node, process in zip(nodes, running, strict=True):
        _, said = process.communicate()
        if process.returncode != 0:
            raise ClusterError(f"{node.name} could not pull {image}\n    {said.strip()[-500:]}")
