"""A checkpoint that verification rejected is not gone on from, is not the best, and displaces no good one."""

from __future__ import annotations

import json

import pytest
import torch

from giblet.checkpoint import CheckpointStore, list_checkpoints
from giblet.checkpoint.layout import CheckpointRef
from giblet.checkpoint.resume import best_ref, pointer_body
from giblet.config.load import load_config_data
from giblet.config.schema import GibletConfig
from giblet.evaluate.checkpoint import choose_checkpoint
from giblet.storage import MemoryStorage

RUN = "run"


def config(keep_last: int = 100, **more: int) -> GibletConfig:
    return load_config_data({"run": {"name": RUN}, "checkpoint": {"keep_last": keep_last, **more}})


def begun(storage: MemoryStorage, settings: GibletConfig) -> CheckpointStore:
    store = CheckpointStore(storage, RUN, settings.checkpoint)
    store.begin(settings)
    return store


def saved(store: CheckpointStore, *steps: int, best: int | None = None) -> list[CheckpointRef]:
    return [store.save(step, {"w": torch.zeros(1)}, wait=True, best=step == best) for step in steps]


def judge(storage: MemoryStorage, ref: CheckpointRef, verdict: str) -> None:
    storage.put(ref.report_key, json.dumps({"verdict": verdict}).encode())


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


def test_a_restart_passes_over_what_was_rejected(storage):
    first, second, third = saved(begun(storage, config()), 2, 4, 6)
    judge(storage, first, "SAFE")
    judge(storage, third, "UNSAFE")
    assert begun(storage, config()).latest() == second, "not judged yet: nothing speaks against it"
    judge(storage, second, "UNSAFE")
    start = CheckpointStore(storage, RUN).begin(config())
    assert start.resumed_from == first


def test_verified_first_takes_the_accepted_one_before_newer_ones(storage):
    first, second, third = saved(begun(storage, config()), 2, 4, 6)
    judge(storage, first, "SAFE WITH WARNINGS")
    storage.put(f"runs/{RUN}/verified.json", pointer_body(first))
    judge(storage, third, "UNSAFE")
    store = CheckpointStore(storage, RUN)
    assert store.latest(verified_first=True) == first
    assert store.latest() == second


def test_rejected_ones_are_better_than_none(storage):
    first, second = saved(begun(storage, config()), 2, 4)
    for ref in (first, second):
        judge(storage, ref, "UNSAFE")
    assert CheckpointStore(storage, RUN).latest() == second


def test_a_rejected_one_is_never_the_best(storage):
    first, second, _ = saved(begun(storage, config()), 2, 4, 6, best=4)
    assert best_ref(storage, RUN) == second
    judge(storage, second, "UNSAFE")
    assert best_ref(storage, RUN) is None
    assert choose_checkpoint(storage, RUN).step == 6
    assert first.step == 2


def test_retention_counts_good_ones_only(storage):
    store = begun(storage, config(keep_last=2))
    refs = saved(store, 1, 2)
    for step in range(3, 7):
        refs += saved(store, step)
        judge(storage, refs[-1], "UNSAFE")
    kept = [found.step for found in list_checkpoints(storage, RUN)]
    assert kept == [2, 5, 6], "a good one, the newest rejected one, and the one that was not judged when it was saved"
    refs += saved(store, 7)
    assert [found.step for found in list_checkpoints(storage, RUN)] == [2, 6, 7]


def test_nothing_else_protects_a_rejected_one(storage):
    settings = config(keep_last=1, keep_every_steps=10)
    store = begun(storage, settings)
    (ref,) = saved(store, 10, best=10)
    judge(storage, ref, "UNSAFE")
    (other,) = saved(store, 20)
    judge(storage, other, "UNSAFE")
    saved(store, 21, 22)
    assert [found.step for found in list_checkpoints(storage, RUN)] == [20, 22]


def test_verdicts_are_read_once_for_each_report(storage):
    refs = saved(begun(storage, config()), 2, 4, 6)
    judge(storage, refs[0], "SAFE")
    reads = []
    storage.before = lambda call, key: reads.append(key) if call == "get" and "/reports/" in key else None
    CheckpointStore(storage, RUN).latest()
    assert reads == [refs[0].report_key]
