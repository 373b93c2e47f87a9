"""A `StorageWriter` for PyTorch DCP: safetensors shards and a JSON manifest, in S3 or a folder. No pickle.

    dcp.save(state_dict, storage_writer=GibletStorageWriter("s3://bucket/runs/x"))

Usable with any DCP code. `CheckpointStore` uses its pieces with a staged copy in between.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

import giblet
from giblet.checkpoint import exact_json, layout
from giblet.checkpoint.dtypes import dtype_name
from giblet.checkpoint.manifest import Chunk, Manifest, ObjectRecord, TensorRecord
from giblet.checkpoint.place import AtPlace, Place
from giblet.checkpoint.shard import ShardStream, lay_out, tensor_bytes
from giblet.config.schema import CheckpointConfig
from giblet.errors import CheckpointError
from giblet.storage import PreconditionFailedError, Storage
from giblet.storage.parallel import each


@dataclasses.dataclass(frozen=True, slots=True)
class WrittenChunk:
    """What a rank tells the coordinator of one chunk."""

    object: ObjectRecord
    chunk: Chunk


@dataclasses.dataclass(frozen=True, slots=True)
class WrittenValue:
    """What a rank tells the coordinator of something that is not a tensor."""

    value: Any


class GibletStorageWriter(AtPlace, StorageWriter):
    """Writes one checkpoint to the folder at `location`: an address, or a store together with `prefix`.

    What is not a tensor must be made of numbers, strings, bytes, lists, tuples and dictionaries. `state` goes into the
    manifest as it is. A place that holds a checkpoint already is refused: nothing is overwritten. Works with `dcp.save`
    and `dcp.async_save`; it travels to another process (`AsyncCheckpointerType.PROCESS`) if it was given an address.
    """

    def __init__(
        self,
        location: str | os.PathLike[str] | Storage,
        *,
        prefix: str = "",
        config: CheckpointConfig | None = None,
        state: Any = None,
        step: int = 0,
    ) -> None:
        self._state, self._step = state, step
        self._place = Place(location, prefix, config)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """DCP's hook: a new address to write to."""
        if checkpoint_id is not None:
            self._place = Place(checkpoint_id, "", self._place.config)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """DCP's hook. Raises `CheckpointError` on the coordinator if the place is taken."""
        if not kwargs.get("use_collectives", True):
            raise CheckpointError(
                "a checkpoint without coordination of its ranks (use_collectives=False) has no one manifest",
                remedy="save with use_collectives=True",
            )
        if is_coordinator and self._storage.head(self._prefix + layout.MANIFEST) is not None:
            raise CheckpointError(
                f"{self._storage.url}/{self._prefix}: holds a checkpoint already", remedy="choose another place"
            )

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """DCP's hook: nothing to add."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """DCP's hook: tells each rank the name of its file."""
        return [dataclasses.replace(plan, storage_data=layout.shard_name(rank)) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """DCP's hook: streams this rank's shard; a tensor is fetched when its turn comes."""
        results = [
            WriteResult(item.index, 0, WrittenValue(_plain_value(item.index.fqn, planner.resolve_data(item))))
            for item in plan.items
            if item.type == WriteItemType.BYTE_IO
        ]
        tensors = [item for item in plan.items if item.type != WriteItemType.BYTE_IO]
        if tensors:
            shape = lay_out(tensors)
            stream = ShardStream(plan.storage_data, shape, lambda entry: tensor_bytes(_tensor(planner, entry.item)))
            self._storage.put(self._prefix + plan.storage_data, stream)  # type: ignore[arg-type]
            whole = stream.object
            results += [
                WriteResult(entry.index, chunk.size_bytes, WrittenChunk(whole, chunk))
                for entry, chunk in zip(shape.entries, stream.chunks, strict=True)
            ]
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """DCP's hook: confirms every object and writes the manifest."""
        told = [result.storage_data for of_rank in results for result in of_rank]
        manifest = build_manifest(
            metadata, results, run="", step=self._step, attempt="", start=0, world_size=len(results), state=self._state
        )
        confirm_objects(self._storage, self._prefix, {t.object for t in told if isinstance(t, WrittenChunk)})
        put_manifest(self._storage, self._prefix, manifest)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """DCP's hook: an S3 address or a path."""
        return "://" not in str(checkpoint_id) or str(checkpoint_id).startswith("s3://")


def build_manifest(
    metadata: Metadata,
    results: Iterable[Iterable[WriteResult]],
    *,
    run: str,
    step: int,
    attempt: str,
    start: int,
    world_size: int,
    state: Any,
) -> Manifest:
    """The manifest of what all ranks wrote. Raises `CheckpointError` if `state` has no exact JSON."""
    try:
        exact_json.encode(state)
    except TypeError as error:
        raise CheckpointError(f"the state of step {step} cannot be saved: {error}") from None
    chunks: dict[str, list[Chunk]] = {}
    objects: dict[str, ObjectRecord] = {}
    values: dict[str, Any] = {}
    for result in (result for of_rank in results for result in of_rank):
        told = result.storage_data
        if isinstance(told, WrittenValue):
            values[result.index.fqn] = told.value
        else:
            chunks.setdefault(result.index.fqn, []).append(told.chunk)
            objects[told.object.key] = told.object
    tensors = {
        name: TensorRecord(
            dtype=dtype_name(meta.properties.dtype, name),
            shape=tuple(meta.size),
            chunks=tuple(sorted(chunks.get(name, ()), key=lambda chunk: chunk.offset)),
        )
        for name, meta in sorted(metadata.state_dict_metadata.items())
        if isinstance(meta, TensorStorageMetadata)
    }
    promised = {name for name, m in metadata.state_dict_metadata.items() if isinstance(m, BytesStorageMetadata)}
    assert promised == values.keys(), f"values differ from the plan: {promised ^ values.keys()}"
    paths = metadata.planner_data if isinstance(metadata.planner_data, Mapping) else {}
    return Manifest(
        run=run, step=step, attempt=attempt, start=start, world_size=world_size,
        created_by=f"giblet {giblet.__version__}", committed_unix_seconds=time.time(),
        objects=tuple(objects[key] for key in sorted(objects)),
        tensors=tensors, values=values, paths=dict(paths), state=state,
    )  # fmt: skip


def confirm_objects(storage: Storage, prefix: str, objects: Iterable[ObjectRecord]) -> None:
    """Asks the store for each object. Raises `CheckpointError` if one is missing or of another size."""

    def confirm(item: ObjectRecord) -> None:
        found = storage.head(prefix + item.key)
        if found is None or found.size_bytes != item.size_bytes:
            has = "is not there" if found is None else f"has {found.size_bytes} bytes"
            raise CheckpointError(
                f"{storage.url}/{prefix}{item.key} {has} after {item.size_bytes} bytes were written",
                remedy="the storage lost what it confirmed; look at its log",
            )

    each(confirm, objects)


def put_manifest(storage: Storage, prefix: str, manifest: Manifest, *, conditional: bool = True) -> None:
    """The commit. Raises `CheckpointError` if the place is taken by another manifest."""
    body = manifest.dump()
    Manifest.parse(body, "the manifest to be written")  # what cannot be read back must not be committed
    try:
        storage.put(prefix + layout.MANIFEST, body, if_absent=conditional)
    except PreconditionFailedError:
        # a retried request may find what its first try wrote
        if storage.get(prefix + layout.MANIFEST) != body:
            raise CheckpointError(
                f"{storage.url}/{prefix}: another writer committed here first", remedy="save to a place of its own"
            ) from None


def _tensor(planner: SavePlanner, item: Any) -> torch.Tensor:
    tensor = planner.resolve_data(item)
    assert isinstance(tensor, torch.Tensor)
    return tensor


def _plain_value(name: str, data: Any) -> Any:
    """DCP hands over `torch.save`'s bytes in memory; only plain values come out of them, and none go to storage."""
    data.seek(0)
    try:
        value = torch.load(data, weights_only=True)
        exact_json.encode(value)
    except Exception as error:
        raise CheckpointError(
            f"{name}: neither a tensor nor a plain value: {error}",
            remedy="save tensors, numbers, strings, bytes, lists, tuples and dictionaries of them",
        ) from None
    return value
