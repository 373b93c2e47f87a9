"""What the image is made of, as one hash, and what its labels say."""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from localcluster.settings import REPOSITORY
from localcluster.shell import ClusterError, run

ACCELERATORS = ("cuda", "none")
LOCKS = ("ci/bootstrap.lock", "docker/requirements.lock")
# The files of the packages' layers; all else belongs to giblet's own.
RECIPE = (*LOCKS, "docker/Dockerfile", "docker/install.sh", "docker/without_accelerator.py")
_APPLICATION = ("LICENSE", "README.md", "pyproject.toml")
# Layers' files carry this time whenever they are built, so that the same content is the same layer: 2026-01-01.
LAYER_EPOCH_SECONDS = 1767225600


@dataclass(frozen=True)
class Inputs:
    """One image to be: its build arguments. An empty `base_image` means the Dockerfile's own."""

    accelerator: str = "cuda"
    base_image: str = ""
    source: str = ""

    def key(self) -> str:
        """12 hex digits that change when any file or argument does."""
        digest = hashlib.sha256(f"{self.accelerator}\n{self.base_image}\n{self.source}\n".encode())
        for path in _files():
            digest.update(f"{path.relative_to(REPOSITORY)}\0".encode() + path.read_bytes() + b"\0")
        return digest.hexdigest()[:12]

    def build_arguments(self) -> dict[str, str]:
        """The Dockerfile's arguments."""
        created = datetime.fromtimestamp(created_seconds(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        labels = {"VERSION": version(), "REVISION": revision(), "CREATED": created, "SOURCE": self.source}
        base = {"BASE_IMAGE": self.base_image} if self.base_image else {}
        return {"ACCELERATOR": self.accelerator} | base | labels


def version() -> str:
    """giblet's own, from pyproject.toml."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def revision() -> str:
    """The commit, with `-dirty` when a file of the image differs from it; empty outside a git checkout."""
    try:
        commit = run(["git", "-C", REPOSITORY, "rev-parse", "HEAD"]).strip()
        changed = run(["git", "-C", REPOSITORY, "status", "--porcelain", "--", *RECIPE, *_APPLICATION, "giblet"])
    except ClusterError:
        return ""
    return f"{commit}-dirty" if changed.strip() else commit


def created_seconds() -> int:
    """SOURCE_DATE_EPOCH, else the commit's time: building again later makes the same image."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    try:
        return int(run(["git", "-C", REPOSITORY, "log", "-1", "--format=%ct"]))
    except ClusterError:
        return LAYER_EPOCH_SECONDS


def default_base() -> str:
    """The Dockerfile's BASE_IMAGE."""
    found = re.search(r"^ARG BASE_IMAGE=(\S+)$", (REPOSITORY / "docker/Dockerfile").read_text(), re.MULTILINE)
    assert found is not None, "docker/Dockerfile has no default for BASE_IMAGE"
    return found.group(1)


def locks_key() -> str:
    """16 hex digits that change with the locked packages."""
    return hashlib.sha256(b"".join((REPOSITORY / name).read_bytes() for name in LOCKS)).hexdigest()[:16]


def _files() -> Iterator[Path]:
    yield from (REPOSITORY / name for name in (*RECIPE, *_APPLICATION, ".dockerignore"))
    for path in sorted((REPOSITORY / "giblet").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path
