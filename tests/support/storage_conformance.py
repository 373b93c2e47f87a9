"""What every store must do; `test_storage_conformance` runs it for memory, folder and a real S3 server alike."""

from __future__ import annotations

import io
import threading
import time

import pytest

from giblet.storage import PreconditionFailedError, Storage, get_into


class TrickleBody(io.RawIOBase):
    """A stream whose `read` gives less than was asked for, as sockets do."""

    def __init__(self, data: bytes, at_most: int) -> None:
        self._data, self._position, self._at_most = data, 0, at_most

    def read(self, size: int = -1) -> bytes:
        size = self._at_most if size < 0 else min(size, self._at_most)
        part = self._data[self._position : self._position + size]
        self._position += len(part)
        return part


class BrokenBody(TrickleBody):
    """A stream that fails after its data."""

    def read(self, size: int = -1) -> bytes:
        part = super().read(size)
        if not part:
            raise RuntimeError("the reader's own failure")
        return part


def round_trip(store: Storage) -> None:
    assert store.put("a/b.bin", b"0123456789") == 10
    assert store.get("a/b.bin") == b"0123456789"
    assert store.put("a/b.bin", b"new") == 3
    assert store.get("a/b.bin") == b"new"


def ranges_are_slices(store: Storage) -> None:
    data = bytes(range(256))
    store.put("r", data)
    for start, stop in ((0, None), (0, 10), (250, 300), (17, 18), (5, 5), (256, None), (400, 500), (255, None)):
        assert store.get("r", start, stop) == data[start:stop], (start, stop)
    for start, stop in ((-1, None), (5, 4)):
        with pytest.raises(ValueError, match="range"):
            store.get("r", start, stop)


def missing_key(store: Storage) -> None:
    with pytest.raises(KeyError):
        store.get("absent")
    with pytest.raises(KeyError):
        store.get("absent", 3, 3)
    assert store.head("absent") is None
    store.delete("absent")
    assert list(store.list("absent")) == []


def head_tells_size_and_time(store: Storage) -> None:
    store.put("h/x", b"12345")
    info = store.head("h/x")
    assert info is not None
    assert (info.key, info.size_bytes) == ("h/x", 5)
    assert abs(info.modified_unix_seconds - time.time()) < 60
    assert store.head("h") is None, "a folder is no object"


def list_is_sorted_and_by_prefix(store: Storage) -> None:
    keys = ["p/a", "p/a.x", "p/a/b", "p/ab", "p/b/c/d", "q"]
    keys.remove("p/a")  # a folder cannot be an object too
    for key in reversed(keys):
        store.put(key, key.encode())
    assert [info.key for info in store.list("p")] == sorted(key for key in keys if key.startswith("p"))
    assert [info.key for info in store.list("p/a")] == ["p/a.x", "p/a/b", "p/ab"]
    assert [info.key for info in store.list("p/a/")] == ["p/a/b"]
    assert {info.key: info.size_bytes for info in store.list()} == {key: len(key) for key in keys}


def if_absent_lets_one_win(store: Storage) -> None:
    store.put("claim", b"first", if_absent=True)
    with pytest.raises(PreconditionFailedError):
        store.put("claim", b"second", if_absent=True)
    assert store.get("claim") == b"first"
    won: list[int] = []

    def claim(number: int) -> None:
        try:
            store.put("race", b"%d" % number, if_absent=True)
            won.append(number)
        except PreconditionFailedError:
            pass

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.get("race") == b"%d" % won[0]


def delete_removes(store: Storage) -> None:
    store.put("d/x", b"1")
    store.put("d/y", b"2")
    store.delete("d/x")
    assert store.head("d/x") is None
    assert [info.key for info in store.list("d/")] == ["d/y"]
    store.put("d/x", b"again", if_absent=True)
    assert store.get("d/x") == b"again"


def streams_are_read_to_their_end(store: Storage) -> None:
    data = bytes(range(251)) * 41
    assert store.put("stream", TrickleBody(data, at_most=1000)) == len(data)
    assert store.get("stream") == data
    assert store.put("empty", io.BytesIO(b"")) == 0
    assert store.get("empty") == b""
    assert store.put("view", memoryview(data)) == len(data)
    assert store.get("view") == data


def big_bodies_are_whole(store: Storage) -> None:
    data = b"".join(number.to_bytes(4, "little") * 256 for number in range(72 << 10))  # 72 MiB, three parts
    assert store.put("big", TrickleBody(data, at_most=5_000_011)) == len(data)
    assert store.get("big") == data
    with pytest.raises(PreconditionFailedError):
        store.put("big", io.BytesIO(b"x" * len(data)), if_absent=True)
    assert store.get("big", 33 << 20, (33 << 20) + 4096) == data[33 << 20 : (33 << 20) + 4096]


def places_are_filled_in_order(store: Storage) -> None:
    data = bytes(range(256)) * 5
    store.put("places", data)
    first, nothing, second = bytearray(100), bytearray(), bytearray(50)
    assert get_into(store, "places", 10, [memoryview(first), memoryview(nothing), memoryview(second)]) == 150
    assert bytes(first + second) == data[10:160]
    first, second = bytearray(20), bytearray(50)
    assert get_into(store, "places", len(data) - 30, [memoryview(first), memoryview(second)]) == 30
    assert bytes(first + second[:10]) == data[-30:]
    assert get_into(store, "places", len(data), [memoryview(first)]) == 0
    with pytest.raises(KeyError):
        get_into(store, "absent", 0, [memoryview(first)])


def a_body_that_fails_leaves_nothing(store: Storage) -> None:
    with pytest.raises(RuntimeError, match="own failure"):
        store.put("broken/small", BrokenBody(b"1234", at_most=2))
    with pytest.raises(RuntimeError, match="own failure"):
        store.put("broken/big", BrokenBody(bytes(40 << 20), at_most=8 << 20))
    assert list(store.list("broken")) == []


def unsafe_keys_are_refused(store: Storage) -> None:
    for key in ("", "/a", "a//b", "../a", "a/../b", "a/.", "a/", "a\\b", "a\0b"):
        with pytest.raises(ValueError, match="no key"):
            store.put(key, b"")


CASES = (
    round_trip, ranges_are_slices, missing_key, head_tells_size_and_time, list_is_sorted_and_by_prefix,
    if_absent_lets_one_win, delete_removes, streams_are_read_to_their_end, places_are_filled_in_order,
    big_bodies_are_whole, a_body_that_fails_leaves_nothing, unsafe_keys_are_refused,
)  # fmt: skip
