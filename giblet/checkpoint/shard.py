"""One rank's file: a real safetensors file, laid out before its bytes are known, hashed while they pass.

The format: 8 bytes length, a JSON header {name: {dtype, shape, data_offsets}}, then the tensors. A chunk that is not
the whole tensor is named `<tensor>@<offset,…>`.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem

from giblet.checkpoint.dtypes import ITEM_BYTES, dtype_name
from giblet.checkpoint.manifest import BLOCK_BYTES, Chunk, ObjectRecord, crc_text
from giblet.errors import CheckpointError
from giblet.storage.crc import CRC32C, crc32c, join

if TYPE_CHECKING:
    from typing_extensions import Buffer

ALIGNMENT = 64
"""Where the tensors begin in the file, a multiple of a cache line: copies to other places take a third longer."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A chunk's place in the file: bytes `[start, stop)`."""

    item: WriteItem
    name: str
    dtype: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def index(self) -> MetadataIndex:
        """DCP's name of the chunk."""
        return self.item.index


@dataclass(frozen=True, slots=True)
class Layout:
    """A file's header and the places of its chunks."""

    header: bytes
    entries: tuple[Entry, ...]
    size_bytes: int


def lay_out(items: Iterable[WriteItem]) -> Layout:
    """Places for DCP's planned chunks: widest elements first, so that each is aligned, then by name.

    Raises `CheckpointError` for an element type that safetensors lacks.
    """
    found = []
    for item in items:
        data = item.tensor_data
        assert data is not None, f"{item.index.fqn} is no tensor"
        offset, shape = tuple(data.chunk.offsets), tuple(data.chunk.sizes)
        fqn = item.index.fqn
        if fqn.startswith("__"):
            raise CheckpointError(f"{fqn}: a tensor's name cannot begin with two underscores")
        name = fqn if shape == tuple(data.size) else f"{fqn}@{','.join(map(str, offset))}"
        found.append((item, name, dtype_name(data.properties.dtype, fqn), offset, shape))
    found.sort(key=lambda entry: (-ITEM_BYTES[entry[2]], entry[1]))
    table: dict[str, object] = {"__metadata__": {"format": "pt", "writer": "giblet.checkpoint/1"}}
    end, spans = 0, []
    for _item, name, dtype, _offset, shape in found:
        begin, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        spans.append((begin, end))
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": (begin, end)}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    entries = tuple(
        Entry(*fields, begin + len(header), stop + len(header))
        for fields, (begin, stop) in zip(found, spans, strict=True)
    )
    return Layout(header, entries, len(header) + end)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """A tensor's elements, row-major, as bytes; without a copy if it is contiguous and on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if not flat.numel():
        return memoryview(b"")
    return flat.view(torch.uint8).numpy().data


class ShardStream(io.RawIOBase):
    """The file's bytes for `Storage.put`, hashed while they are read; afterwards `object` and `chunks` record them.

    `data` gives an entry's bytes when its turn comes. Each byte is hashed once: the file's CRC is put together from
    its blocks'.
    """

    def __init__(self, key: str, layout: Layout, data: Callable[[Entry], memoryview]) -> None:
        super().__init__()
        self._key, self._layout, self._data = key, layout, data
        self._crc, self._chunks = 0, list[Chunk]()
        self._blocks, self._block = self._walk(), memoryview(b"")
        self._done = False

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill `buffer` with the next bytes, all of it but at the end; returns how many."""
        target = memoryview(buffer).cast("B")
        at = 0
        while at < len(target):
            if not self._block:
                block = next(self._blocks, None)
                if block is None:
                    break
                self._block = block
            piece = self._block[: len(target) - at]
            target[at : at + len(piece)] = piece
            self._block = self._block[len(piece) :]
            at += len(piece)
        return at

    @property
    def object(self) -> ObjectRecord:
        """The whole file's record; only once it was read to its end."""
        assert self._done, "not read to the end"
        return ObjectRecord(key=self._key, size_bytes=self._layout.size_bytes, crc32c=crc_text(self._crc))

    @property
    def chunks(self) -> list[Chunk]:
        """A record for each entry of the layout, in its order."""
        assert self._done, "not read to the end"
        return self._chunks

    def _walk(self) -> Iterator[memoryview]:
        yield self._hashed(memoryview(self._layout.header))[0]
        for entry in self._layout.entries:
            view, crcs = self._data(entry), []
            assert len(view) == entry.stop - entry.start, f"{entry.name} changed its size"
            for start in range(0, len(view), BLOCK_BYTES):
                block, crc = self._hashed(view[start : start + BLOCK_BYTES])
                crcs.append(crc_text(crc))
                yield block
            self._chunks.append(
                Chunk(
                    key=self._key, start=entry.start, stop=entry.stop, offset=entry.offset, shape=entry.shape,
                    crc32c=tuple(crcs),
                )
            )  # fmt: skip
        self._done = True

    def _hashed(self, block: memoryview) -> tuple[memoryview, int]:
        crc = crc32c(block)
        self._crc = join(CRC32C, self._crc, crc, len(block))
        return block, crc
