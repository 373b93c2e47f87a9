"""A server that honours conditional puts, ignores them, does not know them, or always says that the place is taken."""

from __future__ import annotations

import pytest

from giblet.checkpoint import layout
from giblet.checkpoint.records import put_first
from giblet.checkpoint.starts import claim_run, claim_start, probe_conditional_puts, record_end
from giblet.config import GibletConfig
from giblet.storage import ConditionRefusedError, MemoryStorage, PreconditionFailedError


class Refusing(MemoryStorage):
    """Any conditional put raises `error`."""

    error: type[Exception] = ConditionRefusedError

    def put(self, key, body, *, if_absent=False):
        if if_absent:
            raise self.error(key)
        return super().put(key, body)


class Taken(Refusing):
    error = PreconditionFailedError


SERVERS = {
    "honours": (lambda: MemoryStorage(), True), "ignores": (lambda: MemoryStorage(conditional_puts=False), False),
    "refuses": (Refusing, False), "taken": (Taken, False),
}  # fmt: skip


@pytest.mark.parametrize("kind", SERVERS)
def test_the_probe_finds_out_and_leaves_nothing(kind):
    make, honours = SERVERS[kind]
    storage = make()
    assert probe_conditional_puts(storage, "r") is honours
    assert storage.objects == {}


@pytest.mark.parametrize("kind", SERVERS)
def test_a_run_is_claimed_and_its_end_recorded_on_each_of_them(kind):
    make, honours = SERVERS[kind]
    storage = make()
    claim_run(storage, "r", GibletConfig(), conditional=honours)
    assert [claim_start(storage, "r", {"token": t}, conditional=honours) for t in "ab"] == [1, 2]
    for cause in ("killed", "crashed"):
        record_end(storage, "r", 1, cause=cause, exit_code=128, step=7)
    assert b'"killed"' in storage.get(layout.end_key("r", 1)), "the first to say so is right"


@pytest.mark.parametrize("kind", SERVERS)
def test_of_two_records_the_first_stays(kind):
    storage = SERVERS[kind][0]()
    assert put_first(storage, "k", b"1")
    assert not put_first(storage, "k", b"2")
    assert storage.get("k") == b"1"
