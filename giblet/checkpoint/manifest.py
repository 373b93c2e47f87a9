"""`MANIFEST.json` (`giblet.checkpoint/1`): what a checkpoint consists of, down to each block of bytes.

Written last, never changed: its presence is the commit. It names every object (key beside the manifest, size,
CRC-32C) and every tensor (type, global shape, chunks: object, byte range, place in the tensor, CRC-32C of each block),
and carries the state that is not tensors. The format is described in docs/checkpoint-format.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from giblet.checkpoint import exact_json
from giblet.checkpoint.dtypes import ITEM_BYTES
from giblet.errors import CheckpointError
from giblet.storage.crc import crc32c

FORMAT: Final = "giblet.checkpoint/1"
BLOCK_BYTES = 8 << 20
"""Bytes under one CRC within a chunk, so that a part of a chunk can be read and still be checked."""

_SEAL = b'"manifest_crc32c":"'
_UNSEALED = "00000000"
_EXACT = ("values", "paths", "state")

Crc = Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
Size = Annotated[int, Field(ge=0)]


_STRICT = ConfigDict(strict=True)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


# What there are millions of in a large manifest are slotted dataclasses: a fifth of a model's memory.
@pydantic_dataclass(frozen=True, slots=True, config=_STRICT)
class ObjectRecord:
    """One object of the checkpoint; `key` is relative to the manifest."""

    key: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    size_bytes: Size
    crc32c: Crc


@pydantic_dataclass(frozen=True, slots=True, config=_STRICT)
class Chunk:
    """A box of a tensor, row-major, at bytes `[start, stop)` of object `key`; `offset` is its place in the tensor."""

    key: str
    start: Size
    stop: Size
    offset: Annotated[tuple[Size, ...], Field(strict=False)]
    shape: Annotated[tuple[Size, ...], Field(strict=False)]
    crc32c: Annotated[tuple[Crc, ...], Field(strict=False)]

    @property
    def size_bytes(self) -> int:
        """Its length."""
        return self.stop - self.start


class TensorRecord(_Record):
    """One tensor: `dtype` by its safetensors name (F32, BF16, …), global shape, chunks that cover it once."""

    dtype: str
    shape: Annotated[tuple[Size, ...], Field(strict=False)]
    chunks: Annotated[tuple[Chunk, ...], Field(strict=False)]

    @property
    def item_bytes(self) -> int:
        """Bytes of one element."""
        return ITEM_BYTES[self.dtype]

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """How many bytes they take."""
        return self.elements * self.item_bytes


class Manifest(_Record):
    """A committed checkpoint.

    `values` are what a foreign DCP state dict holds beside tensors, `paths` DCP's way back from flat to nested names,
    `state` giblet's own: all decoded here; `exact_json` says how they are written.
    """

    format: Literal["giblet.checkpoint/1"] = FORMAT
    manifest_crc32c: Crc = _UNSEALED
    run: str
    step: Size
    attempt: str
    start: Size
    world_size: Annotated[int, Field(ge=1)]
    created_by: str
    committed_unix_seconds: float
    block_bytes: Annotated[int, Field(ge=16, multiple_of=16)] = BLOCK_BYTES
    objects: Annotated[tuple[ObjectRecord, ...], Field(strict=False)]
    tensors: dict[str, TensorRecord]
    values: dict[str, Any] = Field(default_factory=dict)
    paths: dict[str, Any] = Field(default_factory=dict)
    state: Any = None

    @property
    def size_bytes(self) -> int:
        """All objects together, the manifest not counted."""
        return sum(item.size_bytes for item in self.objects)

    @property
    def elements(self) -> int:
        """All tensors together."""
        return sum(tensor.elements for tensor in self.tensors.values())

    def chunks(self) -> Iterator[tuple[str, TensorRecord, Chunk]]:
        """Every chunk with its tensor's name and record, in the order of objects and of bytes within them."""
        everything = ((name, tensor, chunk) for name, tensor in self.tensors.items() for chunk in tensor.chunks)
        return iter(sorted(everything, key=lambda entry: (entry[2].key, entry[2].start, entry[2].stop)))

    def dump(self) -> bytes:
        """The bytes of `MANIFEST.json`, sealed with their own CRC-32C."""
        unsealed = self.model_copy(update={"manifest_crc32c": _UNSEALED})
        head = unsealed.model_dump_json(exclude=set(_EXACT)).encode()
        rest = exact_json.dumps({name: getattr(self, name) for name in _EXACT})
        data = b"".join((head[:-1], b",", rest[1:]))
        at = data.index(_SEAL) + len(_SEAL)
        return data[:at] + crc_text(crc32c(data)).encode() + data[at + 8 :]

    @classmethod
    def parse(cls, data: bytes, where: str = "manifest") -> Manifest:
        """Read and check `MANIFEST.json`. Raises `CheckpointError` if it is damaged, foreign or contradicts itself."""
        remedy = "use the checkpoint before it; this one is damaged or was written by another program"
        at = data.find(_SEAL) + len(_SEAL)
        if at < len(_SEAL):
            raise CheckpointError(f"{where}: not a manifest of {FORMAT}", remedy=remedy)
        sealed, unsealed = data[at : at + 8], data[:at] + _UNSEALED.encode() + data[at + 8 :]
        if sealed != crc_text(crc32c(unsealed)).encode():
            raise CheckpointError(f"{where}: damaged, its {len(data)} bytes do not match their CRC", remedy=remedy)
        try:
            manifest = cls.model_validate_json(data)
            decoded = {name: exact_json.decode(getattr(manifest, name)) for name in _EXACT}
        except (ValidationError, ValueError, TypeError) as error:
            raise CheckpointError(f"{where}: not a manifest of {FORMAT}: {error}", remedy=remedy) from None
        manifest = manifest.model_copy(update=decoded)
        if faults := list(itertools.islice(_contradictions(manifest), 5)):
            raise CheckpointError(f"{where}: contradicts itself: {'; '.join(faults)}", remedy=remedy)
        return manifest


def crc_text(crc: int) -> str:
    """A CRC-32C as the manifest writes it: eight lower-case hexadecimal digits."""
    return f"{crc:08x}"


def block_crcs(data: bytes | memoryview, block_bytes: int = BLOCK_BYTES) -> tuple[str, ...]:
    """CRC-32C of each block of a chunk; the last block may be shorter, an empty chunk has none."""
    view = memoryview(data)
    starts = range(0, len(view), block_bytes)
    return tuple(crc_text(crc32c(view[start : start + block_bytes])) for start in starts)


def _contradictions(manifest: Manifest) -> Iterator[str]:
    sizes = {item.key: item.size_bytes for item in manifest.objects}
    if len(sizes) != len(manifest.objects):
        yield "an object is named twice"
    for name, tensor in manifest.tensors.items():
        if tensor.dtype not in ITEM_BYTES:
            yield f"{name}: element type {tensor.dtype} is not known"
            continue
        for chunk in tensor.chunks:
            yield from (f"{name}: {fault}" for fault in _chunk_faults(chunk, tensor, sizes, manifest.block_bytes))
        if sum(chunk.size_bytes for chunk in tensor.chunks) != tensor.size_bytes:
            yield f"{name}: its chunks do not add up to {list(tensor.shape)}"
        if len({chunk.offset for chunk in tensor.chunks if chunk.size_bytes}) != sum(
            1 for c in tensor.chunks if c.size_bytes
        ):
            yield f"{name}: two chunks begin at one place"


def _chunk_faults(chunk: Chunk, tensor: TensorRecord, sizes: dict[str, int], block_bytes: int) -> Iterator[str]:
    if chunk.key not in sizes:
        yield f"object {chunk.key} is not listed"
    elif chunk.stop > sizes[chunk.key]:
        yield f"bytes [{chunk.start}, {chunk.stop}) lie beyond {chunk.key}"
    if chunk.size_bytes != math.prod(chunk.shape) * ITEM_BYTES[tensor.dtype]:
        yield f"{chunk.size_bytes} bytes are not {list(chunk.shape)} of {tensor.dtype}"
    if len(chunk.crc32c) != -(-chunk.size_bytes // block_bytes):
        yield f"{len(chunk.crc32c)} CRCs for {chunk.size_bytes} bytes in blocks of {block_bytes}"
    if len(chunk.offset) != len(tensor.shape) or len(chunk.shape) != len(tensor.shape):
        yield "a chunk has another number of dimensions"
    elif any(o + s > n for o, s, n in zip(chunk.offset, chunk.shape, tensor.shape, strict=True)):
        yield f"the chunk at {list(chunk.offset)} reaches beyond {list(tensor.shape)}"
