"""A checkpoint as one safetensors file: whatever its shards were, every byte checked on the way, in bounded memory.

    export_safetensors(open_checkpoint("s3://bucket/prefix/runs/my-run"), Path("my-run.safetensors"))

The file's bytes are mapped into memory and filled in place by the same reader that training restores with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

from giblet.checkpoint.dtypes import torch_dtype
from giblet.checkpoint.manifest import Manifest, TensorRecord
from giblet.checkpoint.opened import OpenCheckpoint
from giblet.checkpoint.reader import GibletStorageReader, dcp_metadata
from giblet.errors import CheckpointError

MODEL = "model."
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    path: Path
    tensors: int
    elements: int
    size_bytes: int


def export_safetensors(checkpoint: OpenCheckpoint, path: Path, *, everything: bool = False) -> Exported:
    """Write the model's tensors under their state-dict names; with `everything` the optimizer's too, all as stored.

    A checkpoint without `model.…` tensors is always written whole. The file appears under its name when it is complete.
    Raises `CheckpointError` for a byte that is not as written, and `OSError` for a full disk, before anything is read.
    """
    manifest = checkpoint.manifest
    names = {name: name.removeprefix(MODEL) for name in manifest.tensors if name.startswith(MODEL)}
    if everything or not names:
        names = {name: name for name in manifest.tensors}
    part = path.with_name(path.name + ".part")
    try:
        size = _reserve(part, manifest, names)
        fill_file(checkpoint, part, names)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return Exported(path, len(names), sum(manifest.tensors[name].elements for name in names), size)


def fill_file(checkpoint: OpenCheckpoint, path: Path, names: Mapping[str, str]) -> None:
    """Read every tensor of `names` (in the checkpoint → in the file) into a safetensors file laid out for them."""
    mapped = map_tensors(path, writable=True)
    targets = {name: mapped[inside] for name, inside in names.items()}
    reader = GibletStorageReader(checkpoint.storage, prefix=checkpoint.prefix, manifest=checkpoint.manifest)
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with torch.no_grad():
        planner.set_up_planner(targets, dcp_metadata(checkpoint.manifest), is_coordinator=True)
        reader.read_data(planner.create_local_plan(), planner)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def map_tensors(path: Path, *, writable: bool = False) -> dict[str, Tensor]:
    """The tensors of a safetensors file, each mapped into memory by itself; changes go to the file if `writable`."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: _map(path, 8 + length, entry, "r+" if writable else "c") for name, entry in header.items()}


def _map(path: Path, begin: int, entry: Mapping[str, Any], mode: Literal["r+", "c"]) -> Tensor:
    dtype, shape = torch_dtype(entry["dtype"]), [int(n) for n in entry["shape"]]
    first, stop = (int(n) for n in entry["data_offsets"])
    if first == stop:
        return torch.empty(shape, dtype=dtype)
    raw = np.memmap(path, np.uint8, mode, offset=begin + first, shape=(stop - first,))
    return torch.from_numpy(raw).view(dtype).view(shape)


def _reserve(path: Path, manifest: Manifest, names: Mapping[str, str]) -> int:
    """Write the header and claim the disk for the rest; returns the file's size."""
    records = {inside: manifest.tensors[name] for name, inside in names.items()}
    head, size = _header(manifest, records)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(head)
        file.flush()
        if size:
            os.posix_fallocate(file.fileno(), len(head), size)  # a full disk is found now, not while filling
    return len(head) + size


def _header(manifest: Manifest, records: Mapping[str, TensorRecord]) -> tuple[bytes, int]:
    """safetensors' header, and the size of what follows. The widest elements come first, so that all are aligned."""
    entries: dict[str, object] = {
        "__metadata__": {
            "format": "pt", "run": manifest.run, "step": str(manifest.step), "created_by": manifest.created_by,
        }
    }  # fmt: skip
    at = 0
    for name, record in sorted(records.items(), key=lambda item: (-item[1].item_bytes, item[0])):
        stop = at + record.size_bytes
        entries[name] = {"dtype": record.dtype, "shape": list(record.shape), "data_offsets": [at, stop]}
        at = stop
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > 100_000_000:
        raise CheckpointError("the header would be larger than safetensors allows", remedy="export fewer tensors")
    return len(text).to_bytes(8, "little") + text, at
