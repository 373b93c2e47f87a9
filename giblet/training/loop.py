"""The training loop.

    result = train(config, dataset_path=path)

runs in one process, or in each of those that torchrun started. Restore; next batch; step; log; validate; save; stop.
Validation comes before the save, so that a checkpoint carries the early-stopping memory and the score of its own step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from giblet.checkpoint import CheckpointStore
from giblet.config.schema import GibletConfig
from giblet.data.batches import BatchBuilder
from giblet.data.hrf import hrf_kernel
from giblet.data.order import SampleOrder
from giblet.data.prepared import PreparedDataset
from giblet.errors import EXIT_CRASHED, EXIT_OK, DivergedError, GibletError, StoppedError, cause_of
from giblet.models import Dimensions, build_model, resolve_dimensions
from giblet.models.losses import Losses
from giblet.storage import open_storage
from giblet.telemetry.logs import get_logger
from giblet.telemetry.metrics import Metrics
from giblet.training.checkpointing import Store, check_same_data, load_newest, save_due, training_tensors
from giblet.training.heartbeat import Heartbeat
from giblet.training.loader import BatchStream
from giblet.training.means import start_at_means, training_means
from giblet.training.optimizer import build_optimizer, learning_rate
from giblet.training.parallel import World, join_world, parallelise
from giblet.training.reporting import Reporter, Stopwatch, serving_metrics
from giblet.training.signals import StopFlag
from giblet.training.state import Best, Curves, TrainState
from giblet.training.step import StepResult, TrainStep
from giblet.training.validate import Validation

log = get_logger(__name__)
StoreFactory = Callable[[GibletConfig, Metrics], Store]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How a run ended. `reason` is `epochs`, `max_steps` or `early stopping`."""

    step: int
    epoch: int
    reason: str
    best: Best | None
    validation: dict[str, float] | None
    history: dict[str, Curves]
    world_size: int


def train(
    config: GibletConfig,
    *,
    dataset_path: str | Path,
    make_store: StoreFactory | None = None,
    heartbeat: Heartbeat | None = None,
) -> TrainResult:
    """Train until the epochs are done, validation stops improving, or somebody asks to stop.

    The final state is committed before this returns. Raises `StoppedError` after SIGTERM or Ctrl-C, with everything
    saved; `DivergedError`; `ConfigError` and `DataError` before anything heavy; and what the checkpoint store raises.
    """
    with ExitStack() as stack:
        stop = stack.enter_context(StopFlag())
        world = stack.enter_context(join_world(config))
        metrics = stack.enter_context(serving_metrics(config, world))
        dataset = PreparedDataset.open(dataset_path)
        trainer = Trainer(config, dataset, world, metrics, stop, heartbeat or Heartbeat())
        store = (make_store or open_store)(config, metrics)
        stack.callback(store.close)
        with recorded_end(store, trainer.state_now):
            return trainer.run(store)


def open_store(config: GibletConfig, metrics: Metrics) -> Store:
    """The checkpoint store that the configuration names."""
    storage = open_storage(config.checkpoint.url, config.checkpoint)
    return CheckpointStore(storage, config.run.name, config.checkpoint, metrics)


@contextmanager
def recorded_end(store: Store, state: Callable[[], TrainState]) -> Iterator[None]:
    """Leave a record of how this start ended. What goes wrong with the record itself is only logged."""
    cause, exit_code, message = "done", EXIT_OK, ""
    try:
        yield
    except BaseException as error:
        cause = cause_of(type(error)) if isinstance(error, GibletError) else "crashed"
        exit_code, message = getattr(error, "exit_code", EXIT_CRASHED), str(error)
        raise
    finally:
        try:
            store.end(cause, exit_code, state().step, message)
        except GibletError as error:
            log.warning("how this start ended could not be recorded", error=error.message)


class Trainer:
    """A run in progress on this rank. Building it checks everything that can be checked, and fills the model."""

    def __init__(
        self,
        config: GibletConfig,
        dataset: PreparedDataset,
        world: World,
        metrics: Metrics,
        stop: StopFlag,
        heartbeat: Heartbeat,
    ) -> None:
        self.config, self.dataset, self.world, self.stop, self.heartbeat = config, dataset, world, stop, heartbeat
        manifest, settings = dataset.manifest, config.training
        kernel = hrf_kernel(config, manifest.tr_seconds)
        dimensions = resolve_dimensions(config, Dimensions.of(manifest.dimensions))

        def builder(split: Any) -> BatchBuilder:
            context = 0 if kernel is None else len(kernel) - 1
            segments = dataset.segments(split, config.data.segment_trs, context)
            return BatchBuilder(
                dataset, segments, segment_trs=config.data.segment_trs, context_trs=context,
                video_frames=dimensions.video_frames, audio_frames=dimensions.audio_frames,
            )  # fmt: skip

        self.samples = builder("train")
        self.order = SampleOrder(
            config.run.seed, len(self.samples), settings.global_batch_samples, settings.micro_batch_samples
        )
        self.total_steps = settings.epochs * self.order.steps_per_epoch
        if settings.max_steps is not None:
            self.total_steps = min(self.total_steps, settings.max_steps)
        losses = Losses(manifest.statistics, [subject.voxels for subject in manifest.subjects], config.model)
        with torch.device("meta"):
            model = build_model(config, dimensions, hrf_kernel=kernel)
        self.parallel = parallelise(model, world, config)
        self.optimizer = build_optimizer(model, settings)
        self.train_step = TrainStep(self.parallel, self.optimizer, losses, config, world, self.total_steps)
        self.validation = Validation(
            builder("validation"), losses, world, settings.micro_batch_samples, settings.precision == "bf16"
        )
        self.reporter = Reporter(config, world, self.total_steps, metrics)
        self.state = TrainState()
        self.tokens = 0
        self.saved_step: int | None = None
        self.stop_agreed = False

    def run(self, store: Store) -> TrainResult:
        """Restore; next batch; step; log; validate; save; stop."""
        self.restore(store)
        with self.reporter, self.stream() as batches:
            self.heartbeat.beat("train", self.state.step)
            while (reason := self.reason_to_stop()) is None:
                result = self.step(batches)
                improved = self.validate() if self.validation_due() else False
                if save_due(self.config.checkpoint, self.state.step, self.order.steps_per_epoch, improved=improved):
                    self.save(store)
                self.stop_agreed = result.stop_requested
            return self.finish(store, reason)

    def restore(self, store: Store) -> None:
        """Go on from the newest good checkpoint, if there is one; else start at the training set's means."""
        start = store.begin(self.config)
        newest = start.resumed_from
        if newest is not None:
            saved = load_newest(store, newest, training_tensors(self.parallel.module, self.optimizer))
            check_same_data(saved, self.dataset.manifest.content_hash)
            self.state = TrainState.from_json(saved)
            self.saved_step = self.state.step
            self.tokens = int(saved.get("totals", {}).get("tokens", 0))
        else:
            variance = self.dataset.manifest.statistics.text_variance
            start_at_means(self.parallel.module, training_means(self.samples), variance)
        self.reporter.restored(self.state, start.steps_lost, self.tokens, self.order.steps_per_epoch)
        self.reporter.started(
            self.state,
            world_size=self.world.size,
            device=self.world.device.type,
            parameters=sum(p.numel() for p in self.parallel.module.parameters()),
            samples=len(self.samples),
            steps_per_epoch=self.order.steps_per_epoch,
        )
        if not len(self.validation):
            log.warning("no validation samples: no scores, no early stopping", segment_trs=self.config.data.segment_trs)

    def stream(self) -> BatchStream:
        """The batches that are left."""
        workers = self.config.training.loader_workers
        return BatchStream(self.samples, self.order, self.world, workers, self.state.step, self.total_steps)

    def step(self, batches: BatchStream) -> StepResult:
        """One optimizer step on the next batch."""
        watch = Stopwatch()
        batch = next(batches)
        try:
            result = self.train_step(self.state.step, batch, stop_requested=self.stop.requested)
        except DivergedError as error:
            self.reporter.diverged(error)
            raise
        samples = self.config.training.global_batch_samples
        self.state.advance(samples, self.order.steps_per_epoch, result.terms)
        self.tokens += result.tokens
        self.heartbeat.beat("train", self.state.step)
        self.reporter.stepped(self.state, result, watch.lap(), batches.wait_seconds, samples)
        return result

    def validation_due(self) -> bool:
        """At the end of every n-th epoch, and after the very last step."""
        every = self.config.training.validate_every_epochs * self.order.steps_per_epoch
        return len(self.validation) > 0 and (self.state.step % every == 0 or self.state.step >= self.total_steps)

    def validate(self) -> bool:
        """Score the validation split and remember it. True if it has never been better."""
        watch = Stopwatch()
        scores = self.validation(self.parallel, lambda: self.heartbeat.beat("validate"))
        self.heartbeat.beat("train")
        improved = self.state.validated(scores, self.config.training.minimum_improvement)
        self.reporter.validated(self.state, scores, watch.lap(), improved)
        return improved

    def state_now(self) -> TrainState:
        """Where the run stands; restoring replaces it."""
        return self.state

    def save(self, store: Store, *, wait: bool = False) -> None:
        """Hand the run over to the store; marked as the best if its step's validation is."""
        self.heartbeat.beat("save")
        best = self.state.best is not None and self.state.best.step == self.state.step
        tensors = training_tensors(self.parallel.module, self.optimizer)
        store.save(self.state.step, tensors, self.checkpoint_state(), wait, best=best)
        self.saved_step = self.state.step
        self.heartbeat.beat("train")

    def checkpoint_state(self) -> dict[str, Any]:
        """The resume contract, and what a judge needs to check it against."""
        manifest, step = self.dataset.manifest, self.state.step
        return {
            **self.state.to_json(),
            "totals": {"tokens": self.tokens},
            "schedule": {
                "learning_rate": learning_rate(max(step - 1, 0), self.total_steps, self.config.training),
                "total_steps": self.total_steps,
                "steps_per_epoch": self.order.steps_per_epoch,
                "samples": self.order.samples,
                "global_batch_samples": self.order.global_batch_samples,
            },
            "dataset": {
                "content_hash": manifest.content_hash,
                "tr_seconds": manifest.tr_seconds,
                "dimensions": manifest.dimensions.model_dump(mode="json"),
                "simulated": manifest.simulated,
            },
            "world_size": self.world.size,
            "config": self.config.model_dump(mode="json"),
        }

    def reason_to_stop(self) -> str | None:
        """Why there is no next step; None while there is one. The same on every rank."""
        settings, state = self.config.training, self.state
        if self.stop_agreed:
            return "asked to stop"
        if state.step >= self.total_steps:
            return "max_steps" if self.total_steps < settings.epochs * self.order.steps_per_epoch else "epochs"
        if settings.patience_epochs and state.epochs_since_best() >= settings.patience_epochs:
            return "early stopping"
        return None

    def finish(self, store: Store, reason: str) -> TrainResult:
        """Commit what is not yet saved, and wait for it: no rank leaves before the manifest is there."""
        state = self.state
        if self.saved_step != state.step:
            self.save(store, wait=True)
        self.heartbeat.beat("save")
        store.wait()
        self.world.barrier()
        self.heartbeat.beat("end")
        self.reporter.finished(state, reason)
        if self.stop_agreed:
            raise StoppedError(
                f"stopped as asked after step {state.step} of {self.total_steps}; saved",
                remedy="start the same run again to go on from there",
            )
        return TrainResult(
            state.step, state.epoch, reason, state.best, state.validation, state.history, self.world.size
        )
