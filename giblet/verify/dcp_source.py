"""A folder written by `torch.distributed.checkpoint`: `.metadata` and `*.distcp` files of torch archives.

`.metadata` is a pickle; it is read by `unpickle`, which runs nothing.
"""

from __future__ import annotations

from typing import Any

from giblet.errors import CheckpointError
from giblet.storage.base import Storage
from giblet.verify.sources import Chunk, Source, StoredObject, TensorRecord, weights_among
from giblet.verify.statistics import number_format
from giblet.verify.torch_source import Archive, place_tensors, read_archive
from giblet.verify.unpickle import DtypeStub, Record, TensorStub, loads

METADATA = ".metadata"
_MODULE = "torch.distributed.checkpoint.metadata"
_RECORDS = frozenset(
    {(_MODULE, name) for name in (
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
        "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING",
    )} | {("torch.distributed.checkpoint.filesystem", "_StorageInfo")}
)  # fmt: skip
_MAX_BYTES_ITEM = 1 << 20


def open_dcp(url: str, storage: Storage, prefix: str) -> Source:
    """List the tensors of a DCP folder at `prefix` (empty, or ending with a slash)."""
    try:
        metadata = loads(storage.get(prefix + METADATA), f"{url}/{METADATA}", records=_RECORDS)
    except KeyError:
        raise CheckpointError(f"{url}: there is no {METADATA}", remedy="name a folder that DCP wrote") from None
    entries = _field(url, metadata, "state_dict_metadata", dict)
    places = _field(url, metadata, "storage_data", dict)
    tensors = {name: _record(url, name, entry) for name, entry in entries.items() if _is_tensor(entry)}
    objects: list[StoredObject] = []
    missing: list[str] = []
    notes: list[str] = []
    state: dict[str, Any] = {}
    for index, info in places.items():
        name, offsets = _field(url, index, "fqn", str), _as_tuple(index.get("offset"))
        key = prefix + _field(url, info, "relative_path", str)
        begin, length = _field(url, info, "offset", int), _field(url, info, "length", int)
        head = storage.head(key)
        if head is None or head.size_bytes < begin + length:
            short = f"{key.removeprefix(prefix)}" if head is None else f"{key.removeprefix(prefix)} (cut short)"
            missing += [] if short in missing else [short]
        elif name in tensors:
            archive = read_archive(f"{url}: {name}", storage, key, begin, length)
            item, more = _chunk_object(url, archive, name, offsets, tensors[name])
            objects += item
            notes += more
        elif length <= _MAX_BYTES_ITEM and storage.get(key, begin, begin + 4) == b"PK\x03\x04":
            state[name] = _plain(read_archive(f"{url}: {name}", storage, key, begin, length).tree)
    step = next((value for key, value in state.items() if key.rpartition(".")[2] in ("step", "global_step")), None)
    return Source(
        url=url,
        kind="dcp",
        storage=storage,
        objects=tuple(objects),
        tensors=tensors,
        weights=weights_among(tensors),
        state=state,
        step=step if isinstance(step, int) else None,
        notes=tuple(notes),
        missing=tuple(missing),
    )


def _chunk_object(
    url: str, archive: Archive, name: str, offsets: tuple[int, ...], record: TensorRecord
) -> tuple[tuple[StoredObject, ...], tuple[str, ...]]:
    """One archive holds one chunk; its place in the whole tensor comes from the index."""
    if not isinstance(archive.tree, TensorStub):
        raise CheckpointError(f"{url}: what is stored for {name} is not a tensor")
    _, items, notes = place_tensors(f"{url}: {name}", archive, {name: archive.tree})
    if archive.tree.dtype != record.dtype:
        raise CheckpointError(f"{url}: {name} is {record.dtype} in {METADATA}, its bytes are {archive.tree.dtype}")
    placed = tuple(
        StoredObject(
            item.key, item.size_bytes,
            tuple(Chunk(c.tensor, c.start, c.stop, offsets or c.offsets, c.sizes) for c in item.chunks),
            item.crc, item.checksum, item.begin, whole=False, label=f"{name} in {item.label}",
        )
        for item in items
    )  # fmt: skip
    return placed, notes


def _is_tensor(entry: Any) -> bool:
    return isinstance(entry, Record) and entry.kind == f"{_MODULE}.TensorStorageMetadata"


def _record(url: str, name: str, entry: Record) -> TensorRecord:
    properties = entry.get("properties")
    state = properties.state if isinstance(properties, Record) else None
    dtype = state[0] if isinstance(state, tuple) and state else None
    form = number_format(dtype.name) if isinstance(dtype, DtypeStub) else None
    if form is None:
        raise CheckpointError(f"{url}: the dtype of tensor {name} cannot be judged")
    return TensorRecord(name, form.name, _as_tuple(entry.get("size")))


def _field(url: str, record: Any, name: str, kind: type[Any]) -> Any:
    value = record.get(name) if isinstance(record, Record) else None
    if not isinstance(value, kind):
        raise CheckpointError(f"{url}: {METADATA} is not what DCP writes: {name} is missing")
    return value


def _as_tuple(values: Any) -> tuple[int, ...]:
    return values if isinstance(values, tuple) else ()


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else type(value).__name__
