"""The ledger against a brute-force count of what every rank of every start took, and against records that lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from giblet.checkpoint import exact_json, layout
from giblet.checkpoint.layout import CheckpointRef
from giblet.checkpoint.manifest import Manifest
from giblet.data.order import SampleOrder
from giblet.errors import CheckpointError
from giblet.storage import MemoryStorage
from giblet.verify.ledger import read_ledger

ORDER = SampleOrder(seed=5, samples=23, global_batch_samples=4, micro_batch_samples=1)  # 5 steps an epoch, 3 left out
RUN = "r"


@dataclass
class Began:
    """A start: how many ranks, the checkpoint it went on from, its commits, and its own last word (None: killed)."""

    ranks: int
    origin: CheckpointRef | None
    commits: tuple[int, ...]
    end: tuple[str, int] | None = None


def ref(start: int, step: int) -> CheckpointRef:
    return CheckpointRef(step, f"{start:05d}-{step:05d}-abcd", RUN)


def state(step: int, **changes: Any) -> dict[str, Any]:
    return {
        "step": step,
        "samples_consumed": step * ORDER.global_batch_samples,
        "schedule": {"steps_per_epoch": 5, "samples": ORDER.samples, "global_batch_samples": 4},
        "config": {"run": {"seed": ORDER.seed}, "training": {"micro_batch_samples": 1}},
        "dataset": {"content_hash": "d"},
        **changes,
    }


def commit(store: MemoryStorage, at: CheckpointRef, start: int, ranks: int, **changes: Any) -> None:
    manifest = Manifest(
        run=RUN, step=at.step, attempt=at.attempt, start=start, world_size=ranks, created_by="test",
        committed_unix_seconds=1.0, objects=(), tensors={}, state=state(at.step, **changes),
    )  # fmt: skip
    store.put(at.manifest_key, manifest.dump())


def left_behind(*began: Began) -> MemoryStorage:
    """What the starts of a run leave in storage."""
    store = MemoryStorage()
    for number, one in enumerate(began, 1):
        origin = None if one.origin is None else {"step": one.origin.step, "attempt": one.origin.attempt}
        record = {"format": "giblet.start/1", "world_size": one.ranks, "resumed_from": origin}
        store.put(layout.start_key(RUN, number), exact_json.dumps(record))
        for step in one.commits:
            commit(store, ref(number, step), number, one.ranks)
        if one.end is not None:
            end = {"format": "giblet.end/1", "cause": one.end[0], "exit_code": 128, "step": one.end[1]}
            store.put(layout.end_key(RUN, number), exact_json.dumps(end))
    return store


THREE = (
    Began(4, None, (3, 6), ("crashed", 8)),
    Began(2, ref(1, 6), (9,), None),
    Began(1, ref(2, 9), (12,), ("done", 12)),
)


def used_by_ranks(*spans: tuple[int, int, int]) -> list[np.ndarray]:
    """How often each sample of each epoch was taken, by asking every rank at every step (ranks, first, last step)."""
    counts = [np.zeros(ORDER.samples, int) for _ in range(3)]
    for ranks, first, last in spans:
        for step in range(first - 1, last):
            for rank in range(ranks):
                for sample in ORDER.rank_indices(step, rank, ranks).ravel():
                    counts[step // ORDER.steps_per_epoch][sample] += 1
    return counts


def test_across_restarts_and_world_sizes_each_sample_is_used_once():
    ledger = read_ledger(left_behind(*THREE), RUN)
    assert ledger.proven
    assert (ledger.step, ledger.samples_consumed, ledger.left_out) == (12, 48, 3)
    counts = used_by_ranks((4, 1, 6), (2, 7, 9), (1, 10, 12))
    assert [epoch.used for epoch in ledger.epochs] == [int(count.sum()) for count in counts] == [20, 20, 8]
    assert all(count.max() == 1 for count in counts)
    assert [(s.number, s.first_step, s.last_step, s.used_until, s.open_end) for s in ledger.starts] == [
        (1, 1, 8, 6, False), (2, 7, 9, 9, True), (3, 10, 12, 12, False),
    ]  # fmt: skip


def test_what_was_done_in_vain_is_listed_by_name():
    (repeated,) = read_ledger(left_behind(*THREE), RUN).repeated
    assert (repeated.start, repeated.first_step, repeated.last_step, repeated.ahead) == (1, 7, 8, False)
    steps = np.concatenate([ORDER.step_indices(6).ravel(), ORDER.step_indices(7).ravel()])
    assert repeated.samples == {1: steps.tolist()}


def test_a_start_none_of_whose_steps_count_is_listed_whole():
    store = left_behind(
        Began(1, None, (3,), None), Began(1, ref(1, 3), (), ("storage_unavailable", 5)), Began(1, ref(1, 3), (6,), None)
    )
    ledger = read_ledger(store, RUN)
    assert ledger.proven
    assert [(r.start, r.first_step, r.last_step) for r in ledger.repeated] == [(2, 4, 5)]
    assert ledger.starts[1].used_until is None


def test_a_checkpoint_set_aside_and_the_steps_to_it_are_repeated():
    """The newest of start 1 proved damaged; start 2 went on from the one before and says so."""
    store = left_behind(Began(1, None, (3, 6), None), Began(1, ref(1, 3), (9,), ("done", 9)))
    store.put(ref(1, 6).quarantine_key, b"{}")
    ledger = read_ledger(store, RUN)
    assert ledger.proven
    assert [(s.first_step, s.used_until) for s in ledger.starts] == [(1, 3), (4, 9)]


def test_steps_beyond_the_newest_checkpoint_are_in_no_weights_yet():
    (ahead,) = read_ledger(left_behind(Began(1, None, (3,), ("crashed", 7))), RUN).repeated
    assert (ahead.first_step, ahead.last_step, ahead.ahead) == (4, 7, True)


def test_an_imported_beginning_is_a_beginning():
    store = left_behind(Began(1, None, (0,), ("imported", 0)), Began(1, ref(1, 0), (5,), ("done", 5)))
    assert read_ledger(store, RUN).proven


def spoil_start(store: MemoryStorage) -> None:
    store.delete(layout.start_key(RUN, 2))


def spoil_count(store: MemoryStorage) -> None:
    commit(store, ref(3, 12), 3, 1, samples_consumed=44)


def spoil_ranks(store: MemoryStorage) -> None:
    commit(store, ref(3, 12), 3, 2)


def spoil_data(store: MemoryStorage) -> None:
    commit(store, ref(1, 3), 1, 4, dataset={"content_hash": "other"})


def spoil_seed(store: MemoryStorage) -> None:
    commit(store, ref(1, 3), 1, 4, config={"run": {"seed": 6}, "training": {"micro_batch_samples": 1}})


def spoil_origin(store: MemoryStorage) -> None:
    record = {"world_size": 1, "resumed_from": {"step": 13, "attempt": ref(2, 13).attempt}}
    store.put(layout.start_key(RUN, 3), exact_json.dumps(record))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_start, "of step 9"),
        (spoil_count, "says 44 samples"),
        (spoil_ranks, "of 2 processes, start 3 of 1"),
        (spoil_data, "another dataset"),
        (spoil_seed, "another order"),
        (spoil_origin, "went on from step 13 and made a checkpoint of step 12"),
    ],
)
def test_records_that_lie_or_are_missing_prove_nothing(spoil, said):
    store = left_behind(*THREE)
    spoil(store)
    ledger = read_ledger(store, RUN)
    assert not ledger.proven
    assert any(said in fault for fault in ledger.faults), ledger.faults


def test_what_nobody_is_known_to_have_done_is_named_as_missed():
    store = left_behind(*THREE)
    spoil_start(store)
    ledger = read_ledger(store, RUN)
    counts = used_by_ranks((1, 10, 12))
    wanted = used_by_ranks((1, 1, 12))
    for epoch, count, want in zip(ledger.epochs, counts, wanted, strict=True):
        assert list(epoch.missed) == np.flatnonzero(count < want).tolist()
    assert [epoch.exact for epoch in ledger.epochs] == [False, False, True]


def test_a_run_without_checkpoint_or_of_another_writer_is_refused():
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_ledger(left_behind(Began(1, None, (), None)), RUN)
    store = MemoryStorage()
    commit(store, ref(1, 3), 1, 1, schedule={})
    with pytest.raises(CheckpointError, match="in which order"):
        read_ledger(store, RUN)
