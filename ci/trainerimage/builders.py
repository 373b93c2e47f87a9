"""Docker and buildah behind the same few methods."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Protocol

from localcluster.settings import REPOSITORY
from localcluster.shell import ClusterError, run, succeeds
from localcluster.steps import Step
from localcluster.tools import install

from trainerimage import materials
from trainerimage.inputs import LAYER_EPOCH_SECONDS, Inputs, default_base

# Measured on two cores: (with every layer to be made, with only giblet's)
_SECONDS = {"cuda": (330, 30), "none": (220, 25)}


class Builder(Protocol):
    """Builds images into a store of its own on this machine, and pushes them from there."""

    def base_image(self, asked: str) -> str:
        """The base to build on: what was asked for, else what can be had."""

    def steps(self, inputs: Inputs, tag: str) -> list[Step]:
        """What makes `tag`; layers that are there already are used again."""

    def has(self, tag: str) -> bool:
        """Whether an image is in the store."""

    def push(self, tag: str, target: str, *, insecure: bool) -> str:
        """Copy an image to a registry; returns its digest there."""

    def layers(self, tag: str) -> list[tuple[str, int]]:
        """Who made each layer, and its bytes, the lowest first."""


class Docker:
    """BuildKit, wherever a Docker engine answers. Packages come from the index, inside the build."""

    def base_image(self, asked: str) -> str:
        """The Dockerfile's, by its digest, unless another is asked for."""
        return asked

    def steps(self, inputs: Inputs, tag: str) -> list[Step]:
        """One: BuildKit does everything."""
        arguments = inputs.build_arguments() | {"SOURCE_DATE_EPOCH": str(LAYER_EPOCH_SECONDS)}
        words = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        command = ["docker", "buildx", "build", "--load", *words, "--file=docker/Dockerfile", f"--tag={tag}", "."]
        return [
            Step(f"docker buildx build {tag}", lambda: run(command, cwd=REPOSITORY), _SECONDS[inputs.accelerator][0])
        ]

    def has(self, tag: str) -> bool:
        """Whether the engine has it."""
        return succeeds(["docker", "image", "inspect", tag])

    def push(self, tag: str, target: str, *, insecure: bool) -> str:
        """Tag and push; whether a registry may be spoken to without TLS is the engine's own setting."""
        run(["docker", "tag", tag, target])
        run(["docker", "push", "--quiet", target])
        facts: dict[str, Any] = json.loads(run(["docker", "image", "inspect", target]))[0]
        name = target.rpartition(":")[0]
        return next(str(known).partition("@")[2] for known in facts["RepoDigests"] if known.startswith(f"{name}@"))

    def layers(self, tag: str) -> list[tuple[str, int]]:
        """From the image's history."""
        rows = run(["docker", "history", "--no-trunc", "--human=false", "--format={{.Size}} {{.CreatedBy}}", tag])
        sizes = [row.partition(" ") for row in reversed(rows.splitlines())]
        return [(made_by, int(size)) for size, _, made_by in sizes if int(size)]


class Buildah:
    """Root on Linux, no engine. Nothing is fetched inside the build: wheels are downloaded before, and lent to it."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache

    def base_image(self, asked: str) -> str:
        """The Dockerfile's where its registry can be reached, else a Debian that debootstrap makes."""
        if shutil.which("buildah") is None:
            install(["buildah"])
        if asked or materials.has_stand_in():
            return asked or materials.STAND_IN
        return "" if succeeds(["buildah", "pull", "--quiet", default_base()]) else materials.STAND_IN

    def steps(self, inputs: Inputs, tag: str) -> list[Step]:
        """Wheels and base where they are not cached, then the build."""
        wheels = materials.wheels_folder(self.cache)
        steps = []
        if inputs.base_image == materials.STAND_IN and not materials.has_stand_in():
            steps.append(Step("debootstrap a base: no image registry can be reached", materials.make_stand_in, 90))
        if not wheels.exists():
            steps.append(Step("download the locked packages, 2.9 GB", lambda: materials.fetch_wheels(wheels), 60))
        words = [f"--build-arg={name}={value}" for name, value in inputs.build_arguments().items()]
        # chroot: no container runtime has to be there, nor its control groups. A fixed time: see inputs.py.
        options = ["--isolation=chroot", "--layers", f"--timestamp={LAYER_EPOCH_SECONDS}", f"--tag={tag}"]
        limits = ["--ulimit=nofile=1024:4096", "--ulimit=nproc=4096:4096"]  # the defaults need CAP_SYS_RESOURCE
        contexts = [f"--build-context=wheels={wheels}", "--file=docker/Dockerfile", "."]
        command = ["buildah", "build", "--quiet", *options, *limits, *words, *contexts]
        known = (self.cache / "timings.json").exists()
        seconds = _SECONDS[inputs.accelerator][1 if known else 0]
        return [*steps, Step(f"buildah build {inputs.accelerator}", lambda: run(command, cwd=REPOSITORY), seconds)]

    def has(self, tag: str) -> bool:
        """Whether buildah's store has it."""
        return shutil.which("buildah") is not None and succeeds(["buildah", "inspect", "--type=image", tag])

    def push(self, tag: str, target: str, *, insecure: bool) -> str:
        """Layers are compressed with zstd, quickly: half the bytes for a few seconds of a processor."""
        with tempfile.TemporaryDirectory() as folder:
            digest = Path(folder) / "digest"
            options = ["--quiet", f"--tls-verify={str(not insecure).lower()}", f"--digestfile={digest}"]
            compression = ["--format=oci", "--compression-format=zstd", "--compression-level=1"]
            run(["buildah", "push", *options, *compression, tag, f"docker://{target}"])
            return digest.read_text().strip()

    def layers(self, tag: str) -> list[tuple[str, int]]:
        """From the store's record of each layer of the image."""
        facts = json.loads(run(["buildah", "inspect", "--type=image", tag]))
        made_by = [entry["created_by"] for entry in facts["OCIv1"]["history"] if not entry.get("empty_layer")]
        store = Path(json.loads(run(["buildah", "info"]))["store"]["GraphRoot"])
        known = json.loads((store / "overlay-layers/layers.json").read_text())
        sizes = {layer.get("diff-digest"): int(layer.get("diff-size", 0)) for layer in known}
        digests = facts["OCIv1"]["rootfs"]["diff_ids"]
        return [(words, sizes.get(digest, 0)) for words, digest in zip(made_by, digests, strict=True)]


def choose(cache: Path, asked: str = "auto") -> Builder:
    """Docker where an engine answers, else buildah."""
    if asked == "docker" or (asked == "auto" and docker_answers()):
        return Docker()
    if asked == "auto" and (os.name != "posix" or os.geteuid() != 0):
        remedy = "start a Docker engine; or, on Linux, run this as root, for buildah"
        raise ClusterError("no Docker engine answers, and buildah needs root here", remedy=remedy)
    return Buildah(cache)


def docker_answers() -> bool:
    """Whether there is a Docker engine, and not only its command."""
    return shutil.which("docker") is not None and succeeds(["docker", "info", "--format={{.ServerVersion}}"])
