"""A store in memory: the shipped fake for tests, with a hook around every call where a test can crash or damage.

    store = MemoryStorage()
    store.after = lambda call, key: crash() if call == "put" else None     # the object is there, its writer is not

Semantics are those of the real ones; one conformance test runs them all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO, Literal, TypeAlias

from giblet.storage.base import ObjectInfo, PreconditionFailedError, checked_key, checked_range

Call: TypeAlias = Literal["put", "get", "head", "list", "delete"]
Hook: TypeAlias = Callable[[Call, str], None]


def _nothing(call: Call, key: str) -> None:
    """The hook that does nothing."""


class MemoryStorage:
    """Objects in a dictionary, safe between threads.

    `before` and `after` are called around each call with its name and key (`list` with its prefix); what they raise
    leaves the call: raised by `before` nothing was done, raised by `after` everything was. `conditional_puts = False`
    is a server that ignores `If-None-Match`.
    """

    def __init__(self, url: str = "memory://store", *, conditional_puts: bool = True) -> None:
        self.url = url
        self.conditional_puts = conditional_puts
        self.objects: dict[str, bytes] = {}
        self.before: Hook = _nothing
        self.after: Hook = _nothing
        self._modified: dict[str, float] = {}
        self._lock = threading.RLock()

    def put(self, key: str, body: bytes | BinaryIO, *, if_absent: bool = False) -> int:
        """See `Storage.put`."""
        checked_key(key)
        self.before("put", key)
        data = bytes(body) if isinstance(body, (bytes, bytearray, memoryview)) else _read_all(body)
        with self._lock:
            if if_absent and self.conditional_puts and key in self.objects:
                raise PreconditionFailedError(key)
            self.objects[key] = data
            self._modified[key] = time.time()
        self.after("put", key)
        return len(data)

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """See `Storage.get`."""
        checked_key(key)
        checked_range(start, stop)
        self.before("get", key)
        data = self.objects[key][start:stop]
        self.after("get", key)
        return data

    def head(self, key: str) -> ObjectInfo | None:
        """See `Storage.head`."""
        checked_key(key)
        self.before("head", key)
        with self._lock:
            info = self._info(key) if key in self.objects else None
        self.after("head", key)
        return info

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Storage.list`."""
        self.before("list", prefix)
        with self._lock:
            found = [self._info(key) for key in sorted(self.objects) if key.startswith(prefix)]
        self.after("list", prefix)
        return iter(found)

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        checked_key(key)
        self.before("delete", key)
        with self._lock:
            self.objects.pop(key, None)
            self._modified.pop(key, None)
        self.after("delete", key)

    def _info(self, key: str) -> ObjectInfo:
        return ObjectInfo(key, len(self.objects[key]), self._modified[key])


def _read_all(body: BinaryIO) -> bytes:
    """A stream's `read` may give less than there is."""
    return b"".join(iter(lambda: body.read(1 << 20), b""))
