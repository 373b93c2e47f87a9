"""The checkpoint that another one is compared with: the commit before it in its run, or one that a person names."""

from __future__ import annotations

from dataclasses import dataclass

from giblet.checkpoint.layout import CheckpointRef
from giblet.checkpoint.survey import survey
from giblet.config.schema import CheckpointConfig
from giblet.errors import CheckpointError
from giblet.storage import Storage
from giblet.verify.difference import Difference, difference
from giblet.verify.opening import checkpoint_ref, open_source
from giblet.verify.report import Report
from giblet.verify.sources import Source


@dataclass(frozen=True, slots=True)
class Comparison:
    """A difference, or a sentence that says why there is none (empty: there is nothing to compare with)."""

    difference: Difference | None = None
    note: str = ""


def compare(
    report: Report, against: Source | None, storage: Storage | None = None, config: CheckpointConfig | None = None
) -> Comparison:
    """What changed in the checkpoint of `report` since `against` (None: since the commit before it in the same run).

    Reads both once more. What cannot be compared is said, not raised: the verdict does not depend on it.
    """
    if not report.records:
        return Comparison(note="Its contents cannot be listed, so that they were compared with nothing")
    try:
        source = open_source(report.url, storage, config)
        before = against if against is not None else previous(source)
        if before is None:
            return Comparison(note="There is no earlier checkpoint of its run to compare it with")
        return Comparison(difference(before, source))
    except CheckpointError as error:
        return Comparison(note=f"It could not be compared: {error.message}")


def previous(source: Source) -> Source | None:
    """The commit before a checkpoint in its run that nobody quarantined; None where there is none."""
    ref = checkpoint_ref(source)
    if ref is None:
        return None
    before = [found.ref for found in survey(source.storage, ref.run) if found.committed and not found.quarantined]
    newest = max((other for other in before if other < ref), default=None)
    return _open(source.storage, newest) if newest is not None else None


def _open(storage: Storage, ref: CheckpointRef) -> Source:
    return open_source(f"{storage.url.rstrip('/')}/{ref.prefix}", storage)
