"""The copy that training waits for: one buffer, reused from save to save, that holds this rank's file as it will be.

DCP plans who writes which chunk (each once, however many ranks hold it); the plan's chunks are copied to their places
in the file, and training goes on. What is uploaded later is this buffer and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan

from giblet.checkpoint import layout
from giblet.checkpoint.ranks import Ranks
from giblet.checkpoint.shard import Entry, Layout, lay_out
from giblet.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Planned:
    """What this rank has to write. `metadata` is DCP's view of the whole, on the first rank only."""

    planner: DefaultSavePlanner
    plan: SavePlan
    metadata: Metadata | None
    key: str


def make_plan(tensors: Mapping[str, torch.Tensor], ranks: Ranks) -> Planned:
    """DCP's plan, deduplicated over all ranks (collective). Raises `CheckpointError` for what is no tensor."""
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)

    def local_plan() -> SavePlan:
        for name, tensor in tensors.items():
            if not isinstance(tensor, torch.Tensor):
                raise CheckpointError(
                    f"{name}: a {type(tensor).__name__} is no tensor", remedy="put plain values into the state"
                )
        planner.set_up_planner(dict(tensors), is_coordinator=ranks.is_first)
        return planner.create_local_plan()

    plans = ranks.on_all(local_plan)
    metadata: Metadata | None = None
    split: list[SavePlan] | None = None

    def global_plan() -> None:
        nonlocal metadata, split
        try:
            split, metadata = planner.create_global_plan(plans)
        except ValueError as error:
            raise CheckpointError(f"the ranks' tensors do not fit together: {error}") from None

    ranks.on_first(global_plan)
    plan = planner.finish_plan(ranks.scatter(split))
    return Planned(planner, plan, metadata, layout.shard_name(ranks.rank))


class StagingBuffer:
    """Host memory for one rank's file; grows when it must, pinned where there is a GPU to copy from."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def fill(self, planned: Planned) -> Layout:
        """Copy every chunk of the plan to its place; returns the places. Training may go on when it returns."""
        shape = lay_out(planned.plan.items)
        if self._memory.numel() < shape.size_bytes:
            self._memory = torch.empty(0, dtype=torch.uint8)  # free the old one first
            self._memory = torch.empty(shape.size_bytes, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        on_gpu = False
        for entry in shape.entries:
            source = planned.planner.resolve_data(entry.item)
            assert isinstance(source, torch.Tensor)
            source = source.detach()
            on_gpu |= source.is_cuda
            if entry.stop > entry.start:
                place = self._memory[entry.start : entry.stop].view(source.dtype).view(source.shape)
                place.copy_(source, non_blocking=True)
        if on_gpu:
            torch.cuda.synchronize()
        return shape

    def bytes_of(self, entry: Entry) -> memoryview:
        """An entry's bytes as they were staged."""
        return self._memory[entry.start : entry.stop].numpy().data


def without_planner(planned: Planned) -> Planned:
    """The plan alone: keeps no tensor of training alive while it is uploaded."""
    return replace(planned, planner=DefaultSavePlanner())
