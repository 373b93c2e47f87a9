"""`CheckpointStore`: what training and verification see of checkpoints.

    store = CheckpointStore(storage, run, config.checkpoint)
    start = store.begin(config)
    if start.resumed_from: state = store.load(start.resumed_from, tensors)
    store.save(step, tensors, state)        # returns when the copy is made
    store.wait()                            # the last save is committed, or this raises
    store.close()

All ranks call the same methods in the same order; every failure on one is raised, or reported, on all.
"""

from __future__ import annotations

import dataclasses
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.storage import WriteResult

from giblet.checkpoint import exact_json, layout, resume, starts
from giblet.checkpoint.dtypes import dtype_name
from giblet.checkpoint.history import read_history, tell_budget, tell_commit, tell_history
from giblet.checkpoint.layout import CheckpointRef
from giblet.checkpoint.manifest import Manifest
from giblet.checkpoint.opened import manifest_body, manifest_url
from giblet.checkpoint.planning import Planned, SavePlans, without_planner
from giblet.checkpoint.ranks import PeerFailedError, Ranks
from giblet.checkpoint.reader import GibletStorageReader, dcp_metadata
from giblet.checkpoint.retention import prune
from giblet.checkpoint.shard import Layout, ShardStream
from giblet.checkpoint.staging import StagingBuffer
from giblet.checkpoint.starts import Start
from giblet.checkpoint.survey import survey
from giblet.checkpoint.writer import WrittenChunk, build_manifest, confirm_objects, put_manifest
from giblet.config.schema import CheckpointConfig, GibletConfig
from giblet.errors import CheckpointError, GibletError, RunConflictError, StorageUnavailableError, cause_of
from giblet.storage import Storage, Watchable
from giblet.telemetry.logs import get_logger
from giblet.telemetry.metrics import Metrics

RETRY_PAUSES_SECONDS = (2.0, 10.0, 30.0)
"""Pauses before a shard or the commit is tried again, on top of the storage client's own tries of each request."""
log = get_logger(__name__)
Result = TypeVar("Result")


@dataclass(slots=True)
class _Save:
    """One save on its way."""

    ref: CheckpointRef
    planned: Planned
    shape: Layout
    state: Any
    best: bool
    began: float


class CheckpointStore:
    """The checkpoints of one run. Made by all ranks at once; one save is in flight at a time."""

    def __init__(
        self, storage: Storage, run: str, config: CheckpointConfig | None = None, metrics: Metrics | None = None
    ) -> None:
        self.storage, self.run = storage, run
        self.last_committed: CheckpointRef | None = None
        self._config = config if config is not None else CheckpointConfig()
        self._metrics = metrics if metrics is not None else Metrics(run)
        self._ranks = Ranks()
        self._plans, self._buffer = SavePlans(), StagingBuffer()
        self._start: Start | None = None
        self._record: dict[str, Any] = {}
        self._thread: threading.Thread | None = None
        self._failure: GibletError | None = None
        self._best: CheckpointRef | None = None
        self._saves = 0
        if isinstance(storage, Watchable):
            storage.watch(lambda operation, outcome: self._metrics.add(
                "storage_requests_total", operation=operation, outcome=outcome
            ))  # fmt: skip

    def begin(self, config: GibletConfig) -> Start:
        """Claim the run: its `run.json`, the next start number; find the checkpoint to go on from.

        Raises `RunConflictError` if the run began with a configuration that differs in what may not change, and the
        storage's own errors, so that a wrong secret shows before the first step.
        """
        self._config = config.checkpoint
        start, best = self._ranks.on_first(lambda: self._begin(config))
        self._start, self._best = start, best
        self.last_committed = start.resumed_from
        return start

    def save(
        self,
        step: int,
        tensors: Mapping[str, torch.Tensor],
        state: Any = None,
        wait: bool = False,
        *,
        best: bool = False,
    ) -> CheckpointRef:
        """Save `tensors` (flat names → Tensor or DTensor) and `state` (JSON; the first rank's is written).

        Returns once the tensors are copied, after the save before it has ended; `wait`, or `asynchronous: false`,
        waits for the commit too. A save that fails is logged and counted and does not raise, but with `wait`. `best`
        moves the run's `best.json` to this checkpoint. Raises `CheckpointError` for what cannot be saved at all, and
        `RunConflictError` once a newer start owns the run.
        """
        if self._start is None:
            raise CheckpointError("save() before begin()", remedy="call begin(config) first")
        self._finish()
        if isinstance(self._failure, RunConflictError):
            raise self._failure
        began = time.monotonic()
        kept_state = self._ranks.on_first(lambda: exact_copy(step, state))
        attempt = self._ranks.broadcast(self._new_attempt())
        ref = CheckpointRef(step, attempt, self.run)
        planned = self._plans.make(tensors, self._ranks)
        shape = self._ranks.on_all(lambda: self._buffer.fill(planned))
        job = _Save(ref, without_planner(planned), shape, kept_state, best, began)
        self._failure = None
        self._thread = threading.Thread(target=self._write, args=(job,), name="giblet-save", daemon=True)
        self._thread.start()
        self._metrics.observe("checkpoint_stall_seconds", time.monotonic() - began, exemplar={"step": str(step)})
        if wait:
            self.wait()
        elif not self._config.asynchronous:
            self._finish()
        return ref

    def wait(self) -> None:
        """Returns when the last save is committed. Raises its error if it was not."""
        self._finish()
        if self._failure is not None:
            raise self._failure

    @property
    def saving(self) -> bool:
        """Is a save on its way (the hang watch allows more time then)."""
        return self._thread is not None and self._thread.is_alive()

    def latest(self, verified_first: bool = False) -> CheckpointRef | None:
        """The newest commit whose objects are all there with the right sizes; bad ones are quarantined on the way."""
        self._finish()

        def find() -> CheckpointRef | None:
            found = next(resume.candidates(self.storage, self.run, verified_first=verified_first), None)
            return None if found is None else found[0].ref

        return self._ranks.on_first(find)

    def load(self, ref: CheckpointRef, tensors: Mapping[str, torch.Tensor]) -> Any:
        """Fill `tensors` in place with what `ref` holds under their names, checking every byte; returns the state.

        Each rank reads what it needs, whatever the world size of the save. A checkpoint that proves damaged is
        quarantined. Raises `CheckpointError` on all ranks if it is, or if names, types or shapes differ.
        """
        self._finish()
        body = self._ranks.on_first(lambda: manifest_body(self.storage, ref.prefix))
        manifest = self._ranks.on_all(lambda: Manifest.parse(body, manifest_url(self.storage, ref.prefix)))
        self._ranks.on_all(lambda: self._check_names(manifest, tensors))
        try:
            self._ranks.on_all(lambda: self._read(ref, manifest, tensors))
        except CheckpointError as error:
            reason = error.message
            self._ranks.on_first(lambda: resume.quarantine(self.storage, ref, reason))
            raise
        if self._start is not None and not self._saves and ref != self._start.resumed_from:  # that one proved damaged
            self._start = dataclasses.replace(self._start, resumed_from=ref)
            number = self._start.number
            self._ranks.on_first(lambda: starts.record_resume(self.storage, self.run, number, self._record, ref))
        return manifest.state

    def end(self, cause: str, exit_code: int, step: int, message: str = "") -> None:
        """Record how this start ended (`starts/<n>.end.json`); the first record stays. No collective."""
        if self._start is not None and self._ranks.is_first:
            starts.record_end(
                self.storage, self.run, self._start.number,
                cause=cause, exit_code=exit_code, step=step, message=message,
            )  # fmt: skip

    def close(self) -> None:
        """Waits for a save in flight and gives everything back; its failure was logged. Safe to repeat."""
        self._finish()
        self._ranks.close()
        self._buffer = StagingBuffer()

    def _begin(self, config: GibletConfig) -> tuple[Start, CheckpointRef | None]:
        conditional = starts.probe_conditional_puts(self.storage, self.run)
        starts.claim_run(self.storage, self.run, config, conditional=conditional)
        record = starts.start_record(config, self._ranks.world_size)
        number = starts.claim_start(self.storage, self.run, record, conditional=conditional)
        found = next(resume.candidates(self.storage, self.run), None)
        ref = None if found is None else found[0].ref
        if ref is None and any(entry.quarantined for entry in survey(self.storage, self.run)):
            log.error("every checkpoint of this run is quarantined; it begins anew", start=number)
        self._record = record
        starts.record_resume(self.storage, self.run, number, record, ref)
        history = read_history(self.storage, self.run)
        tell_history(self._metrics, history)
        tell_budget(self._metrics, refilled=False)
        tell_commit(self._metrics, self.storage, ref)
        log.info("start", start=number, resumed_step=ref.step if ref else 0, storage=self.storage.url)
        start = Start(number, self._ranks.world_size, ref, conditional, history.steps_lost)
        return start, resume.best_ref(self.storage, self.run)

    def _new_attempt(self) -> str:
        """Sorts in the order of starts and of saves within one, whatever the clock says."""
        assert self._start is not None
        self._saves += 1
        return f"{self._start.number:05d}-{self._saves:05d}-{uuid.uuid4().hex[:8]}"

    def _finish(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, job: _Save) -> None:
        """The save's thread: upload, tell the first rank, commit, tell everyone."""
        try:
            results = self._ranks.to_first(lambda: self._upload(job))
            size = self._ranks.on_first(lambda: self._commit(job, results))
        except GibletError as error:
            self._report(job, error)
            return
        except Exception as error:  # a peer died in the middle of a collective
            self._report(job, PeerFailedError(f"the save of step {job.ref.step} broke off: {error}"))
            return
        seconds = time.monotonic() - job.began
        self.last_committed = job.ref
        self._metrics.set("checkpoint_committed_step", job.ref.step)
        tell_budget(self._metrics, refilled=True)
        self._metrics.set("checkpoint_committed_timestamp_seconds", time.time())
        self._metrics.observe("checkpoint_save_seconds", seconds, exemplar={"step": str(job.ref.step)})
        self._metrics.add("checkpoint_bytes_total", size)
        if self._ranks.is_first:
            log.info("checkpoint committed", step=job.ref.step, bytes=size, seconds=seconds, best=job.best)
            self._tidy(job.ref)

    def _report(self, job: _Save, error: GibletError) -> None:
        self._failure = error
        self._metrics.add("checkpoint_failures_total", cause=cause_of(type(error)))
        log.error("checkpoint failed; training goes on", step=job.ref.step, error=error.message)

    def _upload(self, job: _Save) -> list[WriteResult]:
        if not job.shape.entries:
            return []
        key = job.planned.key

        def put() -> ShardStream:
            stream = ShardStream(key, job.shape, self._buffer.bytes_of)
            self.storage.put(job.ref.prefix + key, stream)  # type: ignore[arg-type]
            return stream

        stream = patiently("upload", put, key=key)
        whole = stream.object
        return [
            WriteResult(entry.index, chunk.size_bytes, WrittenChunk(whole, chunk))
            for entry, chunk in zip(job.shape.entries, stream.chunks, strict=True)
        ]

    def _commit(self, job: _Save, results: list[list[WriteResult]] | None) -> int:
        assert self._start is not None
        assert results is not None
        assert job.planned.metadata is not None
        manifest = build_manifest(
            job.planned.metadata, results, run=self.run, step=job.ref.step, attempt=job.ref.attempt,
            start=self._start.number, world_size=self._ranks.world_size, state=job.state,
        )  # fmt: skip
        number, conditional = self._start.number, self._start.conditional_puts

        def commit() -> None:
            confirm_objects(self.storage, job.ref.prefix, manifest.objects)
            starts.check_fence(self.storage, self.run, number)
            put_manifest(self.storage, job.ref.prefix, manifest, conditional=conditional)
            if job.best:
                self.storage.put(layout.best_key(self.run), resume.pointer_body(job.ref))
                self._best = job.ref

        patiently("commit", commit, step=job.ref.step)
        return manifest.size_bytes

    def _tidy(self, newest: CheckpointRef) -> None:
        """Retention, after the commit. Its failure costs space, never a checkpoint."""
        assert self._start is not None
        try:
            prune(self.storage, self.run, self._config, newest=newest, start=self._start, best=self._best)
        except Exception as error:
            log.warning("old checkpoints could not be removed", error=f"{type(error).__name__}: {error}")

    def _check_names(self, manifest: Manifest, tensors: Mapping[str, torch.Tensor]) -> None:
        told = [f"it has no {name}" for name in sorted(tensors.keys() - manifest.tensors.keys())]
        for name, tensor in tensors.items():
            if (there := manifest.tensors.get(name)) is None:
                continue
            here = (dtype_name(tensor.dtype, name), tuple(tensor.shape))
            if here != (there.dtype, there.shape):
                told.append(f"{name} is {here[0]} {list(here[1])} here and {there.dtype} {list(there.shape)} there")
        if told:
            raise CheckpointError(
                f"{self.storage.url}: the checkpoint of step {manifest.step} does not fit: "
                f"{'; '.join(told[:5])}{f' and {len(told) - 5} more' if len(told) > 5 else ''}",
                remedy="use the configuration the run began with (run.json)",
            )

    def _read(self, ref: CheckpointRef, manifest: Manifest, tensors: Mapping[str, torch.Tensor]) -> None:
        reader = GibletStorageReader(self.storage, prefix=ref.prefix, manifest=manifest)
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        with torch.no_grad():
            planner.set_up_planner(dict(tensors), dcp_metadata(manifest), self._ranks.is_first)
            reader.read_data(planner.create_local_plan(), planner)


def patiently(what: str, work: Callable[[], Result], **told: Any) -> Result:
    """`work()`, again after each pause while the storage is not available; then its `StorageUnavailableError`."""
    for pause in RETRY_PAUSES_SECONDS:
        try:
            return work()
        except StorageUnavailableError as error:
            log.warning(f"{what} failed, trying again", error=error.message, pause_seconds=pause, **told)
            time.sleep(pause)
    return work()


def exact_copy(step: int, state: Any) -> Any:
    """`state` as it is now, through its JSON: training goes on changing it. Raises `CheckpointError` if it has none."""
    try:
        return exact_json.loads(exact_json.dumps(state))
    except TypeError as error:
        raise CheckpointError(
            f"the state of step {step} cannot be saved: {error}", remedy="tensors belong into tensors"
        ) from None
