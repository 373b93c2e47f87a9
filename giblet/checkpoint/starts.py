"""Who may write to a run: its configuration, its numbered starts, and the fence between an old start and a new one.

Each start of a run claims the next number with a conditional put. The newest start owns the run: an older one that is
still alive finds the newer number at its next commit and ends, so that two never both write history.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
import uuid
from dataclasses import dataclass
from typing import Any

import giblet
from giblet.checkpoint import exact_json, layout
from giblet.checkpoint.layout import CheckpointRef
from giblet.checkpoint.records import put_first
from giblet.config.load import load_config_data
from giblet.config.resume import config_differences
from giblet.config.schema import GibletConfig
from giblet.errors import ConfigError, RunConflictError
from giblet.storage import ConditionRefusedError, PreconditionFailedError, Storage
from giblet.telemetry.logs import get_logger

log = get_logger(__name__)
_PROBE = "probe"


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a run: `number` from 1, and the checkpoint that it goes on from (None: from the beginning).

    `steps_lost`: steps that the starts before are known to have done in vain.
    `conditional_puts`: the server honours `If-None-Match`; where it does not, two starts at once are told apart by
    reading back, which leaves a short gap.
    """

    number: int
    world_size: int
    resumed_from: CheckpointRef | None
    conditional_puts: bool
    steps_lost: int = 0

    @property
    def resumed_step(self) -> int:
        """0 for a run that begins."""
        return self.resumed_from.step if self.resumed_from is not None else 0


def claim_run(storage: Storage, run: str, config: GibletConfig, *, conditional: bool) -> None:
    """Write `run.json`, or agree with the one that is there. Raises `RunConflictError` naming the keys that differ."""
    body = exact_json.dumps_plain(
        {
            "format": "giblet.run/1",
            "run": run,
            "created_by": f"giblet {giblet.__version__}",
            "created_unix_seconds": time.time(),
            "image": os.environ.get("GIBLET_IMAGE"),
            "config": config.model_dump(mode="json"),
        }
    )
    key = layout.run_key(run)
    try:
        if conditional or storage.head(key) is None:
            storage.put(key, body, if_absent=conditional)
            return
    except PreconditionFailedError:
        pass
    differences = config_differences(saved_config(storage, run), config)
    if differences:
        told = "\n".join(f"  - {name}: was {was!r}, is now {now!r}" for name, (was, now) in differences.items())
        raise RunConflictError(
            f"{storage.url}: run {run} began with another configuration\n{told}",
            remedy="set these back, or give the changed run a new run.name",
        )


def saved_config(storage: Storage, run: str) -> GibletConfig:
    """The configuration a run began with.

    Raises `RunConflictError` if it cannot be read, `KeyError` if there is none.
    """
    where = f"{storage.url}/{layout.run_key(run)}"
    try:
        saved = exact_json.loads(storage.get(layout.run_key(run)))
        return load_config_data(saved["config"], source=where)
    except (ValueError, TypeError, ConfigError) as error:
        raise RunConflictError(
            f"{where}: cannot be read as this version's configuration: {error}",
            remedy="go on with the version that began the run, or choose a new run.name",
        ) from None


def claim_start(storage: Storage, run: str, record: dict[str, Any], *, conditional: bool) -> int:
    """Claim the next number with `record`; returns the number."""
    number = newest_start(storage, run) + 1
    while True:
        key, body = layout.start_key(run, number), exact_json.dumps(record)
        try:
            storage.put(key, body, if_absent=conditional)
        except PreconditionFailedError:
            if storage.get(key) != body:  # a retried request may find what its first try wrote
                number += 1
                continue
        if storage.get(key) == body:
            return number
        number += 1


def start_record(config: GibletConfig, world_size: int) -> dict[str, Any]:
    """What a start says of itself. The token tells it from any other start, whatever the clock says."""
    return {
        "format": "giblet.start/1",
        "token": uuid.uuid4().hex,
        "world_size": world_size,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started_unix_seconds": time.time(),
        "created_by": f"giblet {giblet.__version__}",
        "config_sha256": hashlib.sha256(config.model_dump_json().encode()).hexdigest(),
        "resumed_from": None,
    }


def record_resume(storage: Storage, run: str, number: int, record: dict[str, Any], ref: CheckpointRef | None) -> None:
    """Add to our own start where it goes on from."""
    resumed = None if ref is None else {"step": ref.step, "attempt": ref.attempt}
    storage.put(layout.start_key(run, number), exact_json.dumps({**record, "resumed_from": resumed}))


def record_end(
    storage: Storage, run: str, number: int, *, cause: str, exit_code: int, step: int, message: str = ""
) -> None:
    """Write how a start ended, once; the first to say so is right."""
    body = {"format": "giblet.end/1", "cause": cause, "exit_code": exit_code, "step": step, "message": message}
    if not put_first(
        storage, layout.end_key(run, number), exact_json.dumps({**body, "ended_unix_seconds": time.time()})
    ):
        log.debug("this start's end is recorded already", start=number)


def newest_start(storage: Storage, run: str) -> int:
    """The highest number claimed; 0 before the first start."""
    numbers = (layout.start_number(info.key) for info in storage.list(layout.starts_prefix(run)))
    return max((number for number in numbers if number is not None), default=0)


def check_fence(storage: Storage, run: str, number: int) -> None:
    """Raises `RunConflictError` if a newer start owns the run."""
    newest = newest_start(storage, run)
    if newest > number:
        raise RunConflictError(
            f"{storage.url}: start {newest} of run {run} took over from start {number}, which may no longer write",
            remedy="stop this one; if both were meant, give one of them another run.name",
        )


def probe_conditional_puts(storage: Storage, run: str) -> bool:
    """Does the server honour `If-None-Match: *`? Leaves nothing behind. The answer no is logged by name."""
    key, does = f"runs/{run}/{_PROBE}-{uuid.uuid4().hex}", "ignores"
    try:
        storage.put(key, b"1", if_absent=True)
        storage.put(key, b"2", if_absent=True)
    except PreconditionFailedError:
        if storage.head(key) is not None:
            return True
        does = "refuses"  # though nothing was there
    except ConditionRefusedError:
        does = "refuses"
    finally:
        storage.delete(key)
    log.warning(
        f"this storage {does} conditional puts (If-None-Match), so that two starts at one moment are told apart only "
        "by reading back",
        storage=storage.url,
        endpoint=getattr(storage, "endpoint_url", "local"),
    )
    return False
