"""A `StorageReader` for PyTorch DCP: reads the byte ranges that a rank needs, in parallel, and checks their CRCs.

    dcp.load(state_dict, storage_reader=GibletStorageReader("s3://bucket/runs/x"))

Ranges are whole blocks of the manifest, so that every byte that reaches a tensor was checked. Memory: one request of
at most `REQUEST_BYTES` a thread, and one chunk for each tensor that cannot be filled in place.
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

import google_crc32c
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
from giblet.config.schema import CheckpointConfig
from giblet.errors import CheckpointError
from giblet.storage import Storage, as_storage

REQUEST_BYTES = 32 << 20
THREADS = 4


class GibletStorageReader(StorageReader):
    """Reads the checkpoint at `location`: an address, or a store together with `prefix`."""

    def __init__(
        self,
        location: str | os.PathLike[str] | Storage,
        *,
        prefix: str = "",
        config: CheckpointConfig | None = None,
        manifest: Manifest | None = None,
    ) -> None:
        self._config, self._prefix = config, prefix
        self._storage = as_storage(location, config)
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
            self._storage, self._prefix, self._manifest = as_storage(checkpoint_id, self._config), "", None

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
        try:
            data = self._storage.get(self._prefix + key, start, stop)
        except KeyError:
            raise CheckpointError(f"{where}: is not there", remedy="use the checkpoint before it") from None
        if len(data) != stop - start:
            raise CheckpointError(
                f"{where}: has no bytes [{start + len(data)}, {stop})", remedy="use the checkpoint before it"
            )
        for span in request:
            part = data if len(request) == 1 else data[span.start - start : span.stop - start]
            span.wanted.take(part, span.start, self.manifest.block_bytes, where)


@dataclass(slots=True)
class _Wanted:
    """One chunk's rows `[first, last)` of bytes for one tensor in memory."""

    item: ReadItem
    chunk: Chunk
    tensor: TensorRecord
    target: torch.Tensor
    first: int
    last: int
    in_place: np.ndarray[Any, np.dtype[np.uint8]] | None
    missing_bytes: int
    aside: bytearray = field(default_factory=bytearray)
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
        whole_rows = tuple(item.lengths[1:]) == chunk.shape[1:]
        in_place = None
        if whole_rows and _can_fill(target, tensor):
            in_place = target.reshape(-1).view(torch.uint8).numpy()
            assert len(in_place) == last - first, f"{item.storage_index.fqn}: planned for another size"
        want = cls(item, chunk, tensor, target, first, last, in_place, last - first)
        if in_place is None:
            want.aside = bytearray(last - first)
        return want

    def take(self, data: bytes, start: int, block_bytes: int, where: str) -> None:
        """Checks whole blocks that begin at byte `start` of the object, and copies what is wanted of them."""
        begin = start - self.chunk.start
        for offset in range(0, len(data), block_bytes):
            number = (begin + offset) // block_bytes
            block = data[offset : offset + block_bytes] if len(data) > block_bytes else data
            if crc_text(google_crc32c.value(block)) != self.chunk.crc32c[number]:
                raise CheckpointError(
                    f"{where}: bytes [{start + offset}, {start + offset + len(block)}) of "
                    f"{self.item.storage_index.fqn} are not those that were written (CRC-32C differs)",
                    remedy="use the checkpoint before it",
                )
        low, high = max(begin, self.first), min(begin + len(data), self.last)
        source = np.frombuffer(data, np.uint8)[low - begin : high - begin]
        if self.in_place is not None:
            self.in_place[low - self.first : high - self.first] = source
            return
        np.frombuffer(self.aside, np.uint8)[low - self.first : high - self.first] = source
        with self.lock:
            self.missing_bytes -= high - low
            if self.missing_bytes == 0:
                self._fill_from_aside()

    def _fill_from_aside(self) -> None:
        rows = torch.frombuffer(self.aside, dtype=torch_dtype(self.tensor.dtype))
        rows = rows.reshape((-1, *self.chunk.shape[1:]) if self.chunk.shape else ())
        for dimension in range(1, len(self.chunk.shape)):
            rows = rows.narrow(dimension, self.item.storage_offsets[dimension], self.item.lengths[dimension])
        self.target.copy_(rows)
        self.aside = bytearray()


@dataclass(frozen=True, slots=True)
class _Span:
    """Whole blocks of one chunk: bytes `[start, stop)` of its object."""

    wanted: _Wanted
    start: int
    stop: int


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
