"""Steps of giblet's loop beside a bare PyTorch loop of the same model and batches, in one process, in turn.

Goals: loop >= 0.95 x bare; data wait <= 2 % of a step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from benches.common import Options, Row, row
from benches.trainer import demo_trainer
from giblet.data.hrf import hrf_kernel
from giblet.models import Dimensions, build_model
from giblet.models.losses import scaled_video
from giblet.telemetry.metrics import Metrics
from giblet.training.loop import Trainer

STEPS = 10
"""Optimizer steps of one side of a round."""


def rows(options: Options) -> list[Row]:
    """Rounds of bare and ours in turn, then validation."""
    with demo_trainer(options, Metrics("bench")) as trainer:
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
            pairs = [(bare(), ours()) for _ in range(max(options.rounds, 3))]
        began = time.perf_counter()
        trainer.validation(trainer.parallel)
        validation = (time.perf_counter() - began) / max(len(trainer.validation), 1)
    step = statistics.median(time_ours for _, time_ours in pairs) / STEPS
    return [
        row("loop speed / bare PyTorch", [b / o for b, o in pairs], goal=">= 0.95", note=f"{step * 1e3:.0f} ms a step"),
        row("data wait / step", [sum(waits) / sum(o for _, o in pairs)], goal="<= 0.02"),
        row("validation of a sample / training on one", [validation / (step / 2)]),
    ]


def bare_loop(trainer: Trainer) -> Callable[[], float]:
    """The trainer's model, losses and batches as a few lines of PyTorch have them; returns seconds of `STEPS` steps."""
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
