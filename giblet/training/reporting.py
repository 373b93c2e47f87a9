"""What a person and a Prometheus see of the loop: a live line on a terminal or a log line a step, and metrics."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType

import torch

import giblet
from giblet.config.schema import GibletConfig
from giblet.errors import DivergedError
from giblet.telemetry.exporter import Exporter
from giblet.telemetry.logs import get_logger
from giblet.telemetry.metrics import Metrics
from giblet.telemetry.progress import Bar, progress
from giblet.training.checkpointing import save_interval_steps
from giblet.training.parallel import World
from giblet.training.state import TrainState
from giblet.training.step import StepResult

log = get_logger(__name__)


class _NoBar:
    def advance(self, amount: float = 1.0) -> None:
        pass

    def note(self, text: str) -> None:
        pass


@contextmanager
def serving_metrics(config: GibletConfig, world: World) -> Iterator[Metrics]:
    """This process's metrics, served on rank 0 of each node unless switched off. A port in use is only a warning."""
    metrics, port = Metrics(config.run.name), config.telemetry.metrics_port
    if world.local_rank != 0 or not port:
        yield metrics
        return
    try:
        exporter = Exporter(metrics, port)
    except OSError as error:
        log.warning("metrics are not served", port=port, reason=str(error), remedy="change telemetry.metrics_port")
        yield metrics
        return
    began = time.monotonic()
    with exporter:
        try:
            yield metrics
        except DivergedError:
            # Perhaps before the first scrape, and no other start will say it again. In a pod somebody will ask.
            limit = config.telemetry.last_scrape_seconds
            left = max(limit - (time.monotonic() - began), 0.0) if "GIBLET_POD" in os.environ else 0.0
            exporter.wait_for_scrape(limit, first_seconds=left)
            raise
        exporter.wait_for_scrape(config.telemetry.last_scrape_seconds)


class Reporter:
    """Tells of steps, validations and the end. On ranks other than 0 it says nothing."""

    def __init__(self, config: GibletConfig, world: World, total_steps: int, metrics: Metrics) -> None:
        self._metrics, self._world, self._total_steps = metrics, world, total_steps
        self._every = config.telemetry.log_every_steps
        self._speaks = world.rank == 0
        self._live = self._speaks and sys.stderr.isatty()
        self._bar: Bar = _NoBar()
        self._stack = ExitStack()
        self._config = config
        metrics.set("train_world_size", world.size)
        metrics.set("train_planned_steps", total_steps)
        metrics.set("train_batch_samples", config.training.global_batch_samples)
        metrics.set("run_started_timestamp_seconds", time.time())
        metrics.set("train_step_timestamp_seconds", time.time())
        metrics.set("train_ended", 0)
        metrics.set(
            "run_info", 1, version=giblet.__version__, image=os.environ.get("GIBLET_IMAGE", ""),
            device=world.device.type, sharding=config.training.sharding if world.size > 1 else "none",
        )  # fmt: skip

    def __enter__(self) -> Reporter:
        if self._live:
            self._bar = self._stack.enter_context(progress("training", total=self._total_steps, unit="step"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def restored(self, state: TrainState, steps_lost: int, tokens: int, steps_per_epoch: int) -> None:
        """Totals go on where they were, and what there is to see is seen before the first step."""
        m, batch = self._metrics, self._config.training.global_batch_samples
        m.set("train_step", state.step)
        m.set("train_epoch", state.epoch)
        m.add("train_samples_total", state.samples_consumed + steps_lost * batch)
        m.add("train_tokens_total", tokens)
        m.set("checkpoint_interval_steps", save_interval_steps(self._config.checkpoint, steps_per_epoch))
        for cause in ("storage_unavailable", "storage_denied", "out_of_space"):
            m.add("checkpoint_failures_total", 0, cause=cause)
        if state.validation is not None:
            self._tell_scores(state, state.validation)

    def started(self, state: TrainState, **facts: object) -> None:
        """The run begins, or goes on."""
        self._bar.advance(state.step)
        if self._speaks:
            log.info("resumed" if state.step else "started", step=state.step, of=self._total_steps, **facts)

    def stepped(self, state: TrainState, result: StepResult, seconds: float, wait_seconds: float, samples: int) -> None:
        """A step is done."""
        m = self._metrics
        for term, value in result.terms.items():
            m.set("train_loss", value, term=term)
        m.set("train_step", state.step)
        m.set("train_step_timestamp_seconds", time.time())
        m.set("train_epoch", state.epoch)
        m.set("train_grad_norm", result.grad_norm)
        m.set("train_learning_rate", result.learning_rate)
        m.add("train_samples_total", samples)
        m.add("train_tokens_total", result.tokens)
        which = {"step": str(state.step)}
        m.observe("train_step_seconds", seconds, exemplar=which)
        m.observe("train_data_wait_seconds", wait_seconds, exemplar=which)
        if self._world.device.type == "cuda":
            m.set("train_gpu_memory_bytes", torch.cuda.max_memory_allocated(self._world.device))
        self._bar.advance()
        self._bar.note(f"epoch {state.epoch} loss {result.terms['loss']:.4f} {1 / max(seconds, 1e-9):.2f} steps/s")
        if self._speaks and not self._live and state.step % self._every == 0:
            log.info(
                "step", step=state.step, of=self._total_steps, epoch=state.epoch, **result.terms,
                grad_norm=result.grad_norm, learning_rate=result.learning_rate, seconds=seconds,
                wait_seconds=wait_seconds, left_seconds=round(seconds * (self._total_steps - state.step)),
            )  # fmt: skip

    def validated(self, state: TrainState, scores: dict[str, float], seconds: float, improved: bool) -> None:
        """A validation is done."""
        self._tell_scores(state, scores)
        self._metrics.set("validation_seconds", seconds)
        if self._speaks:
            log.info("validation", step=state.step, epoch=state.epoch, **scores, seconds=seconds, best=improved)

    def _tell_scores(self, state: TrainState, scores: dict[str, float]) -> None:
        for term in ("loss", "bold", "video", "audio", "text"):
            self._metrics.set("validation_loss", scores[term], term=term)
        self._metrics.set("validation_bold_correlation", scores["bold_correlation"])
        if state.best is not None:
            self._metrics.set("validation_best_score", state.best.score)

    def diverged(self, error: DivergedError) -> None:
        """The last step's loss or gradient was not finite; the run ends here."""
        self._metrics.set("train_loss", error.loss, term="loss")
        self._metrics.set("train_grad_norm", error.grad_norm)
        self._metrics.set("train_ended", 1)

    def finished(self, state: TrainState, reason: str) -> None:
        """The loop is over; `asked to stop` is no end, for the run is to go on."""
        if reason != "asked to stop":
            self._metrics.set("train_ended", 1)
        if self._speaks:
            best = {} if state.best is None else {"best_step": state.best.step, "best_score": state.best.score}
            log.info("finished", step=state.step, epoch=state.epoch, reason=reason, **best)


class Stopwatch:
    """Seconds since it was made or last read."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        seconds, self._start = now - self._start, now
        return seconds
