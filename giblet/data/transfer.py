"""Prepared datasets to and from storage: `datasets/<content hash>/…`, the manifest last in both directions.

publish(dataset, storage)
dataset = fetch(storage, content_hash, cache_dir)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from giblet.data.manifest import MANIFEST_NAME, Manifest
from giblet.data.prepared import PreparedDataset, file_sha256
from giblet.data.workspace import Workspace, full_disk_is_an_error_of_ours, sync_folder, write_atomically
from giblet.errors import DataError
from giblet.storage.base import Storage
from giblet.telemetry.logs import get_logger
from giblet.telemetry.progress import progress

PREFIX = "datasets"
PIECE_BYTES = 16 * 2**20
log = get_logger(__name__)


def dataset_key(content_hash: str, file: str = "") -> str:
    """The key of a dataset's file, or of its folder."""
    return f"{PREFIX}/{content_hash}/{file}"


def is_published(storage: Storage, content_hash: str) -> bool:
    """Whether the store has the whole dataset."""
    return storage.head(dataset_key(content_hash, MANIFEST_NAME)) is not None


def publish(dataset: PreparedDataset, storage: Storage) -> int:
    """Copy a dataset to storage and return the bytes sent; nothing is sent if it is there already.

    Files that are there in full size, left by a publisher that was interrupted, are not sent again: `fetch` checks
    hashes. The manifest goes last: its presence means the rest is there.
    """
    content_hash = dataset.manifest.content_hash
    if is_published(storage, content_hash):
        return 0
    sent = 0
    sizes = {file: (dataset.path / file).stat().st_size for file in _files(dataset.manifest)}
    with progress("publish", total=sum(sizes.values()) / 2**20, unit="MiB") as bar:
        for file, size in sizes.items():
            key = dataset_key(content_hash, file)
            there = storage.head(key)
            if there is None or there.size_bytes != size:
                with (dataset.path / file).open("rb") as body:
                    sent += storage.put(key, body)
            bar.advance(size / 2**20)
    sent += storage.put(dataset_key(content_hash, MANIFEST_NAME), (dataset.path / MANIFEST_NAME).read_bytes())
    log.info("published", dataset=f"{storage.url}/{dataset_key(content_hash)}", bytes=sent)
    return sent


def fetch(storage: Storage, content_hash: str, cache_dir: str | Path) -> PreparedDataset:
    """Copy a dataset from storage to `cache_dir/<content hash>`, checking every array's hash, or open it there.

    Processes of one node may call this at once: one copies, the others wait. Interrupted, it goes on with the next
    file. Raises `DataError` where storage has no such dataset or other bytes, `OutOfSpaceError` for a full disk.
    """
    workspace = Workspace(Path(cache_dir), content_hash)
    with full_disk_is_an_error_of_ours(Path(cache_dir)), workspace.locked():
        if not workspace.final.exists():
            _fetch(storage, content_hash, workspace)
    return PreparedDataset.open(workspace.final)


def _fetch(storage: Storage, content_hash: str, workspace: Workspace) -> None:
    try:
        text = storage.get(dataset_key(content_hash, MANIFEST_NAME))
    except KeyError:
        raise DataError(
            f"{storage.url} has no prepared dataset {content_hash}",
            remedy="prepare it here and publish it, or correct data.prepared",
        ) from None
    manifest = Manifest.parse(text, where=f"{storage.url}/{dataset_key(content_hash, MANIFEST_NAME)}")
    hashes = {array.file: array.sha256 for array in manifest.array_files()}
    folder = workspace.folder.with_suffix(".fetching")
    folder.mkdir(parents=True, exist_ok=True)
    files = list(_files(manifest))
    with progress("fetch", total=len(files), unit="files") as bar:
        for file in files:
            _fetch_file(storage, dataset_key(content_hash, file), folder / file, hashes.get(file))
            bar.advance()
    write_atomically(folder / MANIFEST_NAME, text)
    folder.rename(workspace.final)
    sync_folder(workspace.final.parent)
    log.info("fetched", dataset=workspace.final)


def _fetch_file(storage: Storage, key: str, path: Path, sha256: str | None) -> None:
    if sha256 is not None and path.exists() and file_sha256(path) == sha256:
        return
    info = storage.head(key)
    if info is None:
        raise DataError(f"{storage.url} lacks {key}", remedy="delete the dataset there and publish it again")
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for start in range(0, info.size_bytes, PIECE_BYTES):
            piece = storage.get(key, start, min(start + PIECE_BYTES, info.size_bytes))
            digest.update(piece)
            file.write(piece)
    if sha256 is not None and digest.hexdigest() != sha256:
        path.unlink()
        raise DataError(
            f"{storage.url}/{key} is not what its manifest recorded: its SHA-256 differs",
            remedy="delete the dataset there and publish it again",
        )


def _files(manifest: Manifest) -> Iterator[str]:
    """Every file but the manifest."""
    for array in manifest.array_files():
        yield array.file
    for subject in manifest.subjects:
        yield subject.mask
