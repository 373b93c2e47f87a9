"""The restart budget against the records that real starts leave, in the in-memory store."""

import pytest

from giblet.checkpoint import starts
from giblet.checkpoint.layout import CheckpointRef
from giblet.errors import RestartBudgetError, StorageUnavailableError
from giblet.launch.budget import RestartBudget
from giblet.storage import MemoryStorage


class Run:
    def __init__(self):
        self.storage = MemoryStorage()

    def start(self, resumed: CheckpointRef | None, cause: str | None):
        record = {"resumed_from": None}
        number = starts.claim_start(self.storage, "r", record, conditional=True)
        starts.record_resume(self.storage, "r", number, record, resumed)
        if cause is not None:
            starts.record_end(self.storage, "r", number, cause=cause, exit_code=128, step=0, message="it broke")

    def commit(self, step):
        ref = CheckpointRef(step, "00001-00001-a", "r")
        self.storage.put(ref.manifest_key, b"{}")
        return ref

    def left(self, allowed=2):
        return RestartBudget(self.storage, "r", allowed, patience_seconds=0.0).check()


def test_failures_without_a_new_step_use_it_up():
    run = Run()
    assert run.left() == 2
    for left in (1, 0):
        run.start(None, "crashed")
        assert run.left() == left
    run.start(None, "hung")
    with pytest.raises(RestartBudgetError, match="3 starts failed since step 0") as raised:
        run.left()
    assert "start 3: hung: it broke" in raised.value.message
    assert run.left(allowed=3) == 0  # allowing more goes on


def test_a_newly_committed_step_refills_it():
    run = Run()
    run.start(None, "crashed")
    run.start(None, "crashed")
    ref = run.commit(10)
    assert run.left() == 2
    run.start(ref, "crashed")
    assert run.left() == 1


def test_going_on_from_the_same_step_again_is_no_progress():
    run = Run()
    ref = run.commit(10)
    for _ in range(3):
        run.start(ref, "killed")
    with pytest.raises(RestartBudgetError, match="since step 10"):
        run.left()


def test_stopped_and_rescaled_starts_are_no_failures_but_one_without_a_word_is():
    run = Run()
    for cause in ("stopped", "rescaled", "done"):
        run.start(None, cause)
    assert run.left() == 2
    run.start(None, None)
    assert run.left() == 1


def test_ranks_that_fail_before_they_claim_a_start_count_too():
    run = Run()
    budget = RestartBudget(run.storage, "r", 1, patience_seconds=0.0)
    budget.failed_unclaimed("crashed: cannot import")
    assert budget.check() == 0
    budget.failed_unclaimed("crashed: cannot import")
    with pytest.raises(RestartBudgetError, match="cannot import"):
        budget.check()
    budget.progressed()
    assert budget.check() == 1


class Away(MemoryStorage):
    def __init__(self, times):
        super().__init__()
        self.times = times

    def list(self, prefix=""):
        self.times -= 1
        if self.times >= 0:
            raise StorageUnavailableError("away")
        return super().list(prefix)


def test_storage_that_comes_back_is_waited_for_and_one_that_does_not_is_told(monkeypatch):
    monkeypatch.setattr("giblet.launch.budget.PAUSES_SECONDS", (0.0,))
    assert RestartBudget(Away(3), "r", 2, patience_seconds=60.0).check() == 2
    with pytest.raises(StorageUnavailableError):
        RestartBudget(Away(10**9), "r", 2, patience_seconds=0.2).check()
    with pytest.raises(StorageUnavailableError):
        RestartBudget(Away(10**9), "r", 2, patience_seconds=1e9).check(lambda: True)
