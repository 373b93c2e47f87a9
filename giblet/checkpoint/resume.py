"""Finding the checkpoint to go on from: the newest whose objects are all there, bad ones set aside by a marker."""

from __future__ import annotations

import time
from collections.abc import Iterator

from giblet.checkpoint import exact_json, layout
from giblet.checkpoint.layout import CheckpointRef
from giblet.checkpoint.manifest import Manifest
from giblet.checkpoint.opened import read_manifest
from giblet.checkpoint.records import REJECTED, put_first, rejected_among, verdict_of
from giblet.checkpoint.survey import Found, survey
from giblet.errors import CheckpointError
from giblet.storage import Storage
from giblet.telemetry.logs import get_logger

log = get_logger(__name__)


def candidates(storage: Storage, run: str, *, verified_first: bool = False) -> Iterator[tuple[Found, Manifest]]:
    """Checkpoints that check out by name and size, best choice first; what does not is quarantined on the way.

    Best is the newest that verification has not rejected: one that nobody has judged yet counts as good, or a restart
    would lose all steps since the last judgement. With `verified_first` the newest accepted one comes before those.
    Rejected ones come last, newest first: they are all there is then.
    """
    entries = [entry for entry in survey(storage, run) if entry.committed and not entry.quarantined]
    rejected = rejected_among(storage, run, [entry.ref for entry in entries])
    verified = verified_ref(storage, run) if verified_first else None
    entries.reverse()
    entries.sort(key=lambda entry: (entry.ref in rejected, entry.ref != verified))
    for entry in entries:
        try:
            manifest = read_manifest(storage, entry.ref.prefix)
            _check_sizes(storage, entry, manifest)
        except CheckpointError as error:
            quarantine(storage, entry.ref, error.message)
            continue
        if entry.ref in rejected:
            log.warning("only checkpoints that verification rejected are left", run=run, step=entry.ref.step)
        yield entry, manifest


def quarantine(storage: Storage, ref: CheckpointRef, reason: str) -> None:
    """Mark a checkpoint as bad. Nothing is deleted; who removes the marker makes it eligible again."""
    log.error("checkpoint quarantined", run=ref.run, step=ref.step, attempt=ref.attempt, reason=reason)
    body = {"format": "giblet.quarantine/1", "reason": reason, "quarantined_unix_seconds": time.time()}
    if not put_first(storage, ref.quarantine_key, exact_json.dumps(body)):
        log.debug("quarantined already", step=ref.step, attempt=ref.attempt)


def verified_ref(storage: Storage, run: str) -> CheckpointRef | None:
    """What `verified.json` points to; None if there is none, or it cannot be read."""
    return _pointer(storage, layout.verified_key(run), run)


def best_ref(storage: Storage, run: str) -> CheckpointRef | None:
    """What `best.json` points to; None if there is none, it cannot be read, or verification rejected it."""
    ref = _pointer(storage, layout.best_key(run), run)
    return None if ref is None or verdict_of(storage, ref) == REJECTED else ref


def pointer_body(ref: CheckpointRef, **more: object) -> bytes:
    """A pointer to a checkpoint, as `best.json` and `verified.json` hold it."""
    return exact_json.dumps({"format": "giblet.pointer/1", "step": ref.step, "attempt": ref.attempt, **more})


def _pointer(storage: Storage, key: str, run: str) -> CheckpointRef | None:
    try:
        body = exact_json.loads(storage.get(key))
        return CheckpointRef(int(body["step"]), str(body["attempt"]), run)
    except KeyError:
        return None
    except (ValueError, TypeError) as error:
        log.warning("a pointer cannot be read and is ignored", key=key, error=str(error))
        return None


def _check_sizes(storage: Storage, entry: Found, manifest: Manifest) -> None:
    where = f"{storage.url}/{entry.ref.prefix}"
    if (manifest.run, manifest.step, manifest.attempt) != (entry.ref.run, entry.ref.step, entry.ref.attempt):
        raise CheckpointError(f"{where}: its manifest is of run {manifest.run} step {manifest.step}")
    for item in manifest.objects:
        size = entry.sizes.get(item.key)
        if size is None:
            raise CheckpointError(f"{where}{item.key}: is not there")
        if size != item.size_bytes:
            raise CheckpointError(f"{where}{item.key}: has {size} bytes instead of {item.size_bytes}")
