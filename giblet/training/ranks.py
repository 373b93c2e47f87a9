"""The ranks of this machine: started with torchrun's environment, watched, stopped, killed.

torchrun's agent ends all ranks as soon as one has failed, waits half a minute for each, and only tells that something
failed. Here ranks are processes whose outcomes are read, whoever decides what follows.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from giblet.config import GibletConfig
from giblet.errors import EXIT_CRASHED
from giblet.telemetry.logs import get_logger
from giblet.training.heartbeat import Beat, read_beat
from giblet.training.outcome import Outcome, read_outcome
from giblet.training.zygote import Forked, Zygote

POLL_SECONDS = 0.1
KILL_SECONDS = 20.0
log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where this machine's ranks stand in the world: `node` of `nodes`, each with `processes` ranks."""

    master_address: str
    master_port: int
    node: int = 0
    nodes: int = 1
    processes: int = 1

    @property
    def world_size(self) -> int:
        """Ranks on all nodes."""
        return self.nodes * self.processes

    def environment(self, local_rank: int) -> dict[str, str]:
        """What torch and training read, as torchrun sets it."""
        rank = self.node * self.processes + local_rank
        return {
            "RANK": str(rank),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_WORLD_SIZE": str(self.processes),
            "GROUP_RANK": str(self.node),
            "GROUP_WORLD_SIZE": str(self.nodes),
            "MASTER_ADDR": self.master_address,
            "MASTER_PORT": str(self.master_port),
            # The store lives in the launcher: the ranks are its clients, and no port is guessed.
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
        }


def host_store(address: str) -> TCPStore:
    """A store for one world's process groups, at a free port of this machine; it lives as long as the object."""
    return TCPStore(address, 0, is_master=True, wait_for_workers=False, multi_tenant=False)


@dataclass(slots=True)
class Ranks:
    """The ranks of one start on this machine. `folder` takes their outcomes and heartbeats."""

    folder: Path
    place: Place
    _processes: list[Forked] = field(default_factory=list)
    _ended: dict[int, Outcome] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        folder: Path,
        place: Place,
        config: GibletConfig,
        dataset_path: str | Path,
        environment: Mapping[str, str],
        zygote: Zygote,
    ) -> Ranks:
        """Start `place.processes` ranks that train, forked by `zygote`. `folder` must be empty."""
        job: dict[str, Any] = {
            "config": config.model_dump(mode="json"),
            "dataset_path": str(dataset_path),
            "log_level": logging.getLogger("giblet").getEffectiveLevel(),
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        ranks = cls(folder, place)
        try:
            for local_rank in range(place.processes):
                told = {**environment, **place.environment(local_rank)}
                ranks._processes.append(zygote.start(folder, local_rank, told))
        except BaseException:
            ranks.kill()
            raise
        return ranks

    @property
    def numbers(self) -> range:
        """The global ranks of this machine."""
        first = self.place.node * self.place.processes
        return range(first, first + self.place.processes)

    @property
    def pids(self) -> dict[int, int]:
        """Process ids of those that still run, by global rank."""
        return {
            rank: process.pid
            for rank, process in zip(self.numbers, self._processes, strict=False)
            if process.poll() is None
        }

    def poll(self) -> list[Outcome]:
        """What has become of those that have ended, in the order in which it was noticed."""
        for rank, process in zip(self.numbers, self._processes, strict=False):
            code = process.poll()
            if code is not None and rank not in self._ended:
                self._ended[rank] = self._outcome(rank, code)
        return list(self._ended.values())

    @property
    def running(self) -> bool:
        """Is any left."""
        return len(self.poll()) < len(self._processes)

    def wait(self, seconds: float) -> bool:
        """Until all have ended, at most so long; whether they have."""
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return not self.running

    def signal(self, number: int) -> None:
        """Send a signal to all that still run."""
        for pid in self.pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """End all that still run, with what they have started. They leave no outcome, and are none's cause."""
        for pid in self.pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        if not self.wait(KILL_SECONDS):  # the kernel holds them, in a driver perhaps; nobody else can
            log.error("killed ranks do not end", pids=",".join(map(str, self.pids.values())))

    def beats(self) -> dict[int, Beat]:
        """The newest sign of life of each rank."""
        found = {rank: read_beat(beat_path(self.folder, rank)) for rank in self.numbers}
        return {rank: beat if beat is not None else Beat() for rank, beat in found.items()}

    def _outcome(self, rank: int, code: int) -> Outcome:
        left = read_outcome(self.folder, rank)
        if left is not None and (code == left.exit_code or code < 0):
            return left  # a signal may come after the work is done
        if code < 0:
            name = signal.Signals(-code).name
            told = "out of memory?" if -code == signal.SIGKILL else "its last lines may say why"
            return Outcome(
                rank, EXIT_CRASHED, "Killed", f"rank {rank} ended with {name} ({told})", signal=name,
                unix_seconds=time.time(),
            )  # fmt: skip
        return Outcome(rank, EXIT_CRASHED, "Exit", f"ended with exit code {code}", unix_seconds=time.time())


def beat_path(folder: Path, rank: int) -> Path:
    """The file of a rank's heartbeat."""
    return folder / f"beat-{rank}.json"


@contextlib.contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """Signals that ask this process to stop, in the order in which they came; nothing else happens on one."""
    received: list[int] = []
    previous = {
        number: signal.signal(number, lambda number, frame: received.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
