"""What a run has been through, from the records of its starts: for metrics that no restart resets."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

from giblet.checkpoint import layout
from giblet.checkpoint.layout import CheckpointRef
from giblet.checkpoint.records import read_record
from giblet.storage import Storage
from giblet.telemetry.metrics import Metrics

VANISHED = "vanished"
"""The cause of a restart whose start before left no word of its end: its node or its pod was gone."""

_BUDGET, _BUDGET_LEFT = "GIBLET_RESTART_BUDGET", "GIBLET_RESTART_BUDGET_LEFT"


@dataclass(frozen=True, slots=True)
class History:
    """`restarts` counts by what ended the start before; `steps_lost` those known to be done and not resumed from."""

    created_unix_seconds: float | None
    starts: int
    restarts: dict[str, int] = field(default_factory=dict)
    steps_lost: int = 0


def read_history(storage: Storage, run: str) -> History:
    """From `run.json` and `starts/`. A start that left no end counts as `vanished`, and what it lost is unknown."""
    prefix = layout.starts_prefix(run)
    numbers = sorted(n for n in (layout.start_number(info.key) for info in storage.list(prefix)) if n is not None)
    restarts: Counter[str] = Counter()
    lost = 0
    for before, number in pairwise(numbers):
        end = read_record(storage, layout.end_key(run, before))
        restarts[str(end["cause"]) if end else VANISHED] += 1
        begun = read_record(storage, layout.start_key(run, number))
        if end and begun:
            lost += max(0, int(end["step"]) - int((begun.get("resumed_from") or {}).get("step", 0)))
    created = (read_record(storage, layout.run_key(run)) or {}).get("created_unix_seconds")
    return History(None if created is None else float(created), len(numbers), dict(restarts), lost)


def tell_history(metrics: Metrics, history: History) -> None:
    """Export it. Safe to repeat: totals only ever rise."""
    metrics.set("run_starts", history.starts)
    if history.created_unix_seconds is not None:
        metrics.set("run_created_timestamp_seconds", history.created_unix_seconds)
    for cause, count in {"crashed": 0, **history.restarts}.items():  # a first restart is seen only as a rise from 0
        metrics.raise_to("restarts_total", count, cause=cause)
    metrics.raise_to("steps_lost_total", history.steps_lost)


def tell_commit(metrics: Metrics, storage: Storage, ref: CheckpointRef | None) -> None:
    """Export which commit is the newest and when it was made, so that its age is known after a restart too."""
    info = None if ref is None else storage.head(ref.manifest_key)
    if ref is not None and info is not None:
        metrics.set("checkpoint_committed_step", ref.step)
        metrics.set("checkpoint_committed_timestamp_seconds", info.modified_unix_seconds)


def budget_environment(budget: int, left: int) -> dict[str, str]:
    """How a launcher tells its ranks, which export metrics, what it will still bear."""
    return {_BUDGET: str(budget), _BUDGET_LEFT: str(left)}


def tell_budget(metrics: Metrics, *, refilled: bool) -> None:
    """Export the restart budget that the launcher told, if one did; a commit has refilled it."""
    if (budget := os.environ.get(_BUDGET)) is not None:
        metrics.set("restart_budget", float(budget))
        metrics.set("restart_budget_left", float(budget if refilled else os.environ.get(_BUDGET_LEFT, budget)))
