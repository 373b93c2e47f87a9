"""A giblet checkpoint: a sealed manifest, and the shards that it names."""

from __future__ import annotations

import json
from typing import Any

from giblet.checkpoint.dtypes import TORCH_NAMES
from giblet.checkpoint.layout import CheckpointRef, run_key
from giblet.checkpoint.manifest import Manifest
from giblet.errors import CheckpointError
from giblet.storage.base import Storage
from giblet.verify.sources import Chunk, DamagedError, Source, StoredObject, TensorRecord, weights_among


def open_giblet(url: str, storage: Storage, manifest_key: str) -> Source:
    """List what the manifest at `manifest_key` names. Raises `CheckpointError` if there is none, or it is damaged."""
    try:
        data = storage.get(manifest_key)
    except KeyError:
        raise CheckpointError(
            f"{url}: there is no manifest, so that no checkpoint was committed here", remedy="name another"
        ) from None
    try:
        manifest = Manifest.parse(data, url)
    except CheckpointError as error:
        raise DamagedError(error.message, remedy=error.remedy) from None
    prefix = manifest_key.rpartition("/")[0] + "/" if "/" in manifest_key else ""
    chunks: dict[str, list[Chunk]] = {item.key: [] for item in manifest.objects}
    for name, _, chunk in manifest.chunks():
        crcs = tuple(int(crc, 16) for crc in chunk.crc32c)
        chunks[chunk.key].append(
            Chunk(name, chunk.start, chunk.stop, chunk.offset, chunk.shape, crcs, manifest.block_bytes)
        )
    return Source(
        url=url,
        kind="giblet",
        storage=storage,
        objects=tuple(
            StoredObject(prefix + item.key, item.size_bytes, tuple(chunks[item.key]), int(item.crc32c, 16))
            for item in manifest.objects
        ),
        tensors={
            name: TensorRecord(name, TORCH_NAMES[tensor.dtype], tensor.shape)
            for name, tensor in manifest.tensors.items()
        },
        weights=weights_among(manifest.tensors),
        state=manifest.state if isinstance(manifest.state, dict) else {},
        config=_recorded_config(storage, manifest_key),
        step=manifest.step,
        manifest=manifest,
        manifest_bytes=data,
        place=prefix,
    )


def _recorded_config(storage: Storage, manifest_key: str) -> dict[str, Any] | None:
    """The configuration that the run began with, from `run.json`; None where there is none."""
    ref = CheckpointRef.of_manifest_key(manifest_key)
    try:
        record = json.loads(storage.get(run_key(ref.run))) if ref is not None else None
    except (KeyError, ValueError):
        return None
    config = record.get("config") if isinstance(record, dict) else None
    return config if isinstance(config, dict) else None
