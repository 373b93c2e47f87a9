"""Running commands, and waiting: every failure names the command, what it said, and what to do."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class ClusterError(Exception):
    """Something a person has to know about; printed without a traceback."""

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message if remedy is None else f"{message}\n  remedy: {remedy}")


def run(
    command: Sequence[str | Path],
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_seconds: float | None = None,
    remedy: str | None = None,
) -> str:
    """Run a command to its end and return its standard output.

    Raises ClusterError with the last lines that it printed when it fails, is missing, or takes longer than allowed.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, input=stdin, env=env, cwd=cwd, timeout=timeout_seconds, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{words[0]}: no such program on this machine", remedy=remedy) from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"no answer in {timeout_seconds} s from: {' '.join(words)}", remedy=remedy) from error
    if done.returncode != 0:
        said = "\n    ".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        raise ClusterError(f"exit {done.returncode} from: {' '.join(words)}\n    {said}", remedy=remedy)
    return done.stdout


def succeeds(command: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> bool:
    """Whether a command exits 0; a program that is not there does not."""
    try:
        run(command, env=env)
    except ClusterError:
        return False
    return True


def wait_for(
    what: str,
    condition: Callable[[], bool],
    *,
    timeout_seconds: float,
    poll_seconds: float = 0.1,
    hint: Callable[[], str] = lambda: "",
) -> None:
    """Poll until `condition` holds. Raises ClusterError, with what `hint` then returns, after `timeout_seconds`."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what}: not after {timeout_seconds:.0f} s\n    {hint()}".rstrip())
        time.sleep(poll_seconds)


def tail(path: Path, lines: int = 12) -> str:
    """The last lines of a log, or a word that there is none."""
    if not path.exists():
        return f"{path}: no such log"
    last = path.read_text(errors="replace").splitlines()[-lines:]
    return "\n    ".join([f"last lines of {path}:", *last])


def write_atomically(path: Path, text: str | bytes, mode: int = 0o644) -> None:
    """Write a file so that a kill at any moment leaves the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(text.encode() if isinstance(text, str) else text)
    temporary.chmod(mode)
    temporary.replace(path)
