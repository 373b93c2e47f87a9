"""A plain safetensors file: a length, a JSON header, then the tensors' bytes.

The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from typing import Any

from giblet.errors import CheckpointError
from giblet.storage.base import Storage
from giblet.verify.sources import Chunk, DamagedError, Source, StoredObject, TensorRecord, weights_among
from giblet.verify.statistics import number_format

MAX_HEADER_BYTES = 100_000_000


def open_safetensors(url: str, storage: Storage, key: str) -> Source:
    """List the tensors of one file. Raises `CheckpointError` if its header is not one."""
    info = storage.head(key)
    if info is None:
        raise CheckpointError(f"{url}: there is no such file", remedy="check the address")
    header, data_start = read_header(url, storage, key, info.size_bytes)
    header.pop("__metadata__", None)
    chunks, tensors = [], {}
    for name, entry in header.items():
        record, start, stop = _entry(url, name, entry)
        tensors[name] = record
        zeros = (0,) * len(record.shape)
        chunks.append(Chunk(name, data_start + start, data_start + stop, zeros, record.shape))
    size = max((chunk.stop for chunk in chunks), default=data_start)
    item = StoredObject(key, size, tuple(chunks))
    return Source(
        url,
        "safetensors",
        storage,
        (item,),
        tensors,
        weights_among(tensors),
        notes=("a safetensors file records no checksums",),
    )


def read_header(url: str, storage: Storage, key: str, size_bytes: int) -> tuple[dict[str, Any], int]:
    """The JSON header and where the data begin."""
    fault = CheckpointError(f"{url}: not a safetensors file: its header cannot be read", remedy="is it whole?")
    length = int.from_bytes(storage.get(key, 0, min(8, size_bytes)), "little")
    if size_bytes >= 8 and size_bytes - 8 < length <= MAX_HEADER_BYTES and storage.get(key, 8, 9) == b"{":
        raise DamagedError(f"{url}: cut short within its header, at {size_bytes:,} bytes")
    if size_bytes < 8 or length > min(MAX_HEADER_BYTES, size_bytes - 8):
        raise fault
    try:
        header = json.loads(storage.get(key, 8, 8 + length))
    except (ValueError, RecursionError):
        raise fault from None
    if not isinstance(header, dict):
        raise fault
    return header, 8 + length


def _entry(url: str, name: str, entry: Any) -> tuple[TensorRecord, int, int]:
    try:
        dtype, shape, (start, stop) = str(entry["dtype"]), tuple(int(n) for n in entry["shape"]), entry["data_offsets"]
        start, stop = int(start), int(stop)
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(f"{url}: tensor {name} is not described as safetensors does") from None
    form = number_format(dtype)
    if form is None:
        raise CheckpointError(f"{url}: tensor {name} has dtype {dtype}, which giblet cannot judge")
    if start < 0 or min(shape, default=0) < 0 or stop - start != math.prod(shape) * form.item_bytes:
        raise CheckpointError(
            f"{url}: tensor {name} of {dtype} {list(shape)} is said to take bytes [{start}, {stop}), "
            "which is not its size"
        )
    return TensorRecord(name, form.name, shape), start, stop
