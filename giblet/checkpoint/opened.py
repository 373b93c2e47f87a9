"""Finding a checkpoint by its address, and reading its manifest, without a model or torch.

    checkpoint = open_checkpoint("s3://bucket/prefix/runs/my-run", config.checkpoint)

Whoever wants to see the bytes too asks `giblet.verify`, which reads each of them once in bounded memory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from giblet.checkpoint import layout
from giblet.checkpoint.layout import CheckpointRef
from giblet.checkpoint.manifest import Manifest
from giblet.checkpoint.survey import survey
from giblet.config.schema import CheckpointConfig
from giblet.errors import CheckpointError
from giblet.storage import Storage, open_storage

_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True, slots=True)
class OpenCheckpoint:
    """A checkpoint that was found. `ref` is None for one that lies outside a run (`GibletStorageWriter`'s)."""

    storage: Storage
    prefix: str
    manifest: Manifest
    ref: CheckpointRef | None

    @property
    def url(self) -> str:
        """Where it lies."""
        return f"{self.storage.url}/{self.prefix}".rstrip("/")


def open_checkpoint(
    location: str | CheckpointRef, config: CheckpointConfig | None = None, *, storage: Storage | None = None
) -> OpenCheckpoint:
    """The checkpoint at `location`: an address, or a reference within `storage`.

    Addresses: `<store>/runs/<run>` (its newest), `…/checkpoints/step-N` (its newest attempt), `…/<attempt>`, any of
    them with `/MANIFEST.json`, or another folder that holds a manifest. Raises `CheckpointError` if none is there or
    the manifest is damaged, and the storage's own errors.
    """
    if isinstance(location, CheckpointRef):
        assert storage is not None, "a reference needs its storage"
        return _open_ref(storage, location)
    address = location.rstrip("/").removesuffix(layout.MANIFEST).rstrip("/")
    if "/runs/" in f"/{address}":
        base, key = layout.split_address(address)
        return _open_ref(storage or open_storage(base, config), _resolve(storage or open_storage(base, config), key))
    store = storage or open_storage(address, config)
    return OpenCheckpoint(store, "", read_manifest(store, ""), None)


def read_manifest(storage: Storage, prefix: str) -> Manifest:
    """The manifest in a checkpoint's folder. Raises `CheckpointError` if there is none, or a damaged one."""
    return Manifest.parse(manifest_body(storage, prefix), manifest_url(storage, prefix))


def manifest_url(storage: Storage, prefix: str) -> str:
    """Where the manifest of a checkpoint's folder lies, for people."""
    return f"{storage.url}/{prefix}{layout.MANIFEST}"


def manifest_body(storage: Storage, prefix: str) -> bytes:
    """The manifest's bytes. Raises `CheckpointError` if there is none."""
    try:
        return storage.get(prefix + layout.MANIFEST)
    except KeyError:
        raise CheckpointError(
            f"{manifest_url(storage, prefix)}: there is none, so this is no committed checkpoint",
            remedy="list them with `giblet runs`",
        ) from None


def _open_ref(storage: Storage, ref: CheckpointRef) -> OpenCheckpoint:
    return OpenCheckpoint(storage, ref.prefix, read_manifest(storage, ref.prefix), ref)


def _resolve(storage: Storage, key: str) -> CheckpointRef:
    exact = CheckpointRef.of_manifest_key(f"{key}/{layout.MANIFEST}")
    if exact is not None:
        return exact
    parts = key.split("/")
    step = _STEP.fullmatch(parts[3]) if len(parts) == 4 else None
    if len(parts) not in (2, 3, 4) or (len(parts) > 2 and parts[2] != "checkpoints") or (len(parts) == 4 and not step):
        raise CheckpointError(
            f"{storage.url}/{key}: neither a run nor a checkpoint",
            remedy="write runs/<run>, or runs/<run>/checkpoints/step-<number>",
        )
    found = [entry for entry in survey(storage, parts[1]) if entry.committed]
    if step is not None:
        found = [entry for entry in found if entry.ref.step == int(step[1])]
    good = [entry for entry in found if not entry.quarantined]
    if not (good or found):
        raise CheckpointError(
            f"{storage.url}/{key}: holds no committed checkpoint", remedy="list them with `giblet runs`"
        )
    return (good or found)[-1].ref
