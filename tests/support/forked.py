"""Processes of the tests' own that need no wait for imports: forked from one that has imported all of training."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from giblet.training.zygote import NEEDED_BY_RANKS


def forked(target: Callable[..., None], *arguments: Any) -> Any:
    """A process that will run `target`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.support.nodes", "tests.support.running", "giblet.launch.run", *NEEDED_BY_RANKS]
    )
    return context.Process(target=target, args=arguments)


def write_to(log: Path) -> None:
    """This process's output goes to a file from here on."""
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2):
        os.dup2(stream, number)


def children(pid: int | None) -> list[int]:
    """Process ids of what a process has started."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(child) for child in found.stdout.split()]


def grandchildren(pid: int | None) -> list[int]:
    """Process ids of ranks: a launcher's only child forks them."""
    return [rank for zygote in children(pid) for rank in children(zygote)]
