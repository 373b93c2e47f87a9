"""A store that counts: what giblet asks of it, as the requests that S3 would see. Shards are sizes without bytes.

A stream is read and dropped (`folder_written_to` is where the last one went); small objects (manifests, records) are
kept. A range of a shard reads as zeros. `request_seconds` is how long S3 would take to answer a small request; it is
waited for, so that what is asked for one after the other costs what it would.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

from giblet.storage import ObjectInfo, PreconditionFailedError
from giblet.storage.base import checked_key, checked_range
from giblet.storage.s3_multipart import PART_BYTES

PAGE = 1000
"""Keys that one LIST request answers with."""
_ZEROS = bytes(64 << 20)


class CountingStorage:
    """See `giblet.storage.Storage`. Safe between threads.

    `requests` counts by S3's name of the operation, `read_keys` GETs by file name.
    """

    def __init__(self, request_seconds: float = 0.0) -> None:
        self.url = "s3://simulated"
        self.requests: Counter[str] = Counter()
        self.read_keys: Counter[str] = Counter()
        self.sizes: dict[str, int] = {}
        self.folder_written_to = ""
        self._bodies: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._request_seconds = request_seconds

    def put(self, key: str, body: bytes | BinaryIO, *, if_absent: bool = False) -> int:
        """See `Storage.put`."""
        checked_key(key)
        kept = bytes(body) if isinstance(body, (bytes, bytearray, memoryview)) else None
        if kept is None:
            self.folder_written_to = key.rpartition("/")[0] + "/"
        size = len(kept) if kept is not None else _drain(body)  # type: ignore[arg-type]
        with self._lock:
            if if_absent and key in self.sizes:
                self.requests["PutObject"] += 1
                raise PreconditionFailedError(key)
            if kept is not None:
                self._bodies[key] = kept
        self.put_without_bytes(key, size)
        time.sleep(self._request_seconds)
        return size

    def put_without_bytes(self, key: str, size_bytes: int) -> None:
        """What another rank's upload of so many bytes does to the store: its requests, and that it is there."""
        parts = -(-size_bytes // PART_BYTES)
        with self._lock:
            self.sizes[key] = size_bytes
            if parts <= 1:
                self.requests["PutObject"] += 1
            else:
                self.requests.update(CreateMultipartUpload=1, UploadPart=parts, CompleteMultipartUpload=1)

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """See `Storage.get`."""
        checked_key(key)
        checked_range(start, stop)
        self._count("GetObject")
        self.read_keys[key.rpartition("/")[2]] += 1
        size = self.sizes[key]
        if key in self._bodies:
            return self._bodies[key][start:stop]
        length = min(size if stop is None else stop, size) - start
        return _ZEROS[:length] if length <= len(_ZEROS) else bytes(length)

    def head(self, key: str) -> ObjectInfo | None:
        """See `Storage.head`."""
        self._count("HeadObject")
        return ObjectInfo(checked_key(key), self.sizes[key], 0.0) if key in self.sizes else None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Storage.list`."""
        found = [ObjectInfo(key, size, 0.0) for key, size in sorted(self.sizes.items()) if key.startswith(prefix)]
        for _ in range(max(1, -(-len(found) // PAGE))):
            self._count("ListObjectsV2")
        return iter(found)

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        self._count("DeleteObject")
        with self._lock:
            self.sizes.pop(checked_key(key), None)
            self._bodies.pop(key, None)

    def clean_unfinished(self, prefix: str = "", *, older_than_seconds: float = 86400.0) -> int:
        """See `Cleanable`: there is nothing unfinished here, and one request to learn it."""
        self._count("ListMultipartUploads")
        return 0

    def _count(self, operation: str) -> None:
        with self._lock:
            self.requests[operation] += 1
        time.sleep(self._request_seconds)


def _drain(body: BinaryIO) -> int:
    """Read a stream in parts, as the S3 client does, and drop them."""
    return sum(map(len, iter(lambda: body.read(PART_BYTES), b"")))
