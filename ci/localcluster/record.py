"""What `up` decided, kept in the state folder before anything is started, so that the other verbs know."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from localcluster.shell import write_atomically


@dataclass(frozen=True)
class Record:
    """The kind of cluster (`kubeconfig`, `kind` or `local`) and its settings."""

    kind: str
    nodes: int = 0
    gpus: int = 0
    ports: dict[str, int] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    """Names of the images that were built here → their references in the cluster's registry."""
    installed: list[str] = field(default_factory=list)
    """Folders of k8s/ that `up` applied to somebody else's cluster, which `down` takes away again."""
    kubeconfig: str | None = None
    """Path of somebody else's kubeconfig; None for a cluster of our own."""

    def save(self, file: Path) -> None:
        """Write it, whole or not at all."""
        write_atomically(file, json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, file: Path) -> Record | None:
        """The record, or None when there is no cluster."""
        return cls(**json.loads(file.read_text())) if file.exists() else None
