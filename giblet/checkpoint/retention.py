"""Which checkpoints stay: the last N, each K-th, the best, the one resumed from, the newest verified, all quarantined.

A checkpoint that verification rejected counts for none of these; the newest rejected one stays to be looked at.

Runs after a commit only, so that the newest good one is always beyond its reach.
"""

from __future__ import annotations

from giblet.checkpoint import layout, resume
from giblet.checkpoint.layout import CheckpointRef
from giblet.checkpoint.records import read_record, rejected_among
from giblet.checkpoint.starts import Start, newest_start
from giblet.checkpoint.survey import Found, survey
from giblet.config.schema import CheckpointConfig
from giblet.storage import Cleanable, Storage
from giblet.storage.parallel import each
from giblet.telemetry.logs import get_logger

STALE_UPLOAD_SECONDS = 86400.0
log = get_logger(__name__)


def prune(
    storage: Storage,
    run: str,
    config: CheckpointConfig,
    *,
    newest: CheckpointRef,
    start: Start,
    best: CheckpointRef | None,
) -> list[CheckpointRef]:
    """Delete what retention does not keep, and what killed writers left; returns what it deleted."""
    found = survey(storage, run)
    kept = {newest, best, start.resumed_from, resume.verified_ref(storage, run)}
    doomed = [*superfluous(storage, found, kept, config), *abandoned(found, newest, start.number)]
    for entry in doomed:
        remove(storage, entry)
    if isinstance(storage, Cleanable):
        storage.clean_unfinished(layout.checkpoints_prefix(run), older_than_seconds=STALE_UPLOAD_SECONDS)
    return [entry.ref for entry in doomed]


def prunable(storage: Storage, run: str, config: CheckpointConfig) -> list[Found]:
    """What retention would not keep, asked from outside a run that may be training: oldest first.

    Attempts without a manifest count only if an older start than the newest began them: that one may be saving now.
    """
    found = survey(storage, run)
    good = [entry.ref for entry in found if entry.committed and not entry.quarantined]
    if not good:
        return []
    started = newest_start(storage, run)
    kept = {good[-1], resume.best_ref(storage, run), resume.verified_ref(storage, run)}
    if started and (record := read_record(storage, layout.start_key(run, started))):
        resumed = record.get("resumed_from")
        kept.add(None if resumed is None else CheckpointRef(resumed["step"], resumed["attempt"], run))
    doomed = [*superfluous(storage, found, kept, config), *abandoned(found, good[-1], started - 1)]
    return sorted(doomed, key=lambda entry: entry.ref)


def superfluous(
    storage: Storage, found: list[Found], kept: set[CheckpointRef | None], config: CheckpointConfig
) -> list[Found]:
    """Committed checkpoints beyond the last `keep_last`, but for those in `kept` and each `keep_every_steps`-th.

    Of the rejected ones all but the newest.
    """
    whole = [entry for entry in found if entry.committed and not entry.quarantined]
    rejected = rejected_among(storage, whole[0].ref.run, [entry.ref for entry in whole]) if whole else set()
    good = [entry for entry in whole if entry.ref not in rejected]
    every = config.keep_every_steps
    old = [
        entry
        for entry in good[: -config.keep_last]
        if entry.ref not in kept and not (every and entry.ref.step % every == 0)
    ]
    return [*old, *[entry for entry in whole if entry.ref in rejected][:-1]]


def abandoned(found: list[Found], newest: CheckpointRef, start: int) -> list[Found]:
    """Attempts without a manifest that nobody can complete any more: of an older start, or before our own newest."""
    return [
        entry
        for entry in found
        if not entry.committed
        and not entry.quarantined
        and entry.ref != newest
        and (number := _start_of(entry.ref)) is not None
        and number <= start
    ]


def remove(storage: Storage, entry: Found) -> None:
    """Delete a checkpoint, its manifest first: killed on the way, what is left is no checkpoint."""
    if entry.committed:
        storage.delete(entry.ref.manifest_key)
    each(lambda name: storage.delete(entry.ref.prefix + name), sorted(entry.sizes.keys() - {layout.MANIFEST}))
    log.info("checkpoint removed", run=entry.ref.run, step=entry.ref.step, committed=entry.committed)


def _start_of(ref: CheckpointRef) -> int | None:
    text = ref.attempt.partition("-")[0]
    return int(text) if text.isdigit() else None
