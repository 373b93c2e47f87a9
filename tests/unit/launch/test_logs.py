import os
import subprocess
import sys

from giblet.errors import StorageUnavailableError
from giblet.launch.logs import BoundedLog, KeptLogs, log_key
from giblet.storage import MemoryStorage


def test_the_beginning_and_the_end_are_kept_and_the_gap_is_said():
    log = BoundedLog(head_bytes=10, tail_bytes=10)
    log.write(b"0123456789")
    assert log.body() == b"0123456789"
    for i in range(10):
        log.write(f"line {i}\n".encode())
    body = log.body().decode()
    assert body.startswith("0123456789\n[")
    assert body.endswith("line 8\nline 9\n")
    assert "56 bytes left out" in body
    assert log.size == 80


def test_what_this_process_and_its_children_print_is_kept_by_start(capfd):
    storage = MemoryStorage()
    kept = KeptLogs(lambda: storage, "r", "pod-0")
    with kept.piped(), kept:
        os.write(1, b"before any start\n")
        subprocess.run([sys.executable, "-c", "import os; os.write(2, b'of a child\\n')"], check=True)
        kept.started(4)
        _until(lambda: b"of a child" in kept._log.body())
        kept.ended()
        os.write(2, b"after it\n")
    first = storage.get(log_key("r", 4, "pod-0")).decode()
    assert "before any start" in first
    assert "of a child" in first
    assert storage.get("runs/r/logs/00000/pod-0.log") == b"after it\n"
    said = capfd.readouterr()
    assert "of a child" in said.err
    assert "after it" in said.err  # and it is printed as ever


def test_storage_that_is_away_costs_log_lines_and_nothing_else(capfd):
    def away():
        raise StorageUnavailableError("away")

    kept = KeptLogs(away, "r", "pod-0")
    with kept.piped(), kept:
        os.write(2, b"a line\n")
        kept.ended()
    assert "a line" in capfd.readouterr().err


def _until(what):
    while not what():
        pass
