"""`verified.json` points to the newest accepted checkpoint, whoever finishes first, and never to a rejected one."""

from __future__ import annotations

import json

import pytest
import torch

from giblet.checkpoint.resume import verified_ref
from giblet.storage import MemoryStorage
from giblet.verify import record, update_pointer, verify
from tests.support.weights import Written, small_config, trained_tensors, training_state, write_checkpoint

CONFIG = small_config()


@pytest.fixture
def storage():
    return MemoryStorage()


def checkpoint(storage, step: int, *, bad: bool = False) -> Written:
    tensors = trained_tensors(CONFIG, step)
    if bad:
        tensors["model.encoder.layer5.0.weight"][0, 0] = torch.nan
    return write_checkpoint(storage, tensors, training_state(CONFIG, step), step=step)


def judge_and_record(written: Written):
    return record(verify(written.url, storage=written.storage), written.storage)


def test_the_pointer_is_what_resuming_reads(storage):
    first = checkpoint(storage, 4)
    assert judge_and_record(first) == first.ref
    assert verified_ref(storage, "movie") == first.ref
    report = json.loads(storage.get("runs/movie/reports/step-00000004/20260101T000000-1.json"))
    assert report["verdict"] == "SAFE"


def test_it_moves_forward_only(storage):
    older, newer = checkpoint(storage, 4), checkpoint(storage, 8)
    judge_and_record(newer)
    assert judge_and_record(older) == newer.ref
    assert verified_ref(storage, "movie") == newer.ref


def test_a_rejected_checkpoint_is_reported_and_never_pointed_to(storage):
    good, bad = checkpoint(storage, 4), checkpoint(storage, 8, bad=True)
    assert judge_and_record(bad) is None
    assert verified_ref(storage, "movie") is None
    judge_and_record(good)
    assert judge_and_record(bad) == good.ref
    assert json.loads(storage.get(bad.ref.report_key))["verdict"] == "UNSAFE"


def test_a_checkpoint_that_went_bad_later_loses_the_pointer(storage):
    older, newer = checkpoint(storage, 4), checkpoint(storage, 8)
    judge_and_record(older)
    judge_and_record(newer)
    storage.delete(newer.ref.prefix + newer.object())
    assert judge_and_record(newer) == older.ref
    storage.delete(older.ref.prefix + older.object())
    assert judge_and_record(older) is None
    assert verified_ref(storage, "movie") is None


def test_what_retention_removed_is_not_pointed_to(storage):
    older, newer = checkpoint(storage, 4), checkpoint(storage, 8)
    judge_and_record(older)
    judge_and_record(newer)
    storage.delete(newer.ref.manifest_key)
    assert update_pointer(storage, "movie") == older.ref


class Racing(MemoryStorage):
    """Another verifier finishes while this one sets the pointer."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile = None

    def put(self, key, body, *, if_absent=False):
        if key.endswith("verified.json") and self.meanwhile is not None:
            other, self.meanwhile = self.meanwhile, None
            judge_and_record(other)
        return super().put(key, body, if_absent=if_absent)


@pytest.mark.parametrize("there_is_one", [True, False])
def test_two_verifiers_at_once_end_at_the_newer(there_is_one):
    storage = Racing()
    if there_is_one:
        judge_and_record(checkpoint(storage, 4))
    older, newer = checkpoint(storage, 8), checkpoint(storage, 12)
    storage.meanwhile = newer
    assert judge_and_record(older) == newer.ref
    assert verified_ref(storage, "movie") == newer.ref
