"""What the judge reads: objects of bytes, and which tensors lie where in them, whatever wrote them.

A `Source` is all that the streaming pass knows of a format. `opening.open_source` finds the format of an address.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from giblet.errors import CheckpointError
from giblet.storage.base import Storage
from giblet.storage.crc import CRC32C, Checksum
from giblet.verify.statistics import Array, NumberFormat, number_format

WEIGHTS = "model."
_PAGE_BYTES = 4096
Kind = Literal["giblet", "safetensors", "torch", "dcp"]


class DamagedError(CheckpointError):
    """A checkpoint is here, and so damaged that its contents cannot be listed: that is a verdict, not an error."""


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """What the file says of a tensor: torch's name of its dtype (`float32`), and its global shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)

    def format(self) -> NumberFormat:
        """How its bytes read. Raises `CheckpointError` for a dtype that cannot be judged."""
        found = number_format(self.dtype)
        if found is None:
            raise CheckpointError(f"tensor {self.name} has dtype {self.dtype}, which giblet cannot judge")
        return found


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes `[start, stop)` of an object that hold a part of a tensor, at `offsets` with `sizes` of its shape.

    `crcs` has one checksum for every `block_bytes` of them; none where none was recorded.
    """

    tensor: str
    start: int
    stop: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    crcs: tuple[int, ...] = ()
    block_bytes: int = 0


@dataclass(frozen=True, slots=True)
class StoredObject:
    """Bytes `[0, size_bytes)` of an object as it should be. `begin`: where in `key` they lie, for a file in a file.

    `crc` is over all of them.
    """

    key: str
    size_bytes: int
    chunks: tuple[Chunk, ...]
    crc: int | None = None
    checksum: Checksum = CRC32C
    begin: int = 0
    whole: bool = True
    """Whether the key should end where these bytes end."""
    label: str = ""

    @property
    def name(self) -> str:
        """What a report calls it."""
        return self.label or self.key


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint as a list of objects and tensors. `notes` are for the reader of the report."""

    url: str
    kind: Kind
    storage: Storage
    objects: tuple[StoredObject, ...]
    tensors: Mapping[str, TensorRecord]
    weights: Mapping[str, str]
    """The tensors that are the model's: their name → its name in the model's state dict."""
    state: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    step: int | None = None
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    """Objects that were found missing while their contents were to be listed."""
    unordered: frozenset[str] = frozenset()
    """Tensors whose bytes are not in the order of their shape (transposed views, and views with gaps)."""
    manifest: Any = None
    manifest_bytes: bytes | None = None
    """The manifest as it was read; None for another program's file."""
    place: str = ""
    """The folder of its manifest, relative to the store, with a slash at the end."""


def weights_among(names: Iterable[str]) -> dict[str, str]:
    """Which tensors are the model's: those under `model.` where there are any, else all but the optimizer's."""
    listed = list(names)
    if any(name.startswith(WEIGHTS) for name in listed):
        return {name: name.removeprefix(WEIGHTS) for name in listed if name.startswith(WEIGHTS)}
    return {name: name for name in listed if not name.startswith("optim")}


class Reader:
    """Ranges of objects as arrays of bytes. A folder's files are read in place; an object store is asked for ranges.

    Not for more than one thread: it keeps a buffer and a file open.
    """

    def __init__(self, storage: Storage, buffer_bytes: int) -> None:
        self._storage = storage
        self.local = _is_folder(storage.url)
        self._buffer = _aligned(buffer_bytes if self.local else 0)
        self._key: str | None = None
        self._file = -1

    def read(self, key: str, start: int, stop: int) -> Array:
        """Bytes `[start, stop)`, fewer where the object ends, none where it is gone. Valid until the next read."""
        if self.local and stop - start <= self._buffer.size:
            return self._read_file(key, start, stop)
        try:
            return np.frombuffer(self._storage.get(key, start, stop), np.uint8)
        except KeyError:
            return np.empty(0, np.uint8)

    def opened(self, key: str) -> tuple[int, Array]:
        """A folder's file, open, and the buffer to read it through. Raises `FileNotFoundError`."""
        if key != self._key:
            self.close()
            self._file = os.open(Path(self._storage.url) / key, os.O_RDONLY)
            self._key = key
        return self._file, self._buffer

    def _read_file(self, key: str, start: int, stop: int) -> Array:
        try:
            self.opened(key)
        except FileNotFoundError:
            return self._buffer[:0]
        done = 0
        wanted = self._buffer[: stop - start].data
        while done < len(wanted):
            count = os.preadv(self._file, [wanted[done:]], start + done)
            if count == 0:
                break
            done += count
        return self._buffer[:done]

    def close(self) -> None:
        """Let go of the open file."""
        if self._file >= 0:
            os.close(self._file)
        self._file, self._key = -1, None


def _aligned(size: int) -> Array:
    """Bytes that begin where a page does, so that no vector lies across two lines of the cache."""
    room = np.empty(size + _PAGE_BYTES, np.uint8)
    begin = -room.ctypes.data % _PAGE_BYTES
    return room[begin : begin + size]


class ObjectFile(io.RawIOBase):
    """Bytes `[begin, begin + size)` of an object as a seekable file, for the libraries that want one."""

    def __init__(self, storage: Storage, key: str, begin: int, size: int) -> None:
        super().__init__()
        self._storage, self._key, self._begin, self._size, self._at = storage, key, begin, size, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As files do."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        """As files do."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """As files do."""
        stop = min(self._at + len(buffer), self._size)
        if stop <= self._at:
            return 0
        data = self._storage.get(self._key, self._begin + self._at, self._begin + stop)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _is_folder(url: str) -> bool:
    return "://" not in url and Path(url).is_dir()
