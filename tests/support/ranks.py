"""Functions run as several gloo ranks: real processes, kept from one test to the next.

They are forked from a server that has imported torch, which takes seconds, once for all.

with RankPool() as pool:
    results = pool.run(2, work, *arguments)     # work(rank, world_size, *arguments) on each; results by rank
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

DEADLINE_SECONDS = 240
"""For one piece of work; generous, since it only bounds what hangs."""


class RankPool:
    """Processes that become ranks 0 … n-1 of a fresh process group for each piece of work."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["torch.distributed.fsdp", "torch.distributed.checkpoint"])
        self._workers: list[tuple[multiprocessing.process.BaseProcess, Connection]] = []
        self._folder = tempfile.TemporaryDirectory(prefix="giblet-ranks-")
        self._runs = 0

    def __enter__(self) -> RankPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._folder.cleanup()

    def run(self, world_size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Results by rank. Fails with the traceback of the first rank that failed."""
        while len(self._workers) < world_size:
            mine, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            self._workers.append((process, mine))
        self._runs += 1
        meeting = Path(self._folder.name, f"store-{self._runs}")
        for rank in range(world_size):
            self._workers[rank][1].send((rank, world_size, str(meeting), work, arguments))
        results = []
        for rank in range(world_size):
            pipe = self._workers[rank][1]
            error, value = pipe.recv() if pipe.poll(DEADLINE_SECONDS) else (f"nothing in {DEADLINE_SECONDS} s", None)
            if error is not None:
                self._end()  # its peers may stand in a collective
                raise AssertionError(f"rank {rank} of {world_size}:\n{error}")
            results.append(value)
        return results

    def _end(self) -> None:
        for process, pipe in self._workers:
            pipe.close()
            process.kill()
            process.join()
        self._workers = []


def _serve(pipe: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            rank, world_size, meeting, work, arguments = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        try:
            dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size)
            try:
                value = work(rank, world_size, *arguments)
            finally:
                dist.destroy_process_group()
            pipe.send((None, value))
        except BaseException:
            pipe.send((traceback.format_exc(), None))
