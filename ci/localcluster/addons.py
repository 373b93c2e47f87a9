"""The add-ons of a cluster built here: images from this machine's programs, and k8s/dev with these images in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from localcluster.images import ImageSpec
from localcluster.settings import REPOSITORY
from localcluster.tools import Toolbox

OPERATOR_IMAGE = "ghcr.io/kubeflow/training-v1/training-operator"

# The image that a manifest in k8s/ names → the image built here that takes its place
REPLACED = {
    "coredns": "coredns",
    OPERATOR_IMAGE: "training-operator",
    "chrislusf/seaweedfs": "seaweedfs",
    "prom/prometheus": "prometheus",
}


def image_specs(tools: Toolbox) -> list[ImageSpec]:
    """All images that a fresh cluster needs, and one with a shell to look around in it."""
    busybox = tools.debian("busybox")
    return [
        ImageSpec("pause", {"/pause": tools.debian("catatonit")}, ("/pause", "-P")),
        ImageSpec("coredns", {"/bin/coredns": tools.go("coredns")}, ("/bin/coredns",)),
        ImageSpec("training-operator", {"/manager": tools.go("training-operator")}, ("/manager",)),
        ImageSpec("seaweedfs", {"/usr/bin/weed": tools.weed}, ("/usr/bin/weed",)),
        ImageSpec("prometheus", {"/bin/prometheus": tools.go("prometheus")}, ("/bin/prometheus",)),
        ImageSpec("busybox", {"/bin/busybox": busybox}, ("/bin/sh",), _applets(busybox)),
    ]


def _applets(busybox: Path) -> dict[str, str]:
    if not busybox.exists():
        return {}
    names = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    return {f"/bin/{name}": "busybox" for name in names if name != "busybox"}


def write_kustomizations(folder: Path, tools: Toolbox, images: dict[str, str]) -> list[Path]:
    """Kustomizations of k8s/ for this cluster, to be applied in this order; `images` maps names of image_specs to
    references in its registry.

    The operator comes last, since its definitions take kubectl seconds in which the others can start.
    k8s/operator names the operator's manifests by address; here the same files, at the same version, come from its Go
    module. kustomize accepts neither absolute paths nor ones outside, so everything is copied below `folder`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(REPOSITORY / "k8s", folder / "k8s")
    shutil.copytree(Path(__file__).with_name("manifests"), folder / "cluster")
    shutil.copytree(tools.operator_manifests, folder / "operator", copy_function=shutil.copyfile)
    for parent, folders, _ in os.walk(folder):
        for name in folders:
            (Path(parent) / name).chmod(0o755)  # Go's module cache is read-only, and so would our copy be
    replaced = []
    for name, image in REPLACED.items():
        repository, _, tag = images[image].rpartition(":")
        replaced.append({"name": name, "newName": repository, "newTag": tag})
    bases = ["../cluster", "../k8s/namespace", "../k8s/dev-s3", "../k8s/monitoring"]
    _write(folder / "first", bases, images=replaced)
    restricted = ["../k8s/operator/restricted"]
    _write(folder / "last", ["../operator/overlays/standalone"], images=replaced, components=restricted)
    return [folder / "first", folder / "last"]


def _write(folder: Path, resources: list[str], **more: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": resources, **more}
    (folder / "kustomization.yaml").write_text(json.dumps(content, indent=1))
