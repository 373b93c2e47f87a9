"""The ledger: which samples are in a checkpoint's weights, how often, and what work was done in vain.

    ledger = read_ledger(storage, "my-run")
    ledger.proven                       # every sample of every epoch is in the weights exactly once, as its order says

A checkpoint's weights come from a chain of starts: each went on from a checkpoint of the one before it. The chain is
read backwards from `starts/<n>.json`, which outlive the checkpoints that retention removed. The steps of each start
then give the samples of each rank, since the order of samples is a pure function (`giblet.data.order`), and these are
counted, one by one. What a start did beyond the step that the next one went on from is in no weights: repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from giblet.checkpoint import exact_json, layout
from giblet.checkpoint.layout import CheckpointRef
from giblet.checkpoint.manifest import Manifest
from giblet.checkpoint.opened import read_manifest
from giblet.checkpoint.survey import survey
from giblet.data.order import SampleOrder, epoch_order
from giblet.errors import CheckpointError
from giblet.storage import Storage

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StartEntry:
    """One start. Steps count from 1; `first_step` is the first it did, `last_step` the last it is known to have done.

    `used_until`: the last of its steps that is in the weights; None if none is. `open_end`: it left no word of its end,
    so it may have gone further than `last_step`. `cause`: its own word, None where there is none.
    """

    number: int
    world_size: int
    first_step: int
    last_step: int
    used_until: int | None
    cause: str | None
    open_end: bool


@dataclass(frozen=True, slots=True)
class Repetition:
    """Steps `[first_step, last_step]` that `start` did and that are in the weights only as another start did them.

    `samples` names them: epoch → sample indices. Steps beyond the checkpoint (`ahead`) are in no weights yet.
    """

    start: int
    first_step: int
    last_step: int
    samples: dict[int, list[int]]
    ahead: bool


@dataclass(frozen=True, slots=True)
class EpochEntry:
    """One epoch of the checkpoint's past: samples used, and those that its order wants and that differ from once."""

    epoch: int
    used: int
    missed: tuple[int, ...]
    twice: tuple[int, ...]

    @property
    def exact(self) -> bool:
        """Each sample of the order exactly once."""
        return not (self.missed or self.twice)


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a run's records say about one of its checkpoints. `faults` are contradictions: with any, nothing is proven.

    `samples` are those of the training split; `left_out` of them an epoch's order does not use, other ones each time.
    """

    run: str
    step: int
    attempt: str
    samples: int
    samples_consumed: int
    steps_per_epoch: int
    global_batch_samples: int
    left_out: int
    dataset: str | None
    starts: tuple[StartEntry, ...]
    epochs: tuple[EpochEntry, ...]
    repeated: tuple[Repetition, ...]
    faults: tuple[str, ...] = ()

    @property
    def proven(self) -> bool:
        """Every sample of every epoch so far is in the weights exactly once."""
        return not self.faults and all(epoch.exact for epoch in self.epochs)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON; of the epochs those that are not exact, and how many are."""
        plain = asdict(self)
        plain["proven"] = self.proven
        plain["epochs"] = len(self.epochs)
        plain["epochs_not_exact"] = [asdict(epoch) for epoch in self.epochs if not epoch.exact]
        return plain


@dataclass(frozen=True, slots=True)
class _Start:
    """A start as it recorded itself."""

    number: int
    world_size: int
    resumed: CheckpointRef | None
    end: dict[str, Any] | None

    @property
    def resumed_step(self) -> int:
        return self.resumed.step if self.resumed is not None else 0


@dataclass(slots=True)
class _Evidence:
    """What lies in the store."""

    run: str
    starts: dict[int, _Start]
    manifests: dict[CheckpointRef, Manifest]
    faults: list[str] = field(default_factory=list)


def read_ledger(storage: Storage, run: str, ref: CheckpointRef | None = None) -> Ledger:
    """The ledger of `ref`, or of the run's newest good checkpoint.

    Raises `CheckpointError` if the run has no checkpoint, or one that does not say in which order it was trained.
    """
    evidence = _gather(storage, run)
    if ref is None:
        ref = max(evidence.manifests, default=None)
    if ref is None or ref not in evidence.manifests:
        raise CheckpointError(f"{storage.url}: run {run} has no such checkpoint", remedy="list them: giblet runs show")
    state = evidence.manifests[ref].state
    order = _order(state, f"{storage.url}/{ref.prefix}")
    _check_manifests(evidence, order, state)
    spans = list(_chain(evidence, ref))
    epochs = tuple(_count(order, spans, ref.step))
    starts = tuple(_entry(evidence, start, spans) for start in evidence.starts.values())
    return Ledger(
        run=run,
        step=ref.step,
        attempt=ref.attempt,
        samples=order.samples,
        samples_consumed=ref.step * order.global_batch_samples,
        steps_per_epoch=order.steps_per_epoch,
        global_batch_samples=order.global_batch_samples,
        left_out=order.samples - order.steps_per_epoch * order.global_batch_samples,
        dataset=state.get("dataset", {}).get("content_hash"),
        starts=starts,
        epochs=epochs,
        repeated=tuple(_repetitions(starts, order, ref.step)),
        faults=tuple(evidence.faults),
    )


def _gather(storage: Storage, run: str) -> _Evidence:
    starts, faults = {}, []
    listed = (layout.start_number(info.key) for info in storage.list(layout.starts_prefix(run)))
    for number in sorted(number for number in listed if number is not None):
        try:
            record = exact_json.loads(storage.get(layout.start_key(run, number)))
            resumed = record["resumed_from"]
            ref = None if resumed is None else CheckpointRef(int(resumed["step"]), str(resumed["attempt"]), run)
            starts[number] = _Start(number, int(record["world_size"]), ref, _end(storage, run, number))
        except (KeyError, TypeError, ValueError) as error:
            faults.append(f"the record of start {number} cannot be read: {error!r}")
    manifests = {}
    for found in survey(storage, run):
        if found.committed and not found.quarantined:
            try:
                manifests[found.ref] = read_manifest(storage, found.ref.prefix)
            except CheckpointError as error:
                faults.append(error.message)
    return _Evidence(run, starts, manifests, faults)


def _end(storage: Storage, run: str, number: int) -> dict[str, Any] | None:
    try:
        end = exact_json.loads(storage.get(layout.end_key(run, number)))
    except (KeyError, ValueError):
        return None
    return end if isinstance(end, dict) and isinstance(end.get("step"), int) else None


def _order(state: Any, where: str) -> SampleOrder:
    try:
        schedule, config = state["schedule"], state["config"]
        order = SampleOrder(
            int(config["run"]["seed"]),
            int(schedule["samples"]),
            int(schedule["global_batch_samples"]),
            int(config["training"]["micro_batch_samples"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{where}: its state does not say in which order it was trained ({error!r})",
            remedy="it was written by another program, or by an older version: nothing can be proven of it",
        ) from None
    if order.steps_per_epoch != schedule["steps_per_epoch"]:
        raise CheckpointError(f"{where}: {order.samples} samples are not {schedule['steps_per_epoch']} steps an epoch")
    return order


def _check_manifests(evidence: _Evidence, order: SampleOrder, state: Any) -> None:
    """Every checkpoint that is left must tell the same story."""
    for ref, manifest in evidence.manifests.items():
        where = f"the checkpoint of step {ref.step}"
        said = manifest.state if isinstance(manifest.state, dict) else {}
        if said.get("samples_consumed") != ref.step * order.global_batch_samples or said.get("step") != ref.step:
            evidence.faults.append(
                f"{where} says {said.get('samples_consumed')} samples and step {said.get('step')}, and {ref.step} "
                f"steps of {order.global_batch_samples} are {ref.step * order.global_batch_samples}"
            )
        start = evidence.starts.get(manifest.start)
        if start is not None and start.world_size != manifest.world_size:
            evidence.faults.append(
                f"{where} is of {manifest.world_size} processes, start {start.number} of {start.world_size}"
            )
        for key in ("content_hash",):
            if said.get("dataset", {}).get(key) != state.get("dataset", {}).get(key):
                evidence.faults.append(f"{where} was trained on another dataset")
        try:
            if _order(said, where) != order:
                evidence.faults.append(f"{where} was trained in another order of samples")
        except CheckpointError as error:
            evidence.faults.append(error.message)


@dataclass(frozen=True, slots=True)
class _Span:
    """Steps `(after_step, until_step]`, done by one start."""

    start: _Start
    after_step: int
    until_step: int


def _chain(evidence: _Evidence, ref: CheckpointRef) -> Iterator[_Span]:
    """The spans of steps that the weights went through, the newest first. Gaps are told as faults."""
    before: int | None = None
    while ref.step > 0:
        number = start_of(ref)
        start = None if number is None else evidence.starts.get(number)
        if start is None or (before is not None and start.number >= before):
            evidence.faults.append(f"who made the checkpoint of step {ref.step} ({ref.attempt}) is not recorded")
            return
        if start.resumed_step > ref.step:
            evidence.faults.append(
                f"start {start.number} went on from step {start.resumed_step} and made a checkpoint of step {ref.step}"
            )
            return
        yield _Span(start, start.resumed_step, ref.step)
        if start.resumed is None:
            return
        before, ref = start.number, start.resumed


def start_of(ref: CheckpointRef) -> int | None:
    """The start that made an attempt; None if its name does not say."""
    text = ref.attempt.partition("-")[0]
    return int(text) if text.isdigit() else None


def _count(order: SampleOrder, spans: list[_Span], step: int) -> Iterator[EpochEntry]:
    """Count every sample that every rank of every span took, and compare with the order's own list."""
    per_epoch, batch = order.steps_per_epoch, order.global_batch_samples
    for epoch in range(-(-step // per_epoch)):
        first, stop = epoch * per_epoch, min((epoch + 1) * per_epoch, step)
        wanted = epoch_order(order.seed, epoch, order.samples)[: (stop - first) * batch]
        micro = wanted.reshape(stop - first, -1, order.micro_batch_samples)
        counts: Counts = np.zeros(order.samples, np.int64)
        for span in spans:
            steps = slice(max(span.after_step - first, 0), max(span.until_step - first, 0))
            for rank in range(span.start.world_size):
                mine = micro[steps, rank :: span.start.world_size].ravel()
                counts += np.bincount(mine, minlength=order.samples)
        expected = np.bincount(wanted, minlength=order.samples)
        yield EpochEntry(
            epoch,
            int(counts.sum()),
            tuple(np.flatnonzero(counts < expected).tolist()),
            tuple(np.flatnonzero(counts > expected).tolist()),
        )


def _entry(evidence: _Evidence, start: _Start, spans: list[_Span]) -> StartEntry:
    used = [span.until_step for span in spans if span.start.number == start.number]
    known = [start.resumed_step, *used]
    known += [ref.step for ref in evidence.manifests if start_of(ref) == start.number]
    known += [
        other.resumed.step
        for other in evidence.starts.values()
        if other.resumed is not None and start_of(other.resumed) == start.number
    ]
    if start.end is not None:
        known.append(int(start.end["step"]))
    return StartEntry(
        start.number,
        start.world_size,
        start.resumed_step + 1,
        max(known),
        max(used, default=None),
        None if start.end is None else str(start.end.get("cause")),
        start.end is None,
    )


def _repetitions(starts: tuple[StartEntry, ...], order: SampleOrder, step: int) -> Iterator[Repetition]:
    """What each start is known to have done beyond what is in the weights through it."""
    for start in starts:
        first = start.first_step if start.used_until is None else start.used_until + 1
        for low, high, ahead in (
            (first, min(start.last_step, step), False),
            (max(first, step + 1), start.last_step, True),
        ):
            if low <= high:
                yield Repetition(start.number, low, high, _named(order, low, high), ahead)


def _named(order: SampleOrder, first_step: int, last_step: int) -> dict[int, list[int]]:
    """The samples of steps `[first_step, last_step]` (from 1), by epoch."""
    found: dict[int, list[int]] = {}
    for epoch in range((first_step - 1) // order.steps_per_epoch, (last_step - 1) // order.steps_per_epoch + 1):
        begin = epoch * order.steps_per_epoch
        low, high = max(first_step - 1 - begin, 0), min(last_step - begin, order.steps_per_epoch)
        batch = order.global_batch_samples
        found[epoch] = epoch_order(order.seed, epoch, order.samples)[low * batch : high * batch].tolist()
    return found
