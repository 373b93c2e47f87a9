"""From an address to a `Source`: a run, one of its checkpoints, a safetensors or torch file, a DCP folder.

The format is found by looking, never by the name alone.
"""

from __future__ import annotations

from pathlib import Path

from giblet.checkpoint.layout import MANIFEST, CheckpointRef, checkpoints_prefix, split_address
from giblet.config.schema import CheckpointConfig
from giblet.errors import CheckpointError
from giblet.storage import Storage, open_storage
from giblet.verify.dcp_source import METADATA, open_dcp
from giblet.verify.giblet_source import open_giblet
from giblet.verify.safetensors_source import open_safetensors
from giblet.verify.sources import Source
from giblet.verify.torch_source import open_torch

_TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
_ZIP = b"PK\x03\x04"


def open_source(url: str, storage: Storage | None = None, config: CheckpointConfig | None = None) -> Source:
    """Find what lies at `url` and list its contents.

    `storage` is the store that `url` lies in (found from the address if None, with the settings of `config`). A run's
    folder stands for its newest checkpoint. Raises `CheckpointError` if no checkpoint lies there, and `DamagedError`
    if one does that cannot be listed.
    """
    url = url.rstrip("/")
    store, key = _locate(url, storage, config)
    if key and store.head(key) is not None:
        return _open_file(url, store, key)
    prefix = f"{key}/" if key else ""
    if store.head(prefix + MANIFEST) is not None:
        return open_giblet(url, store, prefix + MANIFEST)
    if store.head(prefix + METADATA) is not None:
        return open_dcp(url, store, prefix)
    ref = newest_checkpoint(store, prefix)
    if ref is None:
        raise CheckpointError(
            f"{url}: there is no checkpoint: no {MANIFEST} in or under it, and it is no safetensors, torch or DCP file",
            remedy="name a run (<checkpoint.url>/runs/<name>), one of its checkpoints, or a file",
        )
    inside = ref.prefix.removeprefix(prefix).rstrip("/")
    return open_giblet(f"{url}/{inside}", store, ref.manifest_key)


def newest_checkpoint(store: Storage, prefix: str) -> CheckpointRef | None:
    """The newest commit under a prefix, whether good or bad."""
    parts = prefix.rstrip("/").split("/")
    if len(parts) == 2 and parts[0] == "runs":
        prefix = checkpoints_prefix(parts[1])
    refs = (CheckpointRef.of_manifest_key(info.key) for info in store.list(prefix))
    return max((ref for ref in refs if ref is not None), default=None)


def checkpoint_ref(source: Source) -> CheckpointRef | None:
    """Which checkpoint of which run a source is; None for one outside of a run's folder."""
    return CheckpointRef.of_manifest_key(source.place + MANIFEST) if source.kind == "giblet" else None


def _locate(url: str, storage: Storage | None, config: CheckpointConfig | None) -> tuple[Storage, str]:
    if storage is not None:
        root = storage.url.rstrip("/")
        if url != root and not url.startswith(f"{root}/"):
            raise CheckpointError(f"{url} does not lie in {root}", remedy="name an address within that store")
        return storage, url.removeprefix(root).strip("/")
    if "/runs/" in url or url.startswith("runs/"):
        root, key = split_address(url)
    elif url.startswith("s3://"):
        bucket, _, key = url.removeprefix("s3://").partition("/")
        root = f"s3://{bucket}"
    else:
        path = Path(url).expanduser()
        if not path.exists():
            raise CheckpointError(f"{url}: there is no such file or folder", remedy="check the address")
        root, key = (str(path), "") if path.is_dir() else (str(path.parent), path.name)
    return open_storage(root, config), key


def _open_file(url: str, store: Storage, key: str) -> Source:
    if key.rpartition("/")[2] == MANIFEST:
        return open_giblet(url.removesuffix(MANIFEST).rstrip("/"), store, key)
    if key.endswith(_TORCH_SUFFIXES) or store.get(key, 0, 4) == _ZIP:
        return open_torch(url, store, key)
    return open_safetensors(url, store, key)
