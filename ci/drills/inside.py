"""Put into a launcher before it forks its ranks: a witness of what they really do, and faults that only they can have.

The witness writes a line for each start, step, save, load and commit, with a digest of all tensors as they were in
memory. A line is written by one call to the kernel, so that it outlives a process that is killed the moment after.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from giblet.checkpoint import CheckpointStore
from giblet.training.step import TrainStep


@dataclass(frozen=True)
class Sabotage:
    """Rank `rank` does something terrible before its step `step`: once, or each time that it comes there."""

    kind: Literal["spin", "stuck", "nan", "crash"]
    marker: str
    rank: int = 1
    step: int = 15
    once: bool = True


def prepare(folder: str, sabotage: Sabotage | None = None, pace_seconds: float = 0.03) -> None:
    """Change what training in this process, and those that it forks, calls. Steps take at least `pace_seconds`."""
    notes = Notes(Path(folder))
    _witness_steps(notes, sabotage, pace_seconds)
    _witness_checkpoints(notes)


class Notes:
    """Lines of JSON, a file a process."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._owner, self._file = folder, 0, -1

    def add(self, **note: Any) -> None:
        """Append, with the time and the rank."""
        if self._owner != os.getpid():  # a fork starts a file of its own
            self._owner = os.getpid()
            path = self._folder / f"{time.monotonic_ns()}-{self._owner}.jsonl"
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        line = {**note, "at": time.monotonic(), "rank": int(os.environ.get("RANK", "0")), "pid": self._owner}
        os.write(self._file, json.dumps(line).encode() + b"\n")


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Names the bits of all tensors together."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:32]


def _witness_steps(notes: Notes, sabotage: Sabotage | None, pace_seconds: float) -> None:
    original = TrainStep.__call__

    def step(self: TrainStep, number: int, *words: Any, **named: Any) -> Any:
        began = time.monotonic()
        if sabotage is not None and int(os.environ.get("RANK", "0")) == sabotage.rank and number + 1 == sabotage.step:
            _strike(sabotage, self)
        result = original(self, number, *words, **named)
        notes.add(what="step", step=number + 1)
        time.sleep(max(0.0, pace_seconds - (time.monotonic() - began)))
        return result

    TrainStep.__call__ = step  # type: ignore[assignment,method-assign]


def _strike(sabotage: Sabotage, step: TrainStep) -> None:
    marker = Path(sabotage.marker)
    if sabotage.once and marker.exists():
        return
    marker.write_text(str(time.monotonic()))
    if sabotage.kind == "spin":
        while True:
            pass
    if sabotage.kind == "stuck":
        dist.recv(torch.zeros(1), src=1 - sabotage.rank)  # nobody sends
    if sabotage.kind == "nan":
        with torch.no_grad():
            step._parameters[0].view(-1)[0] = float("nan")
    if sabotage.kind == "crash":
        raise RuntimeError("a bug, for the drill")


def _witness_checkpoints(notes: Notes) -> None:
    begin, save, load, commit = (
        CheckpointStore.begin, CheckpointStore.save, CheckpointStore.load, CheckpointStore._commit,
    )  # fmt: skip

    def begun(self: CheckpointStore, *words: Any) -> Any:
        start = begin(self, *words)
        resumed = start.resumed_from
        notes.add(
            what="start", start=start.number, world_size=start.world_size, step=start.resumed_step,
            attempt=None if resumed is None else resumed.attempt,
        )  # fmt: skip
        return start

    def saved(self: CheckpointStore, step: int, tensors: Mapping[str, Tensor], *words: Any, **named: Any) -> Any:
        assert self._start is not None
        notes.add(what="save", start=self._start.number, step=step, digest=digest(tensors))
        return save(self, step, tensors, *words, **named)

    def loaded(self: CheckpointStore, ref: Any, tensors: Mapping[str, Tensor]) -> Any:
        state = load(self, ref, tensors)
        notes.add(what="load", step=ref.step, attempt=ref.attempt, digest=digest(tensors))
        return state

    def committed(self: CheckpointStore, job: Any, results: Any) -> Any:
        size = commit(self, job, results)
        notes.add(what="commit", step=job.ref.step, attempt=job.ref.attempt)
        return size

    CheckpointStore.begin = begun  # type: ignore[assignment,method-assign]
    CheckpointStore.save = saved  # type: ignore[method-assign]
    CheckpointStore.load = loaded  # type: ignore[method-assign]
    CheckpointStore._commit = committed  # type: ignore[method-assign]
