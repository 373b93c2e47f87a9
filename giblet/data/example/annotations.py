"""The words: a table of what happens in the film, written by someone who looked at it, cut to a part of the film."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from giblet.data.example.film import Part
from giblet.errors import DataError

COLUMNS = ("onset", "duration", "text")


@dataclass(frozen=True, slots=True)
class Segment:
    """One sentence and when it holds, in seconds from the start of its film or of its part."""

    onset_seconds: float
    duration_seconds: float
    text: str

    @property
    def end_seconds(self) -> float:
        """When it stops to hold."""
        return self.onset_seconds + self.duration_seconds


def packaged_annotations() -> list[Segment]:
    """The table for Big Buck Bunny that comes with giblet, in seconds of the whole film."""
    table = resources.files("giblet.data.example") / "annotations.tsv"
    return _parse(table.read_text(encoding="utf-8"), "annotations.tsv")


def read_annotations(path: Path) -> list[Segment]:
    """A table of the same form: tab-separated `onset`, `duration`, `text`. Raises `DataError` naming line and fault."""
    if not path.is_file():
        raise DataError(f"there is no annotation table at {path}", remedy="check the path")
    return _parse(path.read_text(encoding="utf-8"), str(path))


def _parse(table: str, name: str) -> list[Segment]:
    rows = csv.DictReader(table.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    if rows.fieldnames is None or not set(COLUMNS) <= set(rows.fieldnames):
        raise DataError(f"{name} has the columns {rows.fieldnames}", remedy=f"it needs {', '.join(COLUMNS)}")
    segments = [_segment(row, f"{name}, line {number}") for number, row in enumerate(rows, start=2)]
    if not segments:
        raise DataError(f"{name} has no rows", remedy="describe the film in at least one row")
    return sorted(segments, key=lambda segment: segment.onset_seconds)


def _segment(row: dict[str, str], where: str) -> Segment:
    text = (row["text"] or "").strip()
    try:
        onset, duration = float(row["onset"]), float(row["duration"])
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: onset and duration are no numbers", remedy="give both in seconds") from error
    if not text or not math.isfinite(onset) or onset < 0 or not math.isfinite(duration) or duration <= 0:
        raise DataError(
            f"{where}: onset {onset:g} s, duration {duration:g} s, text {text!r}",
            remedy="onset must be at least 0, duration above 0, and the text not empty",
        )
    return Segment(onset, duration, text)


def cut_annotations(segments: list[Segment], part: Part) -> list[Segment]:
    """The segments that a part of the film shows, cut at its ends, in seconds from the part's start."""
    cut = []
    for segment in segments:
        start = max(segment.onset_seconds, part.start_seconds)
        stop = min(segment.end_seconds, part.stop_seconds)
        if stop - start > 1e-3:
            cut.append(Segment(start - part.start_seconds, stop - start, segment.text))
    return cut


def annotations_table(segments: list[Segment]) -> str:
    """The text of a TSV file."""
    rows = [f"{s.onset_seconds:.3f}\t{s.duration_seconds:.3f}\t{s.text}" for s in segments]
    return "\n".join(["\t".join(COLUMNS), *rows]) + "\n"
