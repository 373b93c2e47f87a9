"""What runs there are and what they hold, for `giblet runs`. Reads listings and small JSON, changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from giblet.checkpoint import layout
from giblet.checkpoint.records import read_record, verdict_of
from giblet.checkpoint.resume import verified_ref
from giblet.checkpoint.survey import group_by_attempt, survey
from giblet.storage import ObjectInfo, Storage


@dataclass(frozen=True, slots=True)
class CheckpointSummary:
    """One committed checkpoint. `verdict` is verification's (SAFE …), None while nobody has verified it."""

    run: str
    step: int
    attempt: str
    size_bytes: int
    committed_unix_seconds: float
    quarantined: bool
    verified: bool
    verdict: str | None


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run: how often it started, what is newest, what is verified. Steps are None where there is none.

    `verdict` is verification's on the newest checkpoint; `ended` the newest start's own word of how it ended, None
    where there is none: it is running, or was killed.
    """

    run: str
    starts: int
    checkpoints: int
    quarantined: int
    size_bytes: int
    newest_step: int | None
    newest_unix_seconds: float | None
    verified_step: int | None
    verdict: str | None
    ended: str | None


def list_runs(storage: Storage) -> list[RunSummary]:
    """Every run in the store, by name, from one listing and one pointer each."""
    objects: dict[str, list[ObjectInfo]] = {}
    for info in storage.list("runs/"):
        objects.setdefault(info.key.split("/")[1], []).append(info)
    return [_summary(storage, run, infos) for run, infos in sorted(objects.items())]


def list_checkpoints(storage: Storage, run: str) -> list[CheckpointSummary]:
    """Every committed checkpoint of a run, oldest first."""
    verified = verified_ref(storage, run)
    return [
        CheckpointSummary(
            run=run,
            step=entry.ref.step,
            attempt=entry.ref.attempt,
            size_bytes=entry.size_bytes,
            committed_unix_seconds=entry.committed_unix_seconds or 0.0,
            quarantined=entry.quarantined,
            verified=entry.ref == verified,
            verdict=verdict_of(storage, entry.ref),
        )
        for entry in survey(storage, run)
        if entry.committed
    ]


def _summary(storage: Storage, run: str, infos: list[ObjectInfo]) -> RunSummary:
    committed = [entry for entry in group_by_attempt(infos, run) if entry.committed]
    good = [entry for entry in committed if not entry.quarantined]
    verified = verified_ref(storage, run)
    prefix = layout.starts_prefix(run)
    numbers = [number for i in infos if i.key.startswith(prefix) and (number := layout.start_number(i.key)) is not None]
    end = read_record(storage, layout.end_key(run, max(numbers))) if numbers else None
    return RunSummary(
        run=run,
        starts=len(numbers),
        checkpoints=len(good),
        quarantined=len(committed) - len(good),
        size_bytes=sum(info.size_bytes for info in infos),
        newest_step=good[-1].ref.step if good else None,
        newest_unix_seconds=good[-1].committed_unix_seconds if good else None,
        verified_step=verified.step if verified is not None else None,
        verdict=verdict_of(storage, good[-1].ref) if good else None,
        ended=None if end is None else str(end.get("cause")),
    )
