"""Logs read back from storage: which there are, what is new in them, and when following ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from giblet.checkpoint.layout import end_key, start_key
from giblet.errors import CheckpointError
from giblet.launch.kept import follow, list_logs, news
from giblet.launch.logs import BoundedLog, log_key
from giblet.storage import MemoryStorage


def put(storage: MemoryStorage, start: int, pod: str, text: str) -> None:
    storage.put(log_key("movie", start, pod), text.encode())


def ended(storage: MemoryStorage, start: int, exit_code: int) -> None:
    storage.put(start_key("movie", start), b"{}")
    storage.put(end_key("movie", start), json.dumps({"exit_code": exit_code}).encode())


def test_logs_are_listed_by_start_and_pod() -> None:
    storage = MemoryStorage()
    for start, pod in ((10, "w-0"), (2, "w-1"), (2, "w-0"), (0, "w-0")):
        put(storage, start, pod, "x\n")
    assert [(log.start, log.pod) for log in list_logs(storage, "movie")] == [
        (0, "w-0"), (2, "w-0"), (2, "w-1"), (10, "w-0"),
    ]  # fmt: skip
    assert [log.pod for log in list_logs(storage, "movie", 2)] == ["w-0", "w-1"]


def test_a_start_that_has_no_logs_is_told_with_those_that_have() -> None:
    storage = MemoryStorage()
    with pytest.raises(CheckpointError, match="no logs of run movie"):
        list_logs(storage, "movie")
    put(storage, 2, "w-0", "x\n")
    with pytest.raises(CheckpointError, match=r"no logs of start 3 of run movie\n.*starts 2"):
        list_logs(storage, "movie", 3)


def test_news_of_a_log_that_lost_its_middle_is_what_follows_the_last_known_line() -> None:
    log = BoundedLog(head_bytes=40, tail_bytes=2000)
    before, seen = b"", b""
    for number in range(500):
        log.write(f"line {number} {'.' * (number % 7)}\n".encode())
        if number % 3 == 0:
            now = log.body()
            seen += news(before, now)
            before = now
    lines = [int(line.split()[1]) for line in seen.decode().splitlines() if line.startswith("line")]
    assert lines == list(range(499))


def test_following_shows_each_line_once_and_later_starts_and_ends_with_the_run() -> None:
    storage = MemoryStorage()
    put(storage, 1, "w-0", "old\n")
    put(storage, 2, "w-0", "a\nb")
    ended(storage, 1, 128)
    storage.put(start_key("movie", 2), b"{}")

    def crash() -> None:
        put(storage, 2, "w-0", "a\nbc\nd\n")
        ended(storage, 2, 137)

    def again() -> None:
        put(storage, 3, "w-0", "e\n")
        storage.put(start_key("movie", 3), b"{}")

    def done() -> None:
        put(storage, 3, "w-0", "e\nlast words")
        ended(storage, 3, 0)

    events = iter((crash, again, done))
    shown = [(log.start, text) for log, text in follow(storage, "movie", None, sleep=lambda _: next(events)())]
    assert shown == [(2, b"a\n"), (2, b"bc\nd\n"), (3, b"e\n"), (3, b"last words")]
    assert [text for _, text in follow(storage, "movie", 1)] == [b"old\n"]


def test_the_verb_prints_the_newest_start_and_names_pods_where_there_are_several(tmp_path: Path) -> None:
    for start, pod, text in ((1, "w-0", "old\n"), (2, "w-0", "hello\n"), (2, "w-1", "there\n")):
        path = tmp_path / log_key("movie", start, pod)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def said(*words: str) -> str:
        command = [sys.executable, "-m", "giblet", "logs", "movie", "--set", f"checkpoint.url={tmp_path}", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert said() == "[2/w-0] hello\n[2/w-1] there\n"
    assert said("--start", "1") == "old\n"
