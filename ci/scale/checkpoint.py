"""Saves and a resume of the first of N ranks, at real size, through giblet's code; bytes and peers are made up.

Real: DCP's planning on DTensors, laying out, building, sealing, serialising, parsing and checking the manifest, the
commit with its HEADs and its fence, retention, finding the checkpoint to resume from, planning and reading of the first
rank's share with every CRC checked. Made up: the other ranks' messages (`peers`), the store (`counting`), and all
tensors, which are zero. No bytes cross a network: times are of the processor, plus `request_seconds` a small request.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from giblet.checkpoint import resume, staging
from giblet.checkpoint import store as store_module
from giblet.checkpoint.layout import CheckpointRef
from giblet.checkpoint.manifest import Manifest
from giblet.checkpoint.planning import Planned, SavePlanner
from giblet.checkpoint.reader import GibletStorageReader
from giblet.checkpoint.shard import Entry, Layout, lay_out
from giblet.checkpoint.store import CheckpointStore
from giblet.config.load import load_config_data
from giblet.storage import Storage
from scale import model70b
from scale.counting import CountingStorage
from scale.gauge import Gauge, Reading
from scale.peers import SimulatedRanks, shard_of, upload_without_bytes

RUN = "seventy-billion"
CONFIG = load_config_data({"checkpoint": {"keep_last": 3}})
MOST_REAL_BYTES = 2e9
"""Beyond this the first rank's own bytes are neither streamed nor read: at 8 ranks they are 106 GB."""


@dataclasses.dataclass
class Step:
    """What one save or resume took. `readings` are of the first rank; `requests` of all ranks for a save, of the first
    for a resume; `gathered_bytes` what the other ranks sent to the first; `read_keys` GETs by file name.
    """

    readings: dict[str, Reading]
    requests: dict[str, int]
    gathered_bytes: int
    read_keys: dict[str, int]


@dataclasses.dataclass
class Result:
    """What was measured at one world size; `steps` are "first save", "next save" and "resume"."""

    world_size: int
    tensors: int
    chunks: int
    checkpoint_bytes: int
    manifest_bytes: int
    steps: dict[str, Step]


def simulate(
    world_size: int, *, layers: int = model70b.LAYERS, width: int = model70b.HIDDEN, request_seconds: float = 0.0
) -> Result:
    """Two saves and a resume, of the first rank. Raises what giblet raises."""
    gauge, storage = Gauge(), CountingStorage(request_seconds)
    with fake_group(0, world_size), contextlib.ExitStack() as stack:
        tensors = zeros(world_size, 0, model70b.sharded_tensors(layers, width), model70b.replicated_tensors(layers))
        ranks = SimulatedRanks(world_size, storage, gauge)
        stack.enter_context(mock.patch.object(store_module, "Ranks", return_value=ranks))
        stack.enter_context(mock.patch.object(store_module, "StagingBuffer", ZeroBuffer))
        if sum(t.to_local().nbytes for t in tensors.values() if isinstance(t, DTensor)) > MOST_REAL_BYTES:
            stack.enter_context(mock.patch.object(CheckpointStore, "_upload", _upload_nothing))
            stack.enter_context(mock.patch.object(GibletStorageReader, "_fetch", _read_nothing))
        stack.enter_context(gauge.watching(*_WATCHED))
        store = CheckpointStore(storage, RUN)
        store.begin(CONFIG)
        first = _save(store, 100, tensors, ranks, gauge)
        _pretend_older(storage, _newest(store))
        later = _save(store, 200, tensors, ranks, gauge)
        newest = _newest(store)
        back = _resume(storage, tensors, ranks, gauge)
        manifest = Manifest.parse(storage.get(newest.manifest_key))
    return Result(
        world_size=world_size, tensors=len(manifest.tensors),
        chunks=sum(len(tensor.chunks) for tensor in manifest.tensors.values()),
        checkpoint_bytes=manifest.size_bytes, manifest_bytes=storage.sizes[newest.manifest_key],
        steps={"first save": first, "next save": later, "resume": back},
    )  # fmt: skip


class ZeroBuffer(staging.StagingBuffer):
    """A staged copy of zeros, of any size, in no memory."""

    def fill(self, planned: Planned) -> Layout:
        """See `StagingBuffer`."""
        return lay_out(planned.plan.items)

    def bytes_of(self, entry: Entry) -> memoryview:
        """See `StagingBuffer`."""
        return memoryview(bytes(entry.stop - entry.start))


@contextlib.contextmanager
def fake_group(rank: int, world_size: int) -> Iterator[None]:
    """A process group of which this process is one rank and the others do not exist: enough for DTensors."""
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def zeros(
    world_size: int, rank: int, sharded: Mapping[str, tuple[int, ...]], replicated: list[str]
) -> dict[str, torch.Tensor]:
    """A state dict as `rank` holds it: DTensors whose local parts all lie in one piece of zeros."""
    mesh = DeviceMesh("cpu", torch.arange(world_size))
    local = {name: shard_of(shape, rank, world_size)[0] for name, shape in sharded.items()}
    memory = torch.zeros(max(map(math.prod, local.values())))
    return {
        **{
            name: _dtensor(memory[: math.prod(local[name])].view(local[name]), shape, mesh)
            for name, shape in sharded.items()
        },
        **{name: torch.tensor(0.0) for name in replicated},
    }


def _dtensor(local: torch.Tensor, shape: tuple[int, ...], mesh: DeviceMesh) -> DTensor:
    strides = [math.prod(shape[dimension + 1 :]) for dimension in range(len(shape))]
    return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=torch.Size(shape), stride=tuple(strides))


def _save(
    store: CheckpointStore, step: int, tensors: dict[str, torch.Tensor], ranks: SimulatedRanks, gauge: Gauge
) -> Step:
    with _recorded(store.storage, ranks, gauge) as record:
        with gauge.measure("stall"):
            store.save(step, tensors, {"step": step})
        with gauge.measure("background"):
            store.wait()
    return record


def _resume(storage: Storage, tensors: dict[str, torch.Tensor], ranks: SimulatedRanks, gauge: Gauge) -> Step:
    with _recorded(storage, ranks, gauge) as record:
        store = CheckpointStore(storage, RUN)
        with gauge.measure("begin"):
            start = store.begin(CONFIG)
        assert start.resumed_from is not None
        with gauge.measure("load"):
            state = store.load(start.resumed_from, tensors)
    assert state == {"step": 200}
    return record


@contextlib.contextmanager
def _recorded(storage: Storage, ranks: SimulatedRanks, gauge: Gauge) -> Iterator[Step]:
    assert isinstance(storage, CountingStorage)
    gauge.readings, ranks.gathered_bytes = {}, 0
    storage.requests.clear()
    storage.read_keys.clear()
    record = Step({}, {}, 0, {})
    yield record
    record.readings, record.requests = dict(gauge.readings), dict(storage.requests)
    record.gathered_bytes, gauge.readings = ranks.gathered_bytes, {}
    record.read_keys = dict(storage.read_keys)


def _upload_nothing(store: CheckpointStore, job: Any) -> list[WriteResult]:
    """In place of `CheckpointStore._upload`."""
    assert isinstance(store.storage, CountingStorage)
    store.storage.folder_written_to = job.ref.prefix
    return upload_without_bytes(store.storage, job.planned.key, job.shape)


def _read_nothing(reader: GibletStorageReader, request: list[Any]) -> None:
    """In place of `GibletStorageReader._fetch`: asks for the range, and looks at no byte of it."""
    key = request[0].wanted.chunk.key
    reader._storage.get(f"{reader._prefix}{key}", request[0].start, request[0].start)


def _pretend_older(storage: CountingStorage, ref: CheckpointRef) -> None:
    """Older checkpoints of the same size, as a run has them that has been going for a while: so many as are kept."""
    for step in range(CONFIG.checkpoint.keep_last):
        older = dataclasses.replace(ref, step=step + 1)
        for key in [key for key in storage.sizes if key.startswith(ref.prefix)]:
            storage.sizes[older.prefix + key.removeprefix(ref.prefix)] = storage.sizes[key]


def _newest(store: CheckpointStore) -> CheckpointRef:
    assert store.last_committed is not None, "the save failed; its error was logged"
    return store.last_committed


_WATCHED = (
    (DefaultSavePlanner, "create_local_plan", "local plan"),
    (SavePlanner, "create_global_plan", "global plan"),
    (CheckpointStore, "_upload", "upload"),
    (store_module, "build_manifest", "merge"),
    (store_module, "confirm_objects", "confirm"),
    (store_module, "put_manifest", "commit"),
    (Manifest, "dump", "serialise"),
    (Manifest, "parse", "parse"),
    (store_module, "prune", "retention"),
    (resume, "survey", "list"),
    (store_module, "dcp_metadata", "metadata"),
    (DefaultLoadPlanner, "create_local_plan", "load plan"),
    (GibletStorageReader, "read_data", "read"),
)
