"""The next batch, ready before it is asked for: threads copy rows out of memory-mapped arrays meanwhile."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from giblet.data.batches import Batch, BatchBuilder
from giblet.data.order import SampleOrder
from giblet.training.parallel import World

READY_STEPS = 2
"""Steps that are kept ready, or being built, ahead of the one that trains."""


class BatchStream:
    """This rank's micro-batches, step by step, from `first_step` until `total_steps`.

    `wait_seconds` is how long the last `next` had to wait. With 0 workers the batches are built in the loop.
    """

    def __init__(
        self, builder: BatchBuilder, order: SampleOrder, world: World, workers: int, first_step: int, total_steps: int
    ) -> None:
        self._builder, self._order, self._world = builder, order, world
        self._pool = ThreadPoolExecutor(workers, "giblet-loader") if workers else None
        self._ahead: deque[Future[list[Batch]]] = deque()
        self._next, self._total = first_step, total_steps
        self._pin = world.device.type == "cuda"
        self.wait_seconds = 0.0
        self._fill()

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        start = time.perf_counter()
        if self._pool is None:
            if self._next >= self._total:
                raise StopIteration
            batches = self._build(self._next)
            self._next += 1
        else:
            if not self._ahead:
                raise StopIteration
            batches = self._ahead.popleft().result()
            self._fill()
        self.wait_seconds = time.perf_counter() - start
        return batches

    def _fill(self) -> None:
        while self._pool is not None and len(self._ahead) < READY_STEPS and self._next < self._total:
            self._ahead.append(self._pool.submit(self._build, self._next))
            self._next += 1

    def _build(self, step: int) -> list[Batch]:
        rows = self._order.rank_indices(step, self._world.rank, self._world.size)
        batches = [self._builder.build(indices) for indices in rows]
        return [batch.pin_memory() for batch in batches] if self._pin else batches

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
