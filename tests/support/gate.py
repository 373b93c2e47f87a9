"""Checkpoints of one word and a judge that reads it, for tests of what the gate does around a judgement."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator

from giblet.checkpoint.layout import CheckpointRef, end_key, start_key
from giblet.config.schema import GibletConfig
from giblet.errors import CheckpointError
from giblet.storage import Storage
from giblet.telemetry import logs
from giblet.verify.report import Check, Report

RUN = "movie"


def commit_word(storage: Storage, step: int, *, bad: bool = False) -> CheckpointRef:
    """A checkpoint of one word, for `judged_by_its_word`."""
    ref = CheckpointRef(step, "00001-00001-aaaa", RUN)
    storage.put(f"{ref.prefix}rank-00000.safetensors", b"bad" if bad else b"good")
    storage.put(ref.manifest_key, b"{}")
    return ref


def judged_by_its_word(url: str, *, storage: Storage, config: GibletConfig, restore: bool) -> Report:
    """Stands for `verify` where the judgement itself is not what is tested."""
    prefix = url.removeprefix(f"{storage.url}/") + "/"
    if storage.head(f"{prefix}MANIFEST.json") is None:
        raise CheckpointError(f"{url}: there is no manifest")
    try:
        word = storage.get(f"{prefix}rank-00000.safetensors")
    except KeyError:
        word = b"missing"
    check = Check("finite", "passed" if word == b"good" else "failed", f"its word is {word.decode()}")
    step = int(prefix.split("/")[3].removeprefix("step-"))
    return Report(url, "giblet", step, (check,), {}, {}, {}, len(word), 0.1, judged_unix_seconds=1e9 + step)


def record_start(storage: Storage, number: int = 1, *, exit_code: int | None = None) -> None:
    """A start of the run, and how it ended if it has."""
    storage.put(start_key(RUN, number), b"{}")
    if exit_code is not None:
        end = {"cause": "done" if exit_code == 0 else "crashed", "exit_code": exit_code, "step": 8}
        storage.put(end_key(RUN, number), json.dumps(end).encode())


@contextlib.contextmanager
def heard() -> Iterator[io.StringIO]:
    """What giblet logs meanwhile, as a person reads it."""
    logger, stream = logging.getLogger("giblet"), io.StringIO()
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    logs.configure(stream=stream)
    try:
        yield stream
    finally:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)
