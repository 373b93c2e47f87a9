"""What giblet asks of a place that keeps objects: five calls, and nothing about files or buckets.

Keys are relative to the store's root, with forward slashes. An object appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store knows of an object without reading it."""

    key: str
    size_bytes: int
    modified_unix_seconds: float


class PreconditionFailedError(Exception):
    """`put(..., if_absent=True)` found the key taken. The caller decides what that means."""


@runtime_checkable
class Storage(Protocol):
    """A keyed store of immutable-by-habit byte objects."""

    url: str

    def put(self, key: str, body: bytes | BinaryIO, *, if_absent: bool = False) -> int:
        """Write an object whole and return its size in bytes.

        A body with `read` is streamed in bounded memory. With `if_absent`, raises
        `PreconditionFailedError` if the key is taken.
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
