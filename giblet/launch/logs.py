"""What this pod printed, kept in storage beside the run: `runs/<run>/logs/<start>/<pod>.log`, start 00000 before any.

Everything that this process and its ranks write, C's own messages and stacks included, goes through a pipe: on to where
it went before, and into a bounded memory. It is uploaded every minute and at each end. Storage that is away costs log
lines, and never the training.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType

from giblet.errors import GibletError
from giblet.storage import Storage
from giblet.telemetry.logs import get_logger

HEAD_BYTES, TAIL_BYTES = 1 << 20, 7 << 20
"""Kept of one start's log: its beginning and its end."""
UPLOAD_EVERY_SECONDS = 60.0
LAST_UPLOAD_SECONDS = 10.0
"""How long the end of this process waits for the last upload."""
DRAIN_SECONDS = 2.0
_READ_BYTES = 1 << 16
log = get_logger(__name__)


def log_key(run: str, start: int, pod: str) -> str:
    """Where a pod's log of a start lies."""
    return f"runs/{run}/logs/{start:05d}/{pod}.log"


class BoundedLog:
    """The beginning and the end of what was written; what is left out between is said."""

    def __init__(self, head_bytes: int = HEAD_BYTES, tail_bytes: int = TAIL_BYTES) -> None:
        self._head_bytes, self._tail_bytes = head_bytes, tail_bytes
        self._head, self._tail, self._tail_size = bytearray(), deque[bytes](), 0
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append."""
        self.size += len(data)
        room = self._head_bytes - len(self._head)
        self._head += data[:room]
        if rest := data[room:] if room > 0 else data:
            self._tail.append(rest)
            self._tail_size += len(rest)
        while self._tail and self._tail_size - len(self._tail[0]) >= self._tail_bytes:
            self._tail_size -= len(self._tail.popleft())

    def body(self) -> bytes:
        """As it is kept."""
        left_out = self.size - len(self._head) - self._tail_size
        gap = f"\n[{left_out} bytes left out]\n".encode() if left_out else b""
        return bytes(self._head) + gap + b"".join(self._tail)


class KeptLogs:
    """Within `with logs.piped(), logs:` standard output and error of this process and its children are kept."""

    def __init__(self, open_storage: Callable[[], Storage], run: str, pod: str) -> None:
        self._open_storage, self._run, self._pod = open_storage, run, pod
        self._storage: Storage | None = None
        self._lock, self._upload_lock = threading.Lock(), threading.Lock()
        self._log, self._start, self._uploaded = BoundedLog(), 0, 0
        self._ended = threading.Event()
        self._warned = False

    @contextlib.contextmanager
    def piped(self) -> Iterator[None]:
        """Within it, everything written goes into a pipe. Threads come later: ranks are forked from here first."""
        self._pipe, into = os.pipe()
        self._outer = [os.dup(1), os.dup(2)]
        for number in (1, 2):
            os.dup2(into, number)
        os.close(into)
        try:
            yield
        finally:
            self._restore()
            os.close(self._pipe)
            for outer in self._outer:
                os.close(outer)

    def __enter__(self) -> KeptLogs:
        self._pump = threading.Thread(target=self._copy, name="giblet-logs", daemon=True)
        self._pump.start()
        threading.Thread(target=self._upload_now_and_then, name="giblet-log-upload", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._restore()
        self._pump.join(DRAIN_SECONDS)  # whoever else still holds the pipe's other end is not waited for
        last = threading.Thread(target=self.upload, name="giblet-log-upload", daemon=True)
        last.start()
        last.join(LAST_UPLOAD_SECONDS)

    def started(self, number: int) -> None:
        """What was written since the last start ended belongs to this one."""
        with self._lock:
            self._start = number

    def ended(self) -> None:
        """Upload what belongs to the start that ended, and begin anew."""
        self.upload()
        with self._lock:
            self._log, self._start, self._uploaded = BoundedLog(), 0, 0

    def upload(self) -> None:
        """Put what there is, if it is more than before. Failures are said once."""
        with self._upload_lock:
            with self._lock:
                if self._log.size == self._uploaded:
                    return
                body, size, start = self._log.body(), self._log.size, self._start
            try:
                self._storage = self._storage or self._open_storage()
                self._storage.put(log_key(self._run, start, self._pod), body)
                with self._lock:
                    self._uploaded = size
            except (GibletError, OSError) as error:
                if not self._warned:
                    log.warning("the log could not be kept in storage", error=str(error).partition("\n")[0])
                self._warned = True

    def _restore(self) -> None:
        sys.stdout.flush()
        for number, outer in zip((1, 2), self._outer, strict=True):
            os.dup2(outer, number)

    def _copy(self) -> None:
        while data := os.read(self._pipe, _READ_BYTES):
            with self._lock:
                self._log.write(data)
            view = memoryview(data)
            while view:
                view = view[os.write(self._outer[1], view) :]

    def _upload_now_and_then(self) -> None:
        while not self._ended.wait(UPLOAD_EVERY_SECONDS):
            self.upload()
