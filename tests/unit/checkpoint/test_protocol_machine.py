"""Any history of starts, deaths, take-overs, judgements and damage; and that a broken protocol is found out by it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from giblet.checkpoint import CheckpointStore, starts
from giblet.checkpoint import store as store_module
from giblet.storage import MemoryStorage
from tests.support.protocol_machine import ProtocolMachine

SETTINGS = settings(
    max_examples=40,
    phases=[Phase.generate],
    stateful_step_count=14,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("giblet")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(level)


def test_every_history_leaves_what_was_promised() -> None:
    run_state_machine_as_test(ProtocolMachine, settings=SETTINGS)  # type: ignore[no-untyped-call]


def unconditional_claims(patch: pytest.MonkeyPatch) -> None:
    """Two starts at one moment both believe that the number is theirs."""
    claim = starts.claim_start
    patch.setattr(starts, "claim_start", lambda *arguments, conditional: claim(*arguments, conditional=False))


def no_fence(patch: pytest.MonkeyPatch) -> None:
    """An older start goes on committing."""
    patch.setattr(starts, "check_fence", lambda *_: None)


def trusting_reader(patch: pytest.MonkeyPatch) -> None:
    """Nobody looks at the bytes that come back."""
    patch.setattr("giblet.checkpoint.reader._Wanted.check", lambda *_: None)


def manifest_before_shards(patch: pytest.MonkeyPatch) -> None:
    """What was streamed lands only after the commit."""
    upload, commit = CheckpointStore._upload, CheckpointStore._commit
    later: dict[str, bytes] = {}

    def keep(store: CheckpointStore, job: Any) -> Any:
        real, aside = store.storage, MemoryStorage()
        store.storage = aside
        results = upload(store, job)
        store.storage = real
        later.update({info.key: aside.get(info.key) for info in aside.list()})
        return results

    def commit_first(store: CheckpointStore, job: Any, results: Any) -> int:
        size = commit(store, job, results)
        while later:
            store.storage.put(*later.popitem())
        return size

    patch.setattr(store_module, "confirm_objects", lambda *_: None)
    patch.setattr(CheckpointStore, "_upload", keep)
    patch.setattr(CheckpointStore, "_commit", commit_first)


def prune_before_commit(patch: pytest.MonkeyPatch) -> None:
    """Room is made for what is not there yet."""
    commit = CheckpointStore._commit

    def prune_first(store: CheckpointStore, job: Any, results: Any) -> int:
        store._tidy(job.ref)
        return commit(store, job, results)

    patch.setattr(CheckpointStore, "_commit", prune_first)


BROKEN: list[tuple[type[RuleBasedStateMachine], Callable[[pytest.MonkeyPatch], None], str]] = [
    (ProtocolMachine, unconditional_claims, "two starts have one number"),
    (ProtocolMachine, no_fence, "took over"),
    (ProtocolMachine, trusting_reader, "other bytes than were saved"),
    (ProtocolMachine, manifest_before_shards, "a manifest without its|went back from|passes over"),
    (ProtocolMachine, prune_before_commit, "good one was deleted|failed without a fault"),
]


@pytest.mark.parametrize(("machine", "breaks", "words"), BROKEN)
def test_a_broken_protocol_is_found_out(
    machine: type[RuleBasedStateMachine],
    breaks: Callable[[pytest.MonkeyPatch], None],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    breaks(monkeypatch)
    once = settings(SETTINGS, max_examples=300, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises(AssertionError, match=words):
        run_state_machine_as_test(machine, settings=once)  # type: ignore[no-untyped-call]
