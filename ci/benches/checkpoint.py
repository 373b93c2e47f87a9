"""What saving and loading a checkpoint costs, beside the bare requests and beside other ways to store the same bytes.

One S3 server, the same tensors, each round does everything in turn; wall seconds and this process's processor seconds.
Bare is boto3 with its default settings, `put_object` and `get_object` of the same bytes in bodies of 64 MB.
Goals: stall <= 1.2 x a copy and <= 0.1 x the fastest synchronous peer; save and load <= 1.15 x bare in wall time and
<= 1.5 x in processor time; memory: one staged copy and a bounded buffer, flat over 100 saves.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benches.common import Options, Row, row
from benches.peers import Peers, Tensors, make_tensors
from giblet.checkpoint import CheckpointRef, CheckpointStore
from giblet.config.load import load_config_data
from giblet.storage.embedded import EmbeddedServer, embedded_s3
from giblet.telemetry import logs

TENSORS = 16
BODY_BYTES = 64_000_000
SMALL_SAVES = 100
BUCKET = "bench"
CONFIG = load_config_data({"checkpoint": {"keep_last": 1}})
Seconds = tuple[float, float]


@dataclass(slots=True)
class Measured:
    """Seconds of each round."""

    bare_put: list[Seconds] = field(default_factory=list)
    bare_get: list[Seconds] = field(default_factory=list)
    save: list[Seconds] = field(default_factory=list)
    load: list[Seconds] = field(default_factory=list)
    copy: list[float] = field(default_factory=list)
    stall: list[float] = field(default_factory=list)
    peer_save: dict[str, list[Seconds]] = field(default_factory=dict)
    peer_load: dict[str, list[Seconds]] = field(default_factory=dict)


def rows(options: Options) -> list[Row]:
    """Everything in turn, then the memory of saves alone."""
    logs.configure(level="ERROR")
    tensors = make_tensors(TENSORS, options.megabytes)
    with embedded_s3(options.folder / "s3", bucket=BUCKET) as server:
        with Peers(server.environment(), BUCKET, TENSORS, options.megabytes) as peers:
            measured = _rounds(server, peers, tensors, options.rounds)
            versions = peers.names
        found = itertools.chain(_rows(measured, versions, options.megabytes), _memory(server, tensors))
        return [row(**one) for one in found]


def _rounds(server: EmbeddedServer, peers: Peers, tensors: Tensors, rounds: int) -> Measured:
    measured = Measured(peer_save={name: [] for name in peers.names}, peer_load={name: [] for name in peers.names})
    store = CheckpointStore(server.storage(BUCKET), "bench", CONFIG.checkpoint)
    store.begin(CONFIG)
    bare = _Bare(server, tensors)
    target, aside = (({name: torch.zeros_like(t) for name, t in tensors.items()}) for _ in range(2))
    store.save(0, tensors, wait=True)  # the staging buffer's pages are new the first time
    for number in range(1, rounds + 1):
        measured.bare_put.append(_timed(bare.put))
        measured.copy.append(_timed(lambda: _copy(tensors, aside))[0])
        measured.stall.append(0.0)
        ref: list[CheckpointRef] = []

        def save() -> None:
            began = time.perf_counter()
            ref.append(store.save(number, tensors))  # noqa: B023
            measured.stall[-1] = time.perf_counter() - began
            store.wait()

        measured.save.append(_timed(save))
        measured.bare_get.append(_timed(bare.get))
        measured.load.append(_timed(lambda: store.load(ref[0], target)))  # noqa: B023
        assert all(torch.equal(target[name], tensors[name]) for name in tensors)
        for peer in peers.names:
            measured.peer_save[peer].append(peers.time("save", peer, f"peer-{number}"))
            measured.peer_load[peer].append(peers.time("load", peer, f"peer-{number}"))
    store.close()
    return measured


class _Bare:
    """boto3 as it comes, one request after the other."""

    def __init__(self, server: EmbeddedServer, tensors: Tensors) -> None:
        import boto3

        keys: dict[str, Any] = dict(server.credentials())
        self._client = boto3.client("s3", endpoint_url=server.endpoint_url, region_name="us-east-1", **keys)
        whole = torch.cat([tensor.view(torch.uint8) for tensor in tensors.values()]).numpy().data
        self._bodies = [bytes(whole[at : at + BODY_BYTES]) for at in range(0, len(whole), BODY_BYTES)]

    def put(self) -> None:
        """The bodies are in memory already."""
        for number, body in enumerate(self._bodies):
            self._client.put_object(Bucket=BUCKET, Key=f"bare-{number}", Body=body)

    def get(self) -> None:
        """Each body into fresh memory, and no further."""
        for number, body in enumerate(self._bodies):
            assert len(self._client.get_object(Bucket=BUCKET, Key=f"bare-{number}")["Body"].read()) == len(body)


def _copy(tensors: Tensors, aside: Tensors) -> None:
    for name, tensor in tensors.items():
        aside[name].copy_(tensor)


def _timed(work: Callable[[], object]) -> Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def _rows(measured: Measured, versions: dict[str, str], megabytes: int) -> Iterator[dict[str, Any]]:
    gigabytes = megabytes / 1000

    def beside(name: str, ours: list[Seconds], others: list[Seconds], goals: tuple[str, str], note: str = "") -> Any:
        for index, (kind, goal) in enumerate(zip(("wall", "processor"), goals, strict=True)):
            least = min(seconds[index] for seconds in ours) / gigabytes
            yield {
                "name": f"{name}, {kind}", "goal": goal, "note": note or f"least {least:.2f} s/GB",
                "ratios": [a[index] / b[index] for a, b in zip(ours, others, strict=True)],
            }  # fmt: skip

    yield {
        "name": "stall of a save / copy", "ratios": _ratios(measured.stall, measured.copy), "goal": "<= 1.2",
        "note": f"least {min(measured.stall) / gigabytes * 1e3:.0f} ms/GB",
    }  # fmt: skip
    yield from beside("save to commit / bare put", measured.save, measured.bare_put, ("<= 1.15", "<= 1.5"))
    yield from beside("load / bare get", measured.load, measured.bare_get, ("<= 1.15", "<= 1.5"))
    walls = [[wall for wall, _ in saves] for saves in measured.peer_save.values()]
    yield {
        "name": "stall / fastest synchronous peer's save", "goal": "<= 0.1", "note": "",
        "ratios": _ratios(measured.stall, [min(of_round) for of_round in zip(*walls, strict=True)]),
    }  # fmt: skip
    for peer, version in versions.items():
        note = f"version {version}"
        yield from beside(f"save / {peer}", measured.save, measured.peer_save[peer], ("<= 1", "<= 1"), note)
        yield from beside(f"load / {peer}", measured.load, measured.peer_load[peer], ("<= 1", "<= 1"), note)


def _ratios(ours: list[float], others: list[float]) -> list[float]:
    return [a / b for a, b in zip(ours, others, strict=True)]


def _memory(server: EmbeddedServer, tensors: Tensors) -> Iterator[dict[str, Any]]:
    """Resident memory over what was there before: of one save, and over many small ones."""
    size = sum(tensor.nbytes for tensor in tensors.values())
    store = CheckpointStore(server.storage(BUCKET), "memory", CONFIG.checkpoint)
    store.begin(CONFIG)
    with _Peak() as peak:
        store.save(1, tensors, wait=True)
        yield {
            "name": "memory of a save / its bytes", "ratios": [peak.bytes / size], "goal": "1 + buffer",
            "note": f"{(peak.bytes - size) / 2**20:.0f} MiB beside the staged copy",
        }  # fmt: skip
    store.close()
    few = dict(list(tensors.items())[:1])
    store.begin(CONFIG)
    store.save(2, few, wait=True)
    peaks = []
    for step in range(3, 3 + SMALL_SAVES):
        with _Peak(absolute=True) as peak:
            store.save(step, few, wait=True)
        peaks.append(peak.bytes)
    store.close()
    late, early = max(peaks[SMALL_SAVES // 2 :]), max(peaks[: SMALL_SAVES // 2])
    yield {
        "name": f"memory, saves 51-{SMALL_SAVES} / saves 1-50", "ratios": [late / early], "goal": "flat: 1",
        "note": f"{(late - early) / 2**20:+.1f} MiB",
    }  # fmt: skip


class _Peak:
    """The most resident memory while the `with` lasts, above what there was (or altogether), looked at every 2 ms."""

    def __init__(self, *, absolute: bool = False) -> None:
        self._base = 0 if absolute else _resident_bytes()
        self.bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.002):
            self.bytes = max(self.bytes, _resident_bytes() - self._base)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
