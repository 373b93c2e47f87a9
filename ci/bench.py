"""`make bench`: giblet beside the bare tools on the same work, in one run, as ratios with their spread.

Absolute times depend on the machine and on what else it does; each round therefore runs both sides in turn, and the
ratio of each round is what counts. Goals: prepare <= 1.3 x the larger bare time; loop >= 0.95 x bare; data wait <= 2 %;
metrics <= 0.2 % of a step; a scrape within 50 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from giblet.training.loop import Trainer

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/demo.yaml"
FULL_SIZE = ["--set", "data.video.height=90", "--set", "data.video.width=160", "--set", "data.video.frame_skip=4"]
ENCODEC = """
import sys, torch, encodec
from giblet.data.audio import film_sound, probe
import numpy as np
from pathlib import Path
torch.manual_seed(0)
model = encodec.EncodecModel.encodec_model_24khz(pretrained=False).eval()
model.set_target_bandwidth(3.0)
for name in sys.argv[1:]:
    sound = torch.from_numpy(np.concatenate([*film_sound(probe(Path(name)))]))
    with torch.no_grad():
        for piece in sound.split(240_000):
            model.encode(piece[None, None])
"""


def main() -> int:
    """Run the benchmarks that are asked for, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each comparison (3)")
    parser.add_argument("--minutes", type=float, default=6.0, help="minutes of the film to prepare (6)")
    parser.add_argument("--only", choices=["prepare", "loop"], help="one part alone")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args()
    os.chdir(ROOT)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="giblet-bench-") as name:
        folder = Path(name)
        bids = folder / "bids"
        example(bids, options.minutes)
        if options.only != "loop":
            rows += bench_prepare(folder, bids, options)
        if options.only != "prepare":
            rows += bench_loop(folder, bids, options.rounds)
    print(json.dumps(rows, indent=2) if options.json else table(rows))
    return 0


def example(folder: Path, minutes: float) -> None:
    """A short example data set with few voxels, so that the film is most of the work."""
    giblet("example", str(folder), "--minutes", str(minutes), "--resolution-mm", "8", "--subjects", "1")


def bench_prepare(folder: Path, bids: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """`giblet prepare` beside ffmpeg decoding and scaling, and beside EnCodec alone; and peak memory by film length."""
    import imageio_ffmpeg

    films = [str(path) for path in sorted(bids.glob("stimuli/*.mp4"))]
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()

    def decode() -> float:
        scale = ["-vf", "select=not(mod(n\\,4)),scale=160:90:flags=area", "-fps_mode", "passthrough"]
        tail = ["-an", "-pix_fmt", "rgb24", "-f", "rawvideo", "-y", os.devnull]
        return sum(timed([ffmpeg, "-v", "error", "-i", film, *scale, *tail])[0] for film in films)

    def encode() -> float:
        return timed([sys.executable, "-c", ENCODEC, *films])[0]

    def prepare(source: Path = bids) -> tuple[float, float]:
        cache = folder / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        arguments = ["prepare", str(source), "--config", CONFIG, "--set", f"data.cache_dir={cache}", *FULL_SIZE]
        return timed([sys.executable, "-m", "giblet", *arguments])

    rounds = [(prepare(), decode(), encode()) for _ in range(options.rounds)]
    larger = [max(bare, codec) for _, bare, codec in rounds]
    rows = [
        row("prepare / larger of (ffmpeg, EnCodec)", [p[0] / b for (p, _, _), b in zip(rounds, larger, strict=True)],
            goal="<= 1.3", note=f"EnCodec / ffmpeg {statistics.median(c / d for _, d, c in rounds):.1f}"),
    ]  # fmt: skip
    short = folder / "short"
    example(short, options.minutes / 2)
    memory = [prepare(bids)[1] / prepare(short)[1]]
    peak = statistics.median(p[1] for p, _, _ in rounds)
    return [*rows, row("peak memory, film 2 x as long", memory, goal="flat: 1", note=f"{peak:.0f} MiB")]


STEPS = 10
"""Optimizer steps of one side of a round."""


def bench_loop(folder: Path, bids: Path, rounds: int) -> list[dict[str, Any]]:
    """Steps of giblet's loop beside a bare PyTorch loop of the same model and batches, in this process, in turn."""
    from benches.telemetry import bench_telemetry

    from giblet.config import load_config
    from giblet.data.prepare import prepare
    from giblet.telemetry import logs
    from giblet.telemetry.metrics import Metrics
    from giblet.training.heartbeat import Heartbeat
    from giblet.training.loop import Trainer
    from giblet.training.parallel import join_world
    from giblet.training.signals import StopFlag

    logs.configure(level="WARNING")
    overrides = ["training.processes=1", f"data.bids={bids}", f"data.cache_dir={folder / 'loop'}"]
    config = load_config(CONFIG, [*overrides, "training.epochs=10000", "training.global_batch_samples=2"])
    dataset = prepare(config.data)
    with StopFlag() as stop, join_world(config) as world:
        metrics = Metrics("bench")
        trainer = Trainer(config, dataset, world, metrics, stop, Heartbeat())
        bare = bare_loop(trainer)
        waits: list[float] = []
        with trainer.stream() as stream:

            def ours() -> float:
                began = time.perf_counter()
                for _ in range(STEPS):
                    trainer.step(stream)
                    waits.append(stream.wait_seconds)
                return time.perf_counter() - began

            ours(), bare()
            waits.clear()
            pairs = [(bare(), ours()) for _ in range(max(rounds, 3))]
        began = time.perf_counter()
        trainer.validation(trainer.parallel)
        validation = (time.perf_counter() - began) / max(len(trainer.validation), 1)
    step = statistics.median(time_ours for _, time_ours in pairs) / STEPS
    return [
        row("loop speed / bare PyTorch", [b / o for b, o in pairs], goal=">= 0.95", note=f"{step * 1e3:.0f} ms a step"),
        row("data wait / step", [sum(waits) / sum(o for _, o in pairs)], goal="<= 0.02"),
        row("validation of a sample / training on one", [validation / (step / 2)]),
        *(row(**measured) for measured in bench_telemetry(trainer, metrics, step)),
    ]


def bare_loop(trainer: Trainer) -> Callable[[], float]:
    """The trainer's model, losses and batches as a few lines of PyTorch have them; returns seconds of `STEPS` steps."""
    import torch

    from giblet.data.hrf import hrf_kernel
    from giblet.models import Dimensions, build_model
    from giblet.models.losses import scaled_video

    manifest = trainer.dataset.manifest
    kernel = hrf_kernel(trainer.config, manifest.tr_seconds)
    model = build_model(trainer.config, Dimensions.of(manifest.dimensions), hrf_kernel=kernel)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batches = [trainer.samples.build(trainer.order.step_indices(step)[0]) for step in range(2)]
    losses = trainer.train_step.losses

    def bare() -> float:
        began = time.perf_counter()
        for index in range(STEPS):
            batch = batches[index % len(batches)]
            outputs = model(
                scaled_video(batch.video), batch.audio, batch.text,
                trs=batch.trs, row_mask=batch.row_mask, decode_mask=batch.target_mask,
            )  # fmt: skip
            losses.total(losses.terms(outputs, batch)).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - began

    return bare


def row(name: str, ratios: Sequence[float], *, goal: str = "", note: str = "") -> dict[str, Any]:
    """One line of the table, also said at once."""
    print(f"{name}: {statistics.median(ratios):.3f} {note}", file=sys.stderr, flush=True)
    return {
        "benchmark": name, "median": statistics.median(ratios), "least": min(ratios), "most": max(ratios),
        "rounds": len(ratios), "goal": goal, "note": note,
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows for a terminal."""
    lines = [f"{'benchmark':44} {'ratio':>7} {'least':>7} {'most':>7}  {'goal':9} note"]
    lines += [
        f"{r['benchmark']:44} {r['median']:7.3f} {r['least']:7.3f} {r['most']:7.3f}  {r['goal']:9} {r['note']}"
        for r in rows
    ]
    return "\n".join(lines)


def timed(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak memory in MiB of one command, which has to succeed."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[0]} failed: {said.decode(errors='replace')[-2000:]}")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def giblet(*arguments: str) -> None:
    """One giblet command."""
    subprocess.run([sys.executable, "-m", "giblet", *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
