"""What giblet finds in a BIDS folder.

Recognised, below the folder:

- scans: `sub-*/[ses-*/]func/sub-*_task-*[_run-*]…_bold.nii[.gz]`, one for each subject, session and run of the task;
- sidecars: `*_bold.json` at the root, the subject, the session or beside the scan, by BIDS inheritance (the nearer
  overrides): `RepetitionTime` in seconds, required; `BoldShiftTRs`, by how many TRs the BOLD was already moved earlier;
- events: `*_events.tsv`, the nearest by the same inheritance: `onset`, `duration`, `stim_file` relative to `stimuli/`.
  Rows that show no film (`n/a`, pictures, button presses) are passed over; a duration of `n/a` means the film's own;
- words: a table of the film's name and `.tsv` beside the film: `onset`, `duration`, `text`, on the film's clock;
- masks: `…_desc-brain_mask.nii[.gz]` beside `…_desc-preproc_bold.nii[.gz]` where every run has one (fMRIPrep), else
  `sub-*/[ses-*/]anat/*_desc-brain_mask.nii[.gz]`, else the same under `derivatives/*/`, else
  `*desc-brain_mask.nii[.gz]` at the root, which is everybody's;
- `dataset_description.json`: `Simulated: true` where the brain is made up.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from giblet.data.grid import exact
from giblet.errors import DataError

FILM_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts", ".wmv",
     ".ogv", ".flv"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FilmEvent:
    """A film shown in a run: `onset` on the run's clock, `duration` None where the table says n/a. Seconds."""

    film: Path
    onset: Fraction
    duration: Fraction | None


@dataclass(frozen=True, slots=True)
class RunFiles:
    """One scan and all that belongs to it."""

    subject: str
    session: str
    run: str
    task: str
    bold: Path
    events_file: Path
    events: tuple[FilmEvent, ...]
    tr: Fraction
    bold_shift_trs: int | None
    metadata_files: tuple[Path, ...]

    @property
    def label(self) -> str:
        """Names the run among the subject's."""
        parts = [f"ses-{self.session}" if self.session else "", f"task-{self.task}"]
        parts.append(f"run-{self.run}" if self.run else "")
        return "_".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Annotation:
    """Words on the film's clock, in seconds."""

    onset: float
    duration: float
    text: str


@dataclass(frozen=True, slots=True)
class BidsFolder:
    """The runs of one task, sorted by subject, session and run."""

    root: Path
    task: str
    runs: tuple[RunFiles, ...]
    simulated: bool

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subject labels without `sub-`, sorted."""
        return tuple(sorted({run.subject for run in self.runs}))

    def relative(self, path: Path) -> str:
        """A path as it goes into a manifest: relative to the folder where it lies in it, else its name.

        A link counts under its own name: DataLad keeps each file behind one, and its target's name is a checksum.
        """
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name


def find_runs(root: str | Path, task: str | None = None, subjects: tuple[str, ...] | None = None) -> BidsFolder:
    """Find the runs of a task. Raises `DataError` for whatever is missing or contradicts itself."""
    folder = Path(root).resolve()
    if not folder.is_dir():
        raise DataError(f"there is no folder {root}", remedy="point data.bids at a BIDS folder")
    scans = sorted(
        path
        for pattern in ("sub-*/func/*_bold.nii*", "sub-*/ses-*/func/*_bold.nii*")
        for path in folder.glob(pattern)
        if path.name.endswith((".nii", ".nii.gz"))
    )
    if not scans:
        raise DataError(
            f"{folder} holds no BOLD scans: nothing matches sub-*/[ses-*/]func/*_bold.nii.gz",
            remedy="point data.bids at the top of a BIDS folder",
        )
    task = _choose_task(folder, scans, task)
    scans = [path for path in scans if _entities(path).get("task") == task]
    scans = _choose_subjects(folder, scans, subjects)
    seen: dict[tuple[str, str, str], Path] = {}
    for path in scans:
        entities = _entities(path)
        key = (entities["sub"], entities.get("ses", ""), entities.get("run", ""))
        if key in seen:
            raise DataError(
                f"two scans of the same run: {seen[key]} and {path}",
                remedy="keep one of them in the folder, for instance one space or one echo",
            )
        seen[key] = path
    runs = tuple(_read_run(folder, seen[key]) for key in sorted(seen))
    description = folder / "dataset_description.json"
    simulated = bool(_read_json(description).get("Simulated", False)) if description.exists() else False
    return BidsFolder(folder, task, runs, simulated)


def annotation_file(film: Path) -> Path | None:
    """The table of words beside a film, if there is one."""
    path = film.with_suffix(".tsv")
    return path if path.exists() or path.is_symlink() else None


def check_readable(path: Path) -> Path:
    """The path, which has to be a file that may be read. Raises `DataError` with the reason where it is not."""
    if path.is_symlink() and not path.exists():
        raise DataError(
            f"{path} is a link to {path.readlink()}, which is not here",
            remedy="fetch the content (DataLad: `datalad get`), or correct the link",
        )
    if not path.is_file():
        raise DataError(f"there is no file {path}", remedy="put it there, or correct the path")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path} may not be read by this user", remedy="correct its permissions")
    return path


def read_annotations(path: Path) -> list[Annotation]:
    """The words of a film, in the order of their onsets; rows without words are passed over.

    Raises `DataError` where a column is missing, or a time is no number or negative.
    """
    rows = []
    for line, row in _read_table(path, ("onset", "duration", "text")):
        text = (row["text"] or "").strip()
        if not text or text == "n/a":
            continue
        onset, duration = (_number(path, line, name, row[name]) for name in ("onset", "duration"))
        if duration is None or onset is None or duration < 0 or onset < 0:
            raise DataError(
                f"{path} line {line}: words need an onset and a duration of at least 0, found onset {row['onset']!r} "
                f"and duration {row['duration']!r}",
                remedy="correct the row, or leave its text empty",
            )
        rows.append(Annotation(float(onset), float(duration), text))
    return sorted(rows, key=lambda row: (row.onset, row.duration, row.text))


def run_mask(bold: Path) -> Path | None:
    """fMRIPrep's brain mask of one run, which lies beside the scan and on its grid."""
    found = bold.with_name(bold.name.replace("_desc-preproc_bold.nii", "_desc-brain_mask.nii"))
    return found if found != bold and found.exists() else None


def find_masks(folder: BidsFolder, subject: str) -> list[Path]:
    """Candidates for a subject's anatomical brain mask, from the nearest place that has any."""
    names = [f"{where}anat/*_desc-brain_mask.nii{zipped}" for where in ("", "ses-*/") for zipped in ("", ".gz")]
    places = [
        [f"sub-{subject}/{name}" for name in names],
        [f"derivatives/*/sub-{subject}/{name}" for name in names],
        ["*desc-brain_mask.nii", "*desc-brain_mask.nii.gz"],
    ]
    for patterns in places:
        found = sorted(path for pattern in patterns for path in folder.root.glob(pattern))
        if found:
            return found
    return []


def _choose_task(folder: Path, scans: list[Path], task: str | None) -> str:
    tasks = sorted({_entities(path)["task"] for path in scans if "task" in _entities(path)})
    if task is None and len(tasks) == 1:
        return tasks[0]
    if task in tasks:
        return str(task)
    said = "data.task is not set" if task is None else f"data.task is {task!r}"
    raise DataError(f"{said}; {folder} has the tasks {', '.join(tasks) or 'none'}", remedy="set data.task to one")


def _choose_subjects(folder: Path, scans: list[Path], subjects: tuple[str, ...] | None) -> list[Path]:
    if subjects is None:
        return scans
    there = {_entities(path)["sub"] for path in scans}
    missing = sorted(set(subjects) - there)
    if missing or not subjects:
        raise DataError(
            f"data.subjects names {', '.join(missing) or 'nobody'}; {folder} has {', '.join(sorted(there))}",
            remedy="name only subjects that are there (without sub-), or leave data.subjects out for all",
        )
    return [path for path in scans if _entities(path)["sub"] in subjects]


def _read_run(root: Path, bold: Path) -> RunFiles:
    entities = _entities(bold)
    sidecars = _inherited(root, bold, "_bold.json")
    metadata: dict[str, Any] = {}
    for path in sidecars:
        metadata.update(_read_json(path))
    tables = _inherited(root, bold, "_events.tsv")
    if not tables:
        raise DataError(
            f"{bold} has no events table", remedy="add *_events.tsv with onset, duration and stim_file, see BIDS"
        )
    return RunFiles(
        subject=entities["sub"],
        session=entities.get("ses", ""),
        run=entities.get("run", ""),
        task=entities["task"],
        bold=bold,
        events_file=tables[-1],
        events=_read_events(root, tables[-1]),
        tr=_repetition_time(bold, sidecars, metadata),
        bold_shift_trs=_shift(bold, metadata),
        metadata_files=tuple(sidecars),
    )


def _repetition_time(bold: Path, sidecars: list[Path], metadata: dict[str, Any]) -> Fraction:
    value = metadata.get("RepetitionTime")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 60:
        read = ", ".join(path.name for path in sidecars) or "none"
        raise DataError(
            f"{bold}: RepetitionTime is {'missing' if value is None else repr(value)} (sidecars read: {read})",
            remedy="state RepetitionTime in seconds (above 0, below 60) in the scan's JSON sidecar",
        )
    return exact(value)


def _shift(bold: Path, metadata: dict[str, Any]) -> int | None:
    value = metadata.get("BoldShiftTRs")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise DataError(f"{bold}: BoldShiftTRs is {value!r}", remedy="state whole TRs, 0 or more, in the JSON sidecar")
    return value


def _read_events(root: Path, path: Path) -> tuple[FilmEvent, ...]:
    events = []
    for line, row in _read_table(path, ("onset", "duration", "stim_file")):
        name = (row["stim_file"] or "").strip()
        if Path(name).suffix.lower() not in FILM_SUFFIXES:
            continue
        onset, duration = (_number(path, line, column, row[column]) for column in ("onset", "duration"))
        if onset is None or (duration is not None and duration < 0):
            raise DataError(
                f"{path} line {line}: onset {row['onset']!r}, duration {row['duration']!r}",
                remedy="a film needs an onset in seconds, and a duration of at least 0 or n/a",
            )
        film = Path(os.path.normpath(root / "stimuli" / name.removeprefix("stimuli/")))
        if not film.exists() and not film.is_symlink():
            raise DataError(
                f"{path} line {line} shows {name!r}, and there is no {film}",
                remedy="put the film under stimuli/, or correct stim_file",
            )
        events.append(FilmEvent(film, onset, duration))
    if not events:
        raise DataError(
            f"{path} shows no film: no stim_file ends in one of {', '.join(sorted(FILM_SUFFIXES))}",
            remedy="name the film of each showing in stim_file, relative to stimuli/",
        )
    return tuple(sorted(events, key=lambda event: event.onset))


def _entities(path: Path) -> dict[str, str]:
    stem = path.name.split(".", 1)[0]
    return dict(part.split("-", 1) for part in stem.split("_") if "-" in part)


def _inherited(root: Path, bold: Path, ending: str) -> list[Path]:
    """Files of BIDS inheritance, the farthest first: their entities are a subset of the scan's."""
    wanted = _entities(bold)
    folders = [folder for folder in reversed(bold.parents) if folder.is_relative_to(root)]
    found = []
    for folder in folders:
        matching = [
            path
            for path in folder.iterdir()
            if (path.name.endswith(ending) or path.name == ending[1:])
            and all(wanted.get(key) == value for key, value in _entities(path).items())
        ]
        found += sorted(matching, key=lambda path: (len(_entities(path)), path.name))
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(check_readable(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}", remedy="correct the file") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a JSON object", remedy="correct the file")
    return content


def _read_table(path: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """Rows of a TSV with their line numbers, from 1 for the heading; empty lines are passed over."""
    try:
        text = check_readable(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}", remedy="save the table as UTF-8 text") from error
    reader = csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE, restval="")
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise DataError(
            f"{path} lacks the column {', '.join(missing)}; it has {', '.join(reader.fieldnames or ()) or 'none'}",
            remedy="separate columns by tabs and name them in the first line",
        )
    try:
        return [(reader.line_num, row) for row in reader if any((row[name] or "").strip() for name in columns)]
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: {error}", remedy="save it as a tab-separated table") from error


def _number(path: Path, line: int, column: str, text: str) -> Fraction | None:
    """A time in seconds, None for n/a."""
    text = (text or "").strip()
    if text in ("n/a", ""):
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path} line {line}: {column} is {text!r}", remedy="write seconds, or n/a")
    return exact(value)
