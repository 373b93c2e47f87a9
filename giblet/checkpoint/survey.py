"""What lies in a store: the attempts at checkpoints of a run, and the runs themselves, from listings alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from giblet.checkpoint import layout
from giblet.checkpoint.layout import CheckpointRef
from giblet.storage import ObjectInfo, Storage


@dataclass(slots=True)
class Found:
    """What a listing shows of one attempt at a checkpoint."""

    ref: CheckpointRef
    sizes: dict[str, int] = field(default_factory=dict)
    committed_unix_seconds: float | None = None

    @property
    def committed(self) -> bool:
        """It has a manifest."""
        return layout.MANIFEST in self.sizes

    @property
    def quarantined(self) -> bool:
        """Somebody found it bad."""
        return layout.QUARANTINE in self.sizes

    @property
    def size_bytes(self) -> int:
        """All its objects."""
        return sum(self.sizes.values())


def survey(storage: Storage, run: str) -> list[Found]:
    """Every attempt under a run, oldest first, from one listing."""
    return group_by_attempt(storage.list(layout.checkpoints_prefix(run)), run)


def group_by_attempt(infos: Iterable[ObjectInfo], run: str) -> list[Found]:
    """The objects of a listing, put together again."""
    found: dict[CheckpointRef, Found] = {}
    for info in infos:
        folder, _, name = info.key.rpartition("/")
        ref = CheckpointRef.of_manifest_key(f"{folder}/{layout.MANIFEST}")
        if ref is None or ref.run != run:
            continue
        entry = found.setdefault(ref, Found(ref))
        entry.sizes[name] = info.size_bytes
        if name == layout.MANIFEST:
            entry.committed_unix_seconds = info.modified_unix_seconds
    return [found[ref] for ref in sorted(found)]
