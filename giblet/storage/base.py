"""What giblet asks of a place that keeps objects: five calls, and nothing about files or buckets.

Keys are relative to the store's root, with forward slashes. An object appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal, Protocol, runtime_checkable

from giblet.errors import StorageDeniedError


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store knows of an object without reading it."""

    key: str
    size_bytes: int
    modified_unix_seconds: float


class PreconditionFailedError(Exception):
    """`put(..., if_absent=True)` found the key taken. The caller decides what that means."""


class ConditionRefusedError(StorageDeniedError):
    """This server does not do `put(..., if_absent=True)` at all. Nothing was written."""


@runtime_checkable
class Storage(Protocol):
    """A keyed store of immutable-by-habit byte objects."""

    url: str

    def put(self, key: str, body: bytes | BinaryIO, *, if_absent: bool = False) -> int:
        """Write an object whole and return its size in bytes.

        A body with `read` is streamed in bounded memory. With `if_absent`, raises `PreconditionFailedError` if the key
        is taken, and `ConditionRefusedError` where the server knows no such thing.
        """
        ...

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Read an object, or its bytes `[start, stop)`. Raises `KeyError` if there is none."""
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of an object, or None if there is none."""
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object whose key starts with `prefix`, in the order of their keys."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; no error if there is none."""
        ...


@runtime_checkable
class Scattering(Protocol):
    """A store that reads straight to where bytes belong, without a copy in between."""

    def get_into(self, key: str, start: int, places: Sequence[memoryview]) -> int:
        """Fill writable `places`, one after the other, with an object's bytes from `start` on.

        Returns how many there were, fewer than fit only where the object ends. Raises `KeyError` if there is none.
        """
        ...


def get_into(storage: Storage, key: str, start: int, places: Sequence[memoryview]) -> int:
    """`Scattering.get_into` for any store."""
    if isinstance(storage, Scattering):
        return storage.get_into(key, start, places)
    data = memoryview(storage.get(key, start, start + sum(len(place) for place in places)))
    at = 0
    for place in places:
        piece = data[at : at + len(place)]
        place[: len(piece)] = piece
        at += len(piece)
    return at


def fill(buffer: memoryview, body: BinaryIO) -> int:
    """Read from `body` until `buffer` is full or it ends, however little each of its reads gives; returns the bytes."""
    into = getattr(body, "readinto", None)
    at = 0
    while at < len(buffer):
        if into is not None:
            try:
                got = into(buffer[at:]) or 0
            except NotImplementedError:  # io.RawIOBase promises what its subclass may not have
                into = None
                continue
        else:
            part = body.read(len(buffer) - at)
            got = len(part)
            buffer[at : at + got] = part
        if not got:
            break
        at += got
    return at


Outcome = Literal["ok", "missing", "exists", "denied", "throttled", "server", "connection"]
"""What came of one try of a request; the last four should not happen."""
Observer = Callable[[str, Outcome], None]


@runtime_checkable
class Watchable(Protocol):
    """A store that talks to a server, and can tell what comes of it."""

    def watch(self, observe: Observer) -> None:
        """Call `observe(operation, outcome)` after each try of each request, in the thread that made it."""
        ...


@runtime_checkable
class Cleanable(Protocol):
    """A store that a killed writer leaves unfinished pieces in (multipart uploads, temporary files)."""

    def clean_unfinished(self, prefix: str = "", *, older_than_seconds: float = 86400.0) -> int:
        """Remove what was begun under `prefix` so long ago that its writer is gone; returns how many pieces."""
        ...


def checked_key(key: str) -> str:
    """`key` itself. Raises `ValueError` where it could leave the store or mean two things (`..`, `//`, leading `/`)."""
    if not key or any(part in ("", ".", "..") for part in key.split("/")) or "\\" in key or "\0" in key:
        raise ValueError(f"{key!r} is no key: use non-empty parts between single slashes, without . and ..")
    return key


def checked_range(start: int, stop: int | None) -> None:
    """Raises `ValueError` unless `[start, stop)` is a range counted from the front."""
    if start < 0 or (stop is not None and stop < start):
        raise ValueError(f"[{start}, {stop}) is no range of bytes")
