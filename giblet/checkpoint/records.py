"""Small JSON objects that a run leaves beside its checkpoints; and which checkpoints verification has rejected."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from giblet.checkpoint import exact_json
from giblet.checkpoint.layout import CheckpointRef, reports_prefix
from giblet.storage import ConditionRefusedError, PreconditionFailedError, Storage

REJECTED = "UNSAFE"
ACCEPTED = ("SAFE", "SAFE WITH WARNINGS")


def read_record(storage: Storage, key: str) -> dict[str, Any] | None:
    """A start, an end, a report, a pointer; None if it is not there, or not one.

    For people's eyes and for what can be made again; what training resumes from is read by `resume`.
    """
    try:
        value = exact_json.loads(storage.get(key))
    except (KeyError, ValueError, TypeError):
        return None
    return value if isinstance(value, dict) else None


def put_first(storage: Storage, key: str, body: bytes) -> bool:
    """Write a record unless there is one; whether it is ours. Also where conditional puts are ignored or refused."""
    if storage.head(key) is not None:
        return False
    try:
        storage.put(key, body, if_absent=True)
    except (PreconditionFailedError, ConditionRefusedError):
        if storage.head(key) is not None:
            return False
        storage.put(key, body)
    return True


def verdict_of(storage: Storage, ref: CheckpointRef) -> str | None:
    """What verification said of a checkpoint; None while nobody has verified it."""
    verdict = (read_record(storage, ref.report_key) or {}).get("verdict")
    return None if verdict is None else str(verdict)


def rejected_among(storage: Storage, run: str, refs: Iterable[CheckpointRef]) -> set[CheckpointRef]:
    """Those of a run's checkpoints that verification found UNSAFE: one listing, and one request for each report."""
    reported = {info.key for info in storage.list(reports_prefix(run))}
    return {ref for ref in refs if ref.report_key in reported and verdict_of(storage, ref) == REJECTED}
