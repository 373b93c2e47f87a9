"""Faults for storage: a process that dies at its n-th call, and bytes that change afterwards."""

from __future__ import annotations

from giblet.checkpoint.layout import MANIFEST
from giblet.checkpoint.opened import OpenCheckpoint
from giblet.storage import MemoryStorage, Storage
from giblet.storage.memory import Call


class DeadError(RuntimeError):
    """What a dead process would not live to see."""


class DiesAt:
    """Hooks on a `MemoryStorage`: the process behind them dies before or after its `number`-th call, from 0.

    All its later calls fail too, so that nothing it would have done in `finally` happens.
    """

    def __init__(self, store: MemoryStorage, number: int | None = None, *, after: bool = False) -> None:
        self.calls, self.dead = 0, False
        self._number, self._after = number, after
        store.before, store.after = self._before, self._behind

    def _before(self, call: Call, key: str) -> None:
        if self.dead:
            raise DeadError
        self.calls += 1
        if self.calls - 1 == self._number and not self._after:
            self.dead = True
            raise DeadError(f"before {call} {key}")

    def _behind(self, call: Call, key: str) -> None:
        if self.calls - 1 == self._number and self._after:
            self.dead = True
            raise DeadError(f"after {call} {key}")


def flip_bit(store: Storage, key: str, at: int = -1) -> None:
    """Change one bit of an object."""
    data = bytearray(store.get(key))
    data[at] ^= 1
    store.put(key, bytes(data))


def truncate(store: Storage, key: str, keep_bytes: int) -> None:
    """Cut an object off."""
    store.put(key, store.get(key)[:keep_bytes])


def faults_in(checkpoint: OpenCheckpoint) -> list[str]:
    """What verification finds wrong with a checkpoint's bytes."""
    from giblet.verify.giblet_source import open_giblet
    from giblet.verify.stream import stream

    source = open_giblet(checkpoint.url, checkpoint.storage, checkpoint.prefix + MANIFEST)
    return stream(source, magnitude_limit=1e6).faults
