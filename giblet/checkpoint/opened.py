"""Reading a checkpoint without a model: find it by address, and see every byte of it once, in bounded memory.

    checkpoint = open_checkpoint("s3://bucket/prefix/runs/my-run", config.checkpoint)
    for scan in scan_objects(checkpoint, visit):        # visit(block) for each block of each tensor
        scan.faults                                     # missing, short, CRC differs …

This is what verification builds upon; it imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import google_crc32c

from giblet.checkpoint import layout
from giblet.checkpoint.layout import CheckpointRef
from giblet.checkpoint.manifest import Chunk, Manifest, ObjectRecord, TensorRecord, crc_text
from giblet.checkpoint.survey import survey
from giblet.config.schema import CheckpointConfig
from giblet.errors import CheckpointError
from giblet.storage import Storage, open_storage

REQUEST_BYTES = 16 << 20
REQUESTS_AHEAD = 2
_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True, slots=True)
class OpenCheckpoint:
    """A checkpoint that was found. `ref` is None for one that lies outside a run (`GibletStorageWriter`'s)."""

    storage: Storage
    prefix: str
    manifest: Manifest
    ref: CheckpointRef | None

    @property
    def url(self) -> str:
        """Where it lies."""
        return f"{self.storage.url}/{self.prefix}".rstrip("/")


@dataclass(frozen=True, slots=True)
class Block:
    """Some elements of a tensor: `data` holds whole elements, row-major, from byte `start` of the chunk on."""

    name: str
    tensor: TensorRecord
    chunk: Chunk
    start: int
    data: bytes
    intact: bool


@dataclass(frozen=True, slots=True)
class ObjectScan:
    """What was found of one object."""

    record: ObjectRecord
    size_bytes: int | None
    faults: tuple[str, ...]

    @property
    def intact(self) -> bool:
        """Every byte is as it was written."""
        return not self.faults


def open_checkpoint(
    location: str | CheckpointRef, config: CheckpointConfig | None = None, *, storage: Storage | None = None
) -> OpenCheckpoint:
    """The checkpoint at `location`: an address, or a reference within `storage`.

    Addresses: `<store>/runs/<run>` (its newest), `…/checkpoints/step-N` (its newest attempt), `…/<attempt>`, any of
    them with `/MANIFEST.json`, or another folder that holds a manifest. Raises `CheckpointError` if none is there or
    the manifest is damaged, and the storage's own errors.
    """
    if isinstance(location, CheckpointRef):
        assert storage is not None, "a reference needs its storage"
        return _open_ref(storage, location)
    address = location.rstrip("/").removesuffix(layout.MANIFEST).rstrip("/")
    if "/runs/" in f"/{address}":
        base, key = layout.split_address(address)
        return _open_ref(storage or open_storage(base, config), _resolve(storage or open_storage(base, config), key))
    store = storage or open_storage(address, config)
    return OpenCheckpoint(store, "", read_manifest(store, ""), None)


def read_manifest(storage: Storage, prefix: str) -> Manifest:
    """The manifest in a checkpoint's folder. Raises `CheckpointError` if there is none, or a damaged one."""
    where = f"{storage.url}/{prefix}{layout.MANIFEST}"
    try:
        return Manifest.parse(storage.get(prefix + layout.MANIFEST), where)
    except KeyError:
        raise CheckpointError(
            f"{where}: there is none, so this is no committed checkpoint", remedy="list them with `giblet runs`"
        ) from None


def iter_object_bytes(
    storage: Storage, key: str, size_bytes: int, request_bytes: int = REQUEST_BYTES
) -> Iterator[bytes]:
    """An object's bytes in order, `REQUESTS_AHEAD` requests fetched ahead; stops early if the object is shorter."""
    yield from _fetched_ahead(
        storage, key, [(s, min(s + request_bytes, size_bytes)) for s in range(0, size_bytes, request_bytes)]
    )


def scan_objects(checkpoint: OpenCheckpoint, visit: Callable[[Block], None] | None = None) -> Iterator[ObjectScan]:
    """Reads each object once, in order, checks its size and all CRCs, and shows every block of every tensor to `visit`.

    A damaged block is shown too, with `intact` False. Holds `REQUESTS_AHEAD` + 1 requests of `REQUEST_BYTES`.
    """
    by_object: dict[str, list[tuple[str, TensorRecord, Chunk]]] = {}
    for entry in checkpoint.manifest.chunks():
        by_object.setdefault(entry[2].key, []).append(entry)
    for record in checkpoint.manifest.objects:
        yield _scan_object(checkpoint, record, by_object.get(record.key, []), visit)


@dataclass(frozen=True, slots=True)
class _Segment:
    """Bytes `[start, stop)` of an object: one block of a chunk, or what lies between chunks."""

    start: int
    stop: int
    owner: tuple[str, TensorRecord, Chunk] | None = None


def _scan_object(
    checkpoint: OpenCheckpoint,
    record: ObjectRecord,
    chunks: list[tuple[str, TensorRecord, Chunk]],
    visit: Callable[[Block], None] | None,
) -> ObjectScan:
    key = checkpoint.prefix + record.key
    info = checkpoint.storage.head(key)
    if info is None:
        return ObjectScan(record, None, (f"{record.key}: is not there",))
    faults = []
    if info.size_bytes != record.size_bytes:
        faults.append(f"{record.key}: has {info.size_bytes} bytes instead of {record.size_bytes}")
    requests = _grouped(list(_segments(record, chunks, checkpoint.manifest.block_bytes)))
    pieces = _fetched_ahead(checkpoint.storage, key, [(group[0].start, group[-1].stop) for group in requests])
    crc, read = 0, 0
    for group, data in zip(requests, pieces, strict=False):
        crc, read = google_crc32c.extend(crc, data), read + len(data)
        for segment in group:
            if segment.owner is not None:
                part = data[segment.start - group[0].start : segment.stop - group[0].start]
                faults += _check_block(segment, part, checkpoint.manifest.block_bytes, visit)
    if read == record.size_bytes and crc_text(crc) != record.crc32c:
        faults.append(f"{record.key}: its CRC-32C is {crc_text(crc)} instead of {record.crc32c}")
    return ObjectScan(record, info.size_bytes, tuple(faults))


def _check_block(segment: _Segment, data: bytes, block_bytes: int, visit: Callable[[Block], None] | None) -> list[str]:
    assert segment.owner is not None
    name, tensor, chunk = segment.owner
    begin = segment.start - chunk.start
    intact = len(data) == segment.stop - segment.start and (
        crc_text(google_crc32c.value(data)) == chunk.crc32c[begin // block_bytes]
    )
    if visit is not None:
        whole = len(data) - len(data) % tensor.item_bytes
        visit(Block(name, tensor, chunk, begin, data[:whole], intact))
    return [] if intact else [f"{chunk.key}: bytes [{segment.start}, {segment.stop}) of {name} are not as written"]


def _segments(
    record: ObjectRecord, chunks: list[tuple[str, TensorRecord, Chunk]], block_bytes: int
) -> Iterator[_Segment]:
    end = 0
    for owner in chunks:
        chunk = owner[2]
        if chunk.start < end:
            raise CheckpointError(f"{record.key}: two chunks share bytes before {end}, {owner[0]} is one of them")
        if end < chunk.start:
            yield _Segment(end, chunk.start)
        for start in range(chunk.start, chunk.stop, block_bytes):
            yield _Segment(start, min(start + block_bytes, chunk.stop), owner)
        end = max(end, chunk.stop)
    if end < record.size_bytes:
        yield _Segment(end, record.size_bytes)


def _grouped(segments: list[_Segment]) -> list[list[_Segment]]:
    """Neighbours together, up to `REQUEST_BYTES`."""
    groups: list[list[_Segment]] = []
    for segment in segments:
        if groups and segment.stop - groups[-1][0].start <= REQUEST_BYTES:
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return groups


def _fetched_ahead(storage: Storage, key: str, ranges: list[tuple[int, int]]) -> Iterator[bytes]:
    with ThreadPoolExecutor(REQUESTS_AHEAD, thread_name_prefix="giblet-scan") as pool:
        waiting: list[Future[bytes]] = []
        for start, stop in ranges:
            waiting.append(pool.submit(storage.get, key, start, stop))
            if len(waiting) > REQUESTS_AHEAD:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def _open_ref(storage: Storage, ref: CheckpointRef) -> OpenCheckpoint:
    return OpenCheckpoint(storage, ref.prefix, read_manifest(storage, ref.prefix), ref)


def _resolve(storage: Storage, key: str) -> CheckpointRef:
    exact = CheckpointRef.of_manifest_key(f"{key}/{layout.MANIFEST}")
    if exact is not None:
        return exact
    parts = key.split("/")
    step = _STEP.fullmatch(parts[3]) if len(parts) == 4 else None
    if len(parts) not in (2, 3, 4) or (len(parts) > 2 and parts[2] != "checkpoints") or (len(parts) == 4 and not step):
        raise CheckpointError(
            f"{storage.url}/{key}: neither a run nor a checkpoint",
            remedy="write runs/<run>, or runs/<run>/checkpoints/step-<number>",
        )
    found = [entry for entry in survey(storage, parts[1]) if entry.committed]
    if step is not None:
        found = [entry for entry in found if entry.ref.step == int(step[1])]
    good = [entry for entry in found if not entry.quarantined]
    if not (good or found):
        raise CheckpointError(
            f"{storage.url}/{key}: holds no committed checkpoint", remedy="list them with `giblet runs`"
        )
    return (good or found)[-1].ref
