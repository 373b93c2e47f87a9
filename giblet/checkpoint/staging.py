"""The copy that training waits for: one buffer, reused from save to save, that holds this rank's file as it will be.

The plan's chunks are copied to their places in the file, and training goes on. What is uploaded later is this buffer
and nothing else.
"""

from __future__ import annotations

import torch

from giblet.checkpoint.planning import Planned
from giblet.checkpoint.shard import Entry, Layout, lay_out


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
