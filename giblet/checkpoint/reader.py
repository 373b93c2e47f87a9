"""A `StorageReader` for PyTorch DCP: reads the byte ranges that a rank needs, in parallel, and checks their CRCs.

    dcp.load(state_dict, storage_reader=GibletStorageReader("s3://bucket/runs/x"))

Ranges are whole blocks of the manifest, read straight to their places in the tensors and checked there: a load that
returns has checked every byte, one that raises leaves tensors half filled. Memory: what blocks hold beside the wanted
rows, and one chunk for each tensor that cannot be filled in place.
"""

from __future__ import annotations

import io
import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from giblet.checkpoint.dtypes import ITEM_BYTES, torch_dtype
from giblet.checkpoint.manifest import Chunk, Manifest, TensorRecord, crc_text
from giblet.checkpoint.opened import read_manifest
from giblet.checkpoint.place import AtPlace, Place
from giblet.config.schema import CheckpointConfig
from giblet.errors import CheckpointError
from giblet.storage import Storage, get_into
from giblet.storage.crc import crc32c

REQUEST_BYTES = 32 << 20
THREADS = 4


class GibletStorageReader(AtPlace, StorageReader):
    """Reads the checkpoint at `location`: an address, or a store together with `prefix`."""

    def __init__(
        self,
        location: str | os.PathLike[str] | Storage,
        *,
        prefix: str = "",
        config: CheckpointConfig | None = None,
        manifest: Manifest | None = None,
    ) -> None:
        self._place = Place(location, prefix, config)
        self._manifest = manifest

    @property
    def manifest(self) -> Manifest:
        """What lies there. Raises `CheckpointError` if there is no manifest, or a damaged one."""
        if self._manifest is None:
            self._manifest = read_manifest(self._storage, self._prefix)
        return self._manifest

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """DCP's hook: a new address to read from."""
        if checkpoint_id is not None:
            self._place, self._manifest = Place(checkpoint_id, "", self._place.config), None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """DCP's hook: its metadata, rebuilt from the manifest."""
        return dcp_metadata(self.manifest)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """DCP's hook: everything needed is in the manifest."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """DCP's hook: nothing to add."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """DCP's hook: nothing to add."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """DCP's hook: fills every tensor of the plan. Raises `CheckpointError` for a byte that is not as written."""
        wanted = []
        for item in plan.items:
            if item.type == LoadItemType.BYTE_IO:
                planner.load_bytes(item, _as_dcp_bytes(self.manifest.values[item.storage_index.fqn]))
            else:
                wanted.append(_Wanted.of(item, self.manifest, planner))
        requests = list(_requests(wanted, self.manifest.block_bytes))
        with ThreadPoolExecutor(THREADS, thread_name_prefix="giblet-read") as pool:
            for _ in pool.map(self._fetch, requests):
                pass
        for want in wanted:
            planner.commit_tensor(want.item, want.target)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """DCP's hook: an S3 address or a path."""
        return "://" not in str(checkpoint_id) or str(checkpoint_id).startswith("s3://")

    def _fetch(self, request: list[_Span]) -> None:
        key, start, stop = request[0].wanted.chunk.key, request[0].start, request[-1].stop
        where = f"{self._storage.url}/{self._prefix}{key}"
        places = [span.wanted.places(span.start, span.stop) for span in request]
        try:
            size = get_into(self._storage, self._prefix + key, start, [view for views in places for view in views])
        except KeyError:
            raise CheckpointError(f"{where}: is not there", remedy="use the checkpoint before it") from None
        if size != stop - start:
            raise CheckpointError(
                f"{where}: has no bytes [{start + size}, {stop})", remedy="use the checkpoint before it"
            )
        for span, views in zip(request, places, strict=True):
            span.wanted.check(span, views, self.manifest.block_bytes, where)
        for span in request:
            span.wanted.arrived(span.start, span.stop)


@dataclass(slots=True)
class _Wanted:
    """One chunk's rows `[first, last)` of bytes for one tensor in memory."""

    item: ReadItem
    chunk: Chunk
    tensor: TensorRecord
    target: torch.Tensor
    first: int
    last: int
    memory: np.ndarray[Any, np.dtype[np.uint8]]
    in_place: bool
    missing_bytes: int
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, item: ReadItem, manifest: Manifest, planner: LoadPlanner) -> _Wanted:
        tensor = manifest.tensors[item.storage_index.fqn]
        chunk = _chunk_at(tensor, item)
        row = math.prod(chunk.shape[1:]) * ITEM_BYTES[tensor.dtype]
        if chunk.shape:
            first, last = row * item.storage_offsets[0], row * (item.storage_offsets[0] + item.lengths[0])
        else:
            first, last = 0, chunk.size_bytes
        target = planner.resolve_tensor(item).detach()
        in_place = tuple(item.lengths[1:]) == chunk.shape[1:] and _can_fill(target, tensor)
        if in_place:
            memory = target.reshape(-1).view(torch.uint8).numpy()
            assert len(memory) == last - first, f"{item.storage_index.fqn}: planned for another size"
        else:
            memory = np.empty(last - first, np.uint8)
        return cls(item, chunk, tensor, target, first, last, memory, in_place, last - first)

    def places(self, start: int, stop: int) -> list[memoryview]:
        """Where bytes `[start, stop)` of the object go; what lies beside the wanted rows goes nowhere."""
        begin, end = start - self.chunk.start, stop - self.chunk.start
        low, high = max(begin, self.first), min(end, self.last)
        wanted = self.memory[low - self.first : high - self.first].data
        return [memoryview(bytearray(low - begin)), wanted, memoryview(bytearray(end - high))]

    def check(self, span: _Span, views: list[memoryview], block_bytes: int, where: str) -> None:
        """Raises `CheckpointError` unless the bytes of whole blocks, wherever they went, are as they were written."""
        number = (span.start - self.chunk.start) // block_bytes
        for offset, crc in enumerate(_block_crcs(views, block_bytes)):
            if crc_text(crc) != self.chunk.crc32c[number + offset]:
                begin = span.start + offset * block_bytes
                raise CheckpointError(
                    f"{where}: bytes [{begin}, {min(begin + block_bytes, span.stop)}) of "
                    f"{self.item.storage_index.fqn} are not those that were written (CRC-32C differs)",
                    remedy="use the checkpoint before it",
                )

    def arrived(self, start: int, stop: int) -> None:
        """Bytes `[start, stop)` of the object are here and checked."""
        if self.in_place:
            return
        begin, end = start - self.chunk.start, stop - self.chunk.start
        with self.lock:
            self.missing_bytes -= min(end, self.last) - max(begin, self.first)
            if self.missing_bytes == 0:
                self._fill_from_aside()

    def _fill_from_aside(self) -> None:
        rows = torch.from_numpy(self.memory).view(torch_dtype(self.tensor.dtype))
        rows = rows.reshape((-1, *self.chunk.shape[1:]) if self.chunk.shape else ())
        for dimension in range(1, len(self.chunk.shape)):
            rows = rows.narrow(dimension, self.item.storage_offsets[dimension], self.item.lengths[dimension])
        self.target.copy_(rows)
        self.memory = np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True)
class _Span:
    """Whole blocks of one chunk: bytes `[start, stop)` of its object."""

    wanted: _Wanted
    start: int
    stop: int


def _block_crcs(views: list[memoryview], block_bytes: int) -> Iterator[int]:
    """The CRC of each block of bytes that lie in several places, one after the other."""
    crc, missing = 0, block_bytes
    for view in views:
        while view:
            piece = view[:missing]
            crc, missing, view = crc32c(piece, crc), missing - len(piece), view[len(piece) :]
            if not missing:
                yield crc
                crc, missing = 0, block_bytes
    if missing != block_bytes:
        yield crc


def dcp_metadata(manifest: Manifest) -> Metadata:
    """What DCP plans a load from."""
    tensors: dict[str, Any] = {
        name: TensorStorageMetadata(
            properties=TensorProperties(dtype=torch_dtype(tensor.dtype)),
            size=torch.Size(tensor.shape),
            chunks=[ChunkStorageMetadata(torch.Size(c.offset), torch.Size(c.shape)) for c in tensor.chunks],
        )
        for name, tensor in manifest.tensors.items()
    }
    values = {name: BytesStorageMetadata() for name in manifest.values}
    storage_data = {
        MetadataIndex(name, chunk.offset): chunk for name, tensor in manifest.tensors.items() for chunk in tensor.chunks
    }
    return Metadata({**tensors, **values}, planner_data=manifest.paths or None, storage_data=storage_data)


def _requests(wanted: list[_Wanted], block_bytes: int) -> Iterator[list[_Span]]:
    """Neighbours of one object in one request, none beyond `REQUEST_BYTES` unless a block is larger."""
    most = max(1, REQUEST_BYTES // block_bytes) * block_bytes
    spans = sorted(
        (span for want in wanted for span in _spans(want, block_bytes, most)),
        key=lambda span: (span.wanted.chunk.key, span.start, span.stop),
    )
    request: list[_Span] = []
    for span in spans:
        if request and (
            span.wanted.chunk.key != request[-1].wanted.chunk.key
            or span.start != request[-1].stop
            or span.stop - request[0].start > most
        ):
            yield request
            request = []
        request.append(span)
    if request:
        yield request


def _spans(want: _Wanted, block_bytes: int, most: int) -> Iterator[_Span]:
    first = want.first // block_bytes * block_bytes
    last = min(-(-want.last // block_bytes) * block_bytes, want.chunk.size_bytes)
    if want.first == want.last:
        return
    for start in range(first, last, most):
        yield _Span(want, want.chunk.start + start, want.chunk.start + min(start + most, last))


def _chunk_at(tensor: TensorRecord, item: ReadItem) -> Chunk:
    hint = item.storage_index.index
    offset = tuple(item.storage_index.offset or ())
    if hint is not None and hint < len(tensor.chunks) and tensor.chunks[hint].offset == offset:
        return tensor.chunks[hint]
    return next(chunk for chunk in tensor.chunks if chunk.offset == offset)


def _can_fill(target: torch.Tensor, tensor: TensorRecord) -> bool:
    return (
        target.device.type == "cpu"
        and target.is_contiguous()
        and target.dtype == torch_dtype(tensor.dtype)
        and target.numel() > 0
    )


def _as_dcp_bytes(value: Any) -> io.BytesIO:
    """As DCP's planners want a plain value: `torch.save`'s bytes, made here and now in memory."""
    data = io.BytesIO()
    torch.save(value, data)
    data.seek(0)
    return data
