"""The folder in which a dataset is made: resumable, locked, and whole only when it has its final name.

    <cache>/<hash>.partial/          arrays at their final names, allocated in full
    <cache>/<hash>.partial/.done/    one JSON file a part that is finished, or how far it is
    <cache>/<hash>.lock              held while somebody works; the kernel lets go of it when a process dies
    <cache>/<hash>/                  the dataset, renamed into place with its manifest

A disk that is full is found when an array is allocated: writing to a memory map on a full disk would kill the process.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import mmap
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from giblet.data.manifest import MANIFEST_NAME, Manifest
from giblet.errors import OutOfSpaceError
from giblet.telemetry.logs import get_logger

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
log = get_logger(__name__)


class Workspace:
    """A dataset in the making."""

    def __init__(self, cache_dir: Path, content_hash: str) -> None:
        self.final = cache_dir / content_hash
        self.folder = cache_dir / f"{content_hash}.partial"
        self._lock_file = cache_dir / f"{content_hash}.lock"
        self._done = self.folder / ".done"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock; waits while another process prepares the same dataset."""
        self._lock_file.parent.mkdir(parents=True, exist_ok=True)
        with self._lock_file.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("waiting for another process that prepares the same dataset", lock=self._lock_file)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def begin(self) -> None:
        """Make the folder, or find the one that was left."""
        self._done.mkdir(parents=True, exist_ok=True)

    def state(self, part: str) -> dict[str, Any]:
        """What was recorded of a part, empty if nothing was."""
        try:
            content: dict[str, Any] = json.loads((self._done / f"{part}.json").read_text())
        except FileNotFoundError:
            return {}
        return content

    def record(self, part: str, state: dict[str, Any]) -> None:
        """Record a part's state, atomically; what it speaks of must be on disk (`flush`) before."""
        write_atomically(self._done / f"{part}.json", json.dumps(state).encode())

    def scratch(self, name: str) -> Path:
        """A file beside the records, gone when the dataset is whole."""
        return self._done / name

    def array(self, name: str, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """A writable memory map of `<name>.npy`, as it was left if it is there, else allocated in full and zero.

        Raises `OSError` where the disk has no room for it.
        """
        path = self.folder / f"{name}.npy"
        header = _npy_header(shape, dtype)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(".new")
            with fresh.open("wb") as file:
                file.write(header)
                size = len(header) + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
                file.flush()
                os.posix_fallocate(file.fileno(), 0, size)
            fresh.replace(path)
        array: npt.NDArray[Any] = np.memmap(path, dtype, mode="r+", offset=len(header), shape=shape)
        return array

    def finish(self, manifest: Manifest) -> Path:
        """Write the manifest and give the folder its final name."""
        shutil.rmtree(self._done)
        write_atomically(self.folder / MANIFEST_NAME, manifest.to_json().encode())
        self.folder.rename(self.final)
        sync_folder(self.final.parent)
        return self.final


def _npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    """How a `.npy` of that shape begins.

    It is made anew rather than read: numpy reads it with `ast`, and when two threads are in there at once, or one
    while the other imports, CPython 3.11 raises a SystemError ("AST constructor recursion depth mismatch").
    """
    made = io.BytesIO()
    description = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(made, description)
    return made.getvalue()


def flush(*arrays: npt.NDArray[Any]) -> None:
    """Write memory maps to disk, and keep no page of them: what is mapped counts as ours, and grows with the film."""
    for array in arrays:
        assert isinstance(array, np.memmap)
        array.flush()
        mapped: object = array.base
        if isinstance(mapped, mmap.mmap) and hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_DONTNEED)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and have it on disk when this returns."""
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have a folder's names on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def full_disk_is_an_error_of_ours(folder: Path) -> Iterator[None]:
    """Turn the system's words for a full disk into `OutOfSpaceError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise OutOfSpaceError(
            f"{folder} has no room left ({error.strerror})",
            remedy="free some space, or set data.cache_dir to a larger disk; what is done is kept, and preparing "
            "again goes on from there",
        ) from error
