"""Writes reports into a run, and moves `verified.json` to the newest checkpoint that was accepted.

The pointer follows from the reports: it is the newest checkpoint whose report accepts it and whose manifest is still
there. So it does not matter in which order verifiers finish: each writes its report first, then sets the pointer, and
looks again whether the reports still say the same.
"""

from __future__ import annotations

import dataclasses
import json
import re

from giblet.checkpoint.layout import SIGNATURE, CheckpointRef, reports_prefix, verified_key
from giblet.checkpoint.records import ACCEPTED, read_record, verdict_of
from giblet.checkpoint.resume import pointer_body
from giblet.errors import CheckpointError, StorageUnavailableError
from giblet.storage import PreconditionFailedError, Storage
from giblet.telemetry.logs import get_logger
from giblet.verify.report import Report
from giblet.verify.signing import Signer

_REPORT = re.compile(r"runs/(?P<run>[^/]+)/reports/step-(?P<step>\d+)/(?P<attempt>[^/]+)\.json")
_TRIES = 10
log = get_logger(__name__)


def record(
    report: Report, storage: Storage, ref: CheckpointRef | None = None, *, signer: Signer | None = None
) -> CheckpointRef | None:
    """Write `report` beside its run and bring the pointer up to date; returns where it points to now.

    `ref` is the checkpoint judged (None: the one that the report names). `signer` signs the manifest that was judged,
    where it was accepted, and takes its signature away where it was not. Raises `CheckpointError` if the checkpoint is
    none of a run's.
    """
    if ref is None:
        if report.run is None or report.step is None or report.attempt is None:
            raise CheckpointError(
                f"{report.url}: not a checkpoint in a run's folder, so there is no place for its report",
                remedy="write the JSON to a file instead",
            )
        ref = CheckpointRef(report.step, report.attempt, report.run)
    if signer is not None:
        report = _sign(report, storage, ref, signer)
    storage.put(ref.report_key, json.dumps(report.to_json(), allow_nan=False).encode())
    return update_pointer(storage, ref.run)


def _sign(report: Report, storage: Storage, ref: CheckpointRef, signer: Signer) -> Report:
    """The report, with whose signature the checkpoint has now."""
    if report.verdict in ACCEPTED and report.manifest_bytes is not None:
        signer.sign(storage, ref.prefix, report.manifest_bytes)
        log.info("signed", checkpoint=ref.prefix, key=signer.name)
        return dataclasses.replace(report, signed_by=signer.name)
    if storage.head(ref.prefix + SIGNATURE) is not None:
        storage.delete(ref.prefix + SIGNATURE)
        log.warning("took back the signature of what is not safe", checkpoint=ref.prefix)
    return report


def update_pointer(storage: Storage, run: str) -> CheckpointRef | None:
    """Point `verified.json` to the newest accepted checkpoint of a run, or remove it if there is none."""
    key = verified_key(run)
    for _ in range(_TRIES):
        target = newest_accepted(storage, run)
        current = read_record(storage, key)
        if target is None:
            if current is not None:
                storage.delete(key)
                log.warning("no checkpoint is trusted any more", run=run)
        elif current is None or (current.get("step"), current.get("attempt")) != (target.step, target.attempt):
            try:
                storage.put(key, pointer_body(target, report=target.report_key), if_absent=current is None)
            except PreconditionFailedError:
                continue
            log.info("trusted", run=run, checkpoint=target.prefix)
        if newest_accepted(storage, run) == target:
            return target
    raise StorageUnavailableError(f"{key} changed {_TRIES} times while it was to be set", remedy="verify again")


def newest_accepted(storage: Storage, run: str) -> CheckpointRef | None:
    """The newest checkpoint whose report accepts it, which retention has not removed, and nobody quarantined."""
    found = (_REPORT.fullmatch(info.key) for info in storage.list(reports_prefix(run)))
    refs = sorted((CheckpointRef(int(m["step"]), m["attempt"], m["run"]) for m in found if m is not None), reverse=True)
    for ref in refs:
        if verdict_of(storage, ref) not in ACCEPTED or storage.head(ref.manifest_key) is None:
            continue
        if storage.head(ref.quarantine_key) is None:
            return ref
    return None
