"""Faults for storage: a process that dies at its n-th call, and bytes that change afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from giblet.checkpoint.layout import MANIFEST
from giblet.checkpoint.opened import OpenCheckpoint
from giblet.storage import MemoryStorage, ObjectInfo, Storage
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


class Hooked:
    """One process's view of a store: something happens before or after its `number`-th call, from 0.

    `die()` as the event kills the process: all its later calls fail too.
    """

    def __init__(self, inner: Storage) -> None:
        self.inner, self.url = inner, inner.url
        self.calls, self.dead, self.happened = 0, False, False
        self._number: int | None = None
        self._after, self._event = False, self.die

    def at(self, number: int, *, after: bool, event: Callable[[], None]) -> None:
        """Arms an event, counting from the next call on."""
        self.calls, self.happened = 0, False
        self._number, self._after, self._event = number, after, event

    def disarm(self) -> None:
        """Nothing happens any more."""
        self._number = None

    def die(self) -> None:
        """The process is gone, at once."""
        self.dead = True
        raise DeadError

    def put(self, key: str, body: Any, *, if_absent: bool = False) -> int:
        return int(self._call(lambda: self.inner.put(key, body, if_absent=if_absent)))

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        return bytes(self._call(lambda: self.inner.get(key, start, stop)))

    def head(self, key: str) -> ObjectInfo | None:
        found = self._call(lambda: self.inner.head(key))
        assert found is None or isinstance(found, ObjectInfo)
        return found

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter(self._call(lambda: list(self.inner.list(prefix))))

    def delete(self, key: str) -> None:
        self._call(lambda: self.inner.delete(key))

    def _call(self, work: Callable[[], Any]) -> Any:
        if self.dead:
            raise DeadError
        now = self.calls == self._number
        self.calls += 1
        if now and not self._after:
            self._happen()
        answer = work()
        if now and self._after:
            self._happen()
        return answer

    def _happen(self) -> None:
        self._number, self.happened = None, True
        self._event()


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
