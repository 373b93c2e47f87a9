"""Ranks without the wait for imports: a process that has imported everything, does nothing else, and forks ranks.

Importing torch and the rest costs each new process seconds; a fork of one that has done it costs milliseconds, and
shares the memory. It must be made before this process has threads, has run anything on many cores, or has touched a
GPU: forks inherit the state of all that, and none of the threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.launcher.api as torchrun
from torch.numa import binding

from giblet.errors import EXIT_CRASHED, CrashedError

_MESSAGE_BYTES = 1 << 16
_REAP_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1
NEEDED_BY_RANKS = ("giblet.training.worker", "giblet.storage.s3", "torch._dynamo")  # the last at FSDP's first call


def import_for_ranks() -> None:
    """Import all that a rank will need. Takes seconds, the first time."""
    for module in NEEDED_BY_RANKS:
        importlib.import_module(module)


@dataclass(slots=True)
class Forked:
    """A forked rank, as much like `subprocess.Popen` as is needed."""

    pid: int
    zygote: Zygote

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self.zygote.code(self.pid)

    def wait(self) -> int:
        """Until it has ended."""
        while (code := self.poll()) is None:
            time.sleep(_REAP_SECONDS)
        return code


class Zygote:
    """Forks ranks on demand. It and its ranks end with this process, however that ends, or with the block it is for."""

    def __init__(self) -> None:
        import_for_ranks()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._codes: dict[int, int] = {}
        self._gone = False
        self._pid = os.fork()
        if self._pid == 0:
            self._socket.close()
            _serve(theirs)
        theirs.close()

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def start(self, folder: Path, local_rank: int, environment: Mapping[str, str]) -> Forked:
        """A new rank: `giblet.training.worker.main(folder)`, with `environment` on top of what this process had."""
        request = {"folder": str(folder), "local_rank": local_rank, "environment": dict(environment)}
        try:
            self._socket.send(json.dumps(request).encode())
        except OSError:
            self._gone = True
        while not self._gone:
            if (pid := self._read(None)) is not None:
                return Forked(pid, self)
        raise CrashedError("the process that forks ranks was killed (out of memory?)", remedy="start the run again")

    def code(self, pid: int) -> int | None:
        """The exit code of a rank; None while it runs. Where what forked it was killed it is killed too."""
        while pid not in self._codes and not self._gone and self._readable():
            self._read(0.0)
        if self._gone and pid not in self._codes and _has_ended(pid):
            self._codes[pid] = -signal.SIGKILL
        return self._codes.get(pid)

    def close(self) -> None:
        """End it, and every rank that it forked."""
        self._socket.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    def _readable(self) -> bool:
        return bool(select.select([self._socket], [], [], 0.0)[0])

    def _read(self, timeout: float | None) -> int | None:
        """One message: the pid of a rank just forked, or None after noting an exit, or that nobody is there."""
        self._socket.settimeout(timeout)
        try:
            body = self._socket.recv(_MESSAGE_BYTES)
        except ConnectionError:
            body = b""
        if not body:
            self._gone = True
            return None
        message = json.loads(body)
        if "code" in message:
            self._codes[message["pid"]] = message["code"]
            return None
        return int(message["pid"])


def _serve(channel: socket.socket) -> None:
    """The zygote's whole life. Never returns."""
    try:
        os.setsid()
        _die_with_parent()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        while True:
            if select.select([channel], [], [], _REAP_SECONDS)[0]:
                body = channel.recv(_MESSAGE_BYTES)
                if not body:
                    os._exit(0)
                channel.send(json.dumps({"pid": _fork_rank(json.loads(body), channel)}).encode())
            _reap(channel)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(EXIT_CRASHED)


def _reap(channel: socket.socket) -> None:
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            code = os.waitstatus_to_exitcode(ended[1])
            channel.send(json.dumps({"pid": ended[0], "code": code}).encode())


def _fork_rank(request: dict[str, Any], channel: socket.socket) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = EXIT_CRASHED
    try:
        channel.close()
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.environ.update(request["environment"])
        _bind_near_gpu(request["local_rank"])
        from giblet.training import worker

        code = worker.main(Path(request["folder"]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _has_ended(pid: int) -> bool:
    """Of a process that is not this one's child; one that nobody has waited for has ended, too."""
    if sys.platform != "linux":
        return True
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 0.0)[0])
    finally:
        os.close(descriptor)


def _bind_near_gpu(local_rank: int) -> None:
    """torchrun's own default where there is a GPU a rank."""
    if torch.cuda.is_available() and torch.cuda.device_count() == int(os.environ["LOCAL_WORLD_SIZE"]):
        options = torchrun.get_default_numa_options()  # type: ignore[attr-defined, no-untyped-call]
        binding._maybe_apply_numa_binding_to_current_process(gpu_index=local_rank, numa_options=options)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
