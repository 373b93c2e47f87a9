"""A folder as a store: a key is a path, an object appears by rename, so that a reader never sees half of one.

What a killed writer leaves lies in `.partial/` under the root, outside every listing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from giblet.errors import GibletError, OutOfSpaceError, StorageDeniedError, StorageUnavailableError
from giblet.storage.base import ObjectInfo, PreconditionFailedError, checked_key, checked_range, fill

COPY_BYTES = 1 << 22
_PARTIAL = ".partial"
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EOPNOTSUPP}
_FULL = {errno.ENOSPC, errno.EDQUOT}


class LocalStorage:
    """Objects as files under a folder, which is made by the first `put`.

    Raises `OutOfSpaceError`, `StorageDeniedError` or `StorageUnavailableError`, each naming folder and key.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()
        self.url = str(self.root)

    def put(self, key: str, body: bytes | BinaryIO, *, if_absent: bool = False) -> int:
        """See `Storage.put`. Written beside, flushed to the disk, then renamed (linked with `if_absent`)."""
        path = self._path(key)
        if if_absent and path.exists():
            raise PreconditionFailedError(key)
        with self._translated("write", key):
            partial = self.root / _PARTIAL / uuid.uuid4().hex
            partial.parent.mkdir(parents=True, exist_ok=True)
            try:
                size = _write_and_flush(partial, body)
                _publish(partial, path, if_absent=if_absent)
            finally:
                partial.unlink(missing_ok=True)
        return size

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """See `Storage.get`."""
        path = self._path(key)
        checked_range(start, stop)
        with self._translated("read", key), path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            wanted = max(0, min(size, size if stop is None else stop) - start)
            file.seek(start)
            return _read_exactly(file, wanted)

    def get_into(self, key: str, start: int, places: Sequence[memoryview]) -> int:
        """See `Scattering`."""
        path = self._path(key)
        with self._translated("read", key), path.open("rb", buffering=0) as file:
            file.seek(start)
            return sum(fill(place, file) for place in places)

    def head(self, key: str) -> ObjectInfo | None:
        """See `Storage.head`."""
        path = self._path(key)
        try:
            with self._translated("look at", key):
                status = path.stat()
        except KeyError:
            return None
        return ObjectInfo(key, status.st_size, status.st_mtime) if path.is_file() else None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Storage.list`."""
        folder = self.root / prefix.rpartition("/")[0]
        found = []
        for parent, folders, files in os.walk(folder):
            if Path(parent) == self.root:
                folders[:] = [name for name in folders if name != _PARTIAL]
            for name in files:
                path = Path(parent, name)
                key = path.relative_to(self.root).as_posix()
                if key.startswith(prefix):
                    with contextlib.suppress(FileNotFoundError):  # deleted while we looked
                        status = path.stat()
                        found.append(ObjectInfo(key, status.st_size, status.st_mtime))
        return iter(sorted(found, key=lambda info: info.key))

    def delete(self, key: str) -> None:
        """See `Storage.delete`. Folders left empty go too."""
        path = self._path(key)
        with self._translated("delete", key):
            path.unlink(missing_ok=True)
        for folder in path.parents:
            if folder == self.root:
                break
            try:
                folder.rmdir()
            except OSError:
                break

    def clean_unfinished(self, prefix: str = "", *, older_than_seconds: float = 86400.0) -> int:
        """See `Cleanable`. Temporary files do not know their key, so that `prefix` does not matter here."""
        oldest = time.time() - older_than_seconds
        removed = 0
        for path in (self.root / _PARTIAL).glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()
                    removed += 1
        return removed

    def _path(self, key: str) -> Path:
        return self.root / checked_key(key)

    @contextlib.contextmanager
    def _translated(self, doing: str, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise KeyError(key) from None
        except OSError as error:
            raise _explained(error, f"{self.root}: cannot {doing} {key}: {error.strerror or error}") from error


def _explained(error: OSError, message: str) -> GibletError:
    if error.errno in _FULL:
        return OutOfSpaceError(message, remedy="free some space, or point checkpoint.url elsewhere")
    if error.errno in _DENIED:
        return StorageDeniedError(message, remedy="check the folder's owner and permissions, or checkpoint.url")
    return StorageUnavailableError(message, remedy="check the disk or the network file system behind it")


def _write_and_flush(path: Path, body: bytes | BinaryIO) -> int:
    with path.open("xb", buffering=0) as file:
        if isinstance(body, (bytes, bytearray, memoryview)):
            view = memoryview(body)
            while view:
                view = view[file.write(view) :]
        else:
            piece = memoryview(bytearray(COPY_BYTES))
            while got := fill(piece, body):
                view = piece[:got]
                while view:
                    view = view[file.write(view) :]
        os.fsync(file.fileno())
        return file.tell()


def _read_exactly(file: object, wanted: int) -> bytes:
    parts = []
    while wanted > 0:
        part = file.read(wanted)  # type: ignore[attr-defined]
        if not part:
            break
        parts.append(part)
        wanted -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _publish(partial: Path, path: Path, *, if_absent: bool) -> None:
    for _ in range(100):  # a concurrent delete may remove the folder between the two calls
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if if_absent:
                os.link(partial, path)
            else:
                partial.replace(path)
            break
        except FileExistsError:
            raise PreconditionFailedError(path.name) from None
        except FileNotFoundError:
            if not partial.exists():
                raise
    else:
        raise StorageUnavailableError(f"{path}: its folder vanishes as fast as it is made")
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
