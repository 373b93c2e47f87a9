"""The other ranks of a simulated run: what each would say to the first one, without running them.

A peer's plan is made of the same DCP objects as the first rank's, with the offsets that torch's own `Shard` gives it;
it is pickled and unpickled, as gloo's object collectives do. tests/unit/scale compares such plans with those that DCP's
planner makes of a real DTensor of that rank.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import google_crc32c
import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import Shard

from giblet.checkpoint import layout
from giblet.checkpoint.manifest import BLOCK_BYTES, Chunk, ObjectRecord, crc_text
from giblet.checkpoint.shard import Layout, lay_out
from giblet.checkpoint.writer import WrittenChunk
from scale.counting import CountingStorage
from scale.gauge import Gauge

T = TypeVar("T")


class SimulatedRanks:
    """`giblet.checkpoint.ranks.Ranks` of the first of `world_size` ranks; `gathered_bytes` is what reached it."""

    def __init__(self, world_size: int, storage: CountingStorage, gauge: Gauge) -> None:
        self.rank, self.world_size, self.is_first = 0, world_size, True
        self.gathered_bytes = 0
        self._storage, self._gauge = storage, gauge
        self._final_plans: list[SavePlan] = []

    def on_first(self, work: Callable[[], T]) -> T:
        """See `Ranks`."""
        return work()

    def broadcast(self, value: T) -> T:
        """See `Ranks`."""
        return value

    def scatter(self, values: list[T]) -> T:
        """See `Ranks`. Keeps the plans that the peers would get."""
        self._final_plans = values  # type: ignore[assignment]
        return values[0]

    def on_all(self, work: Callable[[], T]) -> T:
        """See `Ranks`: the peers' results stay with them."""
        return work()

    def all_gather(self, value: T) -> list[T]:
        """See `Ranks`. What is asked for so is whether anything changed, and no peer says otherwise."""
        return [value] * self.world_size

    def to_first(self, work: Callable[[], T]) -> list[T]:
        """See `Ranks`. What the peers answer follows from what the first rank does."""
        mine = work()
        return [mine, *self._received(mine)]

    def close(self) -> None:
        """See `Ranks`."""

    def _received(self, mine: Any) -> list[Any]:
        with self._gauge.paused():
            sent = [pickle.dumps(self._answer(mine, rank)) for rank in range(1, self.world_size)]
        self.gathered_bytes += sum(map(len, sent))
        with self._gauge.measure("gather"):
            return [pickle.loads(message) for message in sent]  # ours, made above

    def _answer(self, mine: Any, rank: int) -> Any:
        if isinstance(mine, SavePlan):
            return peer_plan(mine, rank, self.world_size)
        return upload_without_bytes(self._storage, layout.shard_name(rank), lay_out(self._final_plans[rank].items))


def shard_of(shape: tuple[int, ...], rank: int, world_size: int) -> tuple[torch.Size, torch.Size]:
    """FSDP's share of a tensor: sizes and offsets of `rank`'s rows, as `fully_shard` deals them."""
    rows, first = Shard(0).local_shard_size_and_offset(shape[0], world_size, rank)
    rows, first = int(rows), int(first)
    return torch.Size((rows, *shape[1:])), torch.Size((first if rows else shape[0], *(0 for _ in shape[1:])))


def peer_plan(first: SavePlan, rank: int, world_size: int) -> SavePlan:
    """The plan of `rank`, from the first rank's."""
    return SavePlan([_peer_item(item, rank, world_size) for item in first.items])


def _peer_item(item: WriteItem, rank: int, world_size: int) -> WriteItem:
    data = item.tensor_data
    assert data is not None
    if item.type == WriteItemType.SHARD:
        sizes, offsets = shard_of(tuple(data.size), rank, world_size)
    else:
        sizes, offsets = data.chunk.sizes, data.chunk.offsets
    chunk = ChunkStorageMetadata(offsets=offsets, sizes=sizes)
    properties = TensorProperties(dtype=data.properties.dtype)
    return WriteItem(
        index=MetadataIndex(item.index.fqn, offsets),
        type=item.type,
        tensor_data=TensorWriteData(chunk, properties, data.size),
    )


def upload_without_bytes(storage: CountingStorage, key: str, shape: Layout) -> list[WriteResult]:
    """A rank's upload of zeros beside the first rank's, as the store and the first rank see it."""
    storage.put_without_bytes(f"{storage.folder_written_to}{key}", shape.size_bytes)
    return written_zeros(key, shape)


def written_zeros(key: str, shape: Layout) -> list[WriteResult]:
    """What a rank would tell of its upload if all its tensors were zero: true CRCs, without touching a byte."""
    crc = google_crc32c.value(shape.header)
    chunks = []
    for entry in shape.entries:
        chunks.append(
            Chunk(
                key=key, start=entry.start, stop=entry.stop, offset=entry.offset, shape=entry.shape,
                crc32c=tuple(crc_text(_zeros_crc(size)) for size in _blocks(entry.stop - entry.start)),
            )
        )  # fmt: skip
    whole = ObjectRecord(key=key, size_bytes=shape.size_bytes, crc32c=crc_text(crc))
    return [
        WriteResult(entry.index, chunk.size_bytes, WrittenChunk(whole, chunk))
        for entry, chunk in zip(shape.entries, chunks, strict=True)
    ]


def _blocks(size: int) -> Iterable[int]:
    return (min(BLOCK_BYTES, size - start) for start in range(0, size, BLOCK_BYTES))


_KNOWN: dict[int, int] = {}


def _zeros_crc(size: int) -> int:
    if size not in _KNOWN:
        _KNOWN[size] = google_crc32c.value(bytes(size))
    return _KNOWN[size]
