"""What `giblet launch` costs a healthy run: the launcher and its hang watch, and the signs of life that ranks give.

Goal: both <= 0.5 % of what the ranks compute. In processor seconds of one real run of two ranks that meets at a real
rendezvous, so that what else the machine does is no part of it. The ledger costs nothing: it is read from what starts
and commits leave, and nothing is written for it at a step.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

from benches.common import Options, Row, row
from giblet.config.schema import GibletConfig
from giblet.training.heartbeat import Heartbeat
from tests.support.nodes import Node, Rendezvous
from tests.support.prepared import make_prepared
from tests.support.training import small_config

SECONDS, BEATS = 10.0, 20_000


def rows(options: Options) -> list[Row]:
    """The launcher beside its ranks, and a rank's sign of life beside a step."""
    folder = options.folder / "launch"
    folder.mkdir()
    dataset = make_prepared(folder / "dataset").path
    rendezvous = Rendezvous(folder)
    node = Node(folder, "worker-0", _config(folder), dataset, rendezvous.endpoint, PET_NPROC_PER_NODE="2")
    try:
        node.until(lambda: node.step() >= 20)
        shares, steps = [], []
        for _ in range(max(options.rounds, 3)):
            before, first = _spent(node), node.step()
            time.sleep(SECONDS)
            launcher, ranks = (after - then for after, then in zip(_spent(node), before, strict=True))
            done = node.step() - first
            shares.append(launcher / ranks)
            steps.append(ranks / len(node.ranks()) / done)
        node.signal(signal.SIGTERM)
        node.exit_code()
    finally:
        node.end()
        rendezvous.kill()
    beats = [_beat_seconds(folder / "beat") for _ in range(3)]
    step = sorted(steps)[len(steps) // 2]
    return [
        row("launcher / its two ranks", shares, goal="<= 0.005", note="processor seconds"),
        row("sign of life / step", [seconds / step for seconds in beats], goal="<= 0.005",
            note=f"{min(beats) * 1e6:.0f} us, of a step of {step * 1e3:.1f} ms of one processor"),
    ]  # fmt: skip


def _config(folder: Path) -> GibletConfig:
    return small_config(
        run={"name": "bench"},
        model={"encoder_hidden": [512, 512], "decoder_hidden": [512, 512, 512, 512]},
        training={"epochs": 1_000_000, "sharding": "ddp", "validate_every_epochs": 1_000_000,
                  "global_batch_samples": 8, "micro_batch_samples": 1},
        checkpoint={"url": str(folder / "runs"), "save_every_epochs": 0, "save_every_steps": 100_000},
        telemetry={"metrics_port": 0},
    )  # fmt: skip


def _spent(node: Node) -> tuple[float, float]:
    """Processor seconds so far of the launcher with what forks its ranks, and of the ranks."""
    ranks = node.ranks()
    others = [node.process.pid, *(pid for pid in node.everything() if pid not in ranks)]
    return sum(map(_seconds, others)), sum(map(_seconds, ranks))


def _seconds(pid: int) -> float:
    """From the scheduler's own count of nanoseconds, of all threads."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _beat_seconds(path: Path) -> float:
    heartbeat = Heartbeat(path)
    began = time.thread_time()
    for number in range(BEATS):
        heartbeat.beat("train", number)
    return (time.thread_time() - began) / BEATS
