"""What is to be prepared: presentations, their grids and layouts, and the split, before anything is decoded.

Everything that can be known to be wrong from headings and tables is found here, in seconds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from giblet.config.schema import AUDIO_FRAMES_PER_SECOND, DataConfig
from giblet.data import bold
from giblet.data.bids import BidsFolder, RunFiles
from giblet.data.grid import Layout, Showing, TrGrid, check_showings, place, seen_duration
from giblet.data.manifest import Split
from giblet.data.split import Block, Timeline, split_presentations, use_of_trs
from giblet.data.video import Film, probe
from giblet.errors import DataError

CODEC_STEP = Fraction(1, AUDIO_FRAMES_PER_SECOND)


@dataclass(frozen=True, slots=True)
class ScanOfRun:
    """A subject's scan of a presentation."""

    files: RunFiles
    scan: bold.Scan


@dataclass(frozen=True, slots=True)
class PlannedPresentation:
    """One presentation: films `films[i]` shown as `showings[i]`, on `grid`, seen by the subjects of `scans`."""

    id: str
    run: str
    grid: TrGrid
    films: tuple[Path, ...]
    showings: tuple[Showing, ...]
    video: Layout
    audio: Layout
    scans: dict[str, ScanOfRun]


@dataclass(frozen=True, slots=True)
class Plan:
    """All that preparing needs to know."""

    bids: BidsFolder
    tr: Fraction
    films: dict[Path, Film]
    presentations: tuple[PlannedPresentation, ...]
    split: dict[Split, tuple[Block, ...]]
    notes: tuple[str, ...]

    @property
    def video_frames(self) -> int:
        """F: the most frames of any TR."""
        return max(int(presentation.video.counts.max()) for presentation in self.presentations)

    @property
    def audio_frames(self) -> int:
        """A: the most codec frames of any TR."""
        return max(int(presentation.audio.counts.max()) for presentation in self.presentations)

    def training_trs(self, presentation: int) -> npt.NDArray[np.bool_]:
        """Which TRs of a presentation train, bool (T,)."""
        uses = use_of_trs(self.split, presentation, self.presentations[presentation].grid.trs)
        return np.array([use == "train" for use in uses], np.bool_)


def make_plan(folder: BidsFolder, config: DataConfig) -> Plan:
    """Read all headings, check them against each other, and lay films out on TR grids.

    Raises `DataError` for runs of different TR, a shift that would be modelled twice, events beyond film or scan, and
    films without pictures or sound.
    """
    tr = _common_tr(folder.runs)
    check_shift(folder.runs, config)
    films = {film: probe(film) for film in sorted({event.film for run in folder.runs for event in run.events})}
    for film in films.values():
        if not film.has_sound:
            raise DataError(
                f"{film.path} has no sound", remedy="use a film with a sound track; a silent track would do"
            )
    scans = [(run, bold.open_scan(run.bold)) for run in folder.runs]
    _check_header_tr(scans)
    grouped = _group(scans, films)
    presentations = tuple(_plan_presentation(group, films, config) for group in grouped)
    _check_unique(presentations)
    timelines = [
        Timeline(p.id, p.run, p.grid.trs, frozenset(folder.relative(film) for film in p.films)) for p in presentations
    ]
    split, notes = split_presentations(timelines, tr, config.split)
    return Plan(folder, tr, films, presentations, split, tuple(notes))


def check_shift(runs: Sequence[RunFiles], config: DataConfig) -> int:
    """By how many TRs the BOLD was moved before giblet saw it; the sidecars' word, else the configuration's.

    Raises `DataError` where they contradict each other, or a shift meets a haemodynamic model.
    """
    declared = {run.bold_shift_trs for run in runs if run.bold_shift_trs is not None}
    if len(declared) > 1:
        raise DataError(
            f"the sidecars state different BoldShiftTRs: {', '.join(map(str, sorted(declared)))}",
            remedy="prepare the runs that were moved alike",
        )
    shift = declared.pop() if declared else config.bold.shift_trs
    if config.bold.shift_trs not in (0, shift):
        raise DataError(
            f"data.bold.shift_trs is {config.bold.shift_trs}, and the sidecars state BoldShiftTRs {shift}",
            remedy="leave data.bold.shift_trs at 0, so that the sidecars decide",
        )
    if shift and config.hrf.kind != "none":
        raise DataError(
            f"the BOLD was already moved by {shift} TRs, and data.hrf.kind is {config.hrf.kind}: the lag would be "
            "counted twice",
            remedy="set data.hrf.kind to none",
        )
    return shift


def _common_tr(runs: Sequence[RunFiles]) -> Fraction:
    by_tr: dict[Fraction, RunFiles] = {}
    for run in runs:
        by_tr.setdefault(run.tr, run)
    if len(by_tr) > 1:
        listed = ", ".join(f"{float(tr):g} s ({run.bold.name})" for tr, run in sorted(by_tr.items()))
        raise DataError(
            f"the runs have different TRs: {listed}",
            remedy="prepare runs of one TR at a time (data.subjects, data.task); giblet never resamples BOLD",
        )
    return runs[0].tr


def _check_header_tr(scans: Sequence[tuple[RunFiles, bold.Scan]]) -> None:
    """As the BIDS validator does (REPETITION_TIME_MISMATCH), to 1 ms: a wrong one of the two moves every event."""
    for run, scan in scans:
        if scan.header_tr_seconds is not None and abs(scan.header_tr_seconds - float(run.tr)) > 1e-3:
            raise DataError(
                f"{run.bold}: its header has a TR of {scan.header_tr_seconds:g} s, its sidecar a RepetitionTime of "
                f"{float(run.tr):g} s",
                remedy="find out which is true, and correct the other",
            )


_Group = tuple[tuple[Showing, ...], tuple[Path, ...], list[tuple[RunFiles, bold.Scan]]]


def _group(runs: Sequence[tuple[RunFiles, bold.Scan]], films: dict[Path, Film]) -> list[_Group]:
    """Runs that showed the same films at the same onsets, together; a subject's repeats apart."""
    groups: dict[tuple[object, ...], _Group] = {}
    for run, scan in runs:
        where = f"{run.events_file} for {run.bold.name}"
        showings = tuple(
            Showing(e.onset, seen_duration(films[e.film].duration, e.duration, tr=run.tr, where=where))
            for e in run.events
        )
        check_showings(TrGrid(run.tr, scan.volumes), showings, where=where)
        shown = tuple(event.film for event in run.events)
        repeat = 0
        while any(r.subject == run.subject for r, _ in groups.get((shown, showings, repeat), ((), (), []))[2]):
            repeat += 1
        groups.setdefault((shown, showings, repeat), (showings, shown, []))[2].append((run, scan))
    return sorted(groups.values(), key=lambda group: _sort_key(group[2][0][0]))


def _sort_key(run: RunFiles) -> tuple[object, ...]:
    """Sessions and runs in the order of their numbers."""
    parts = re.split(r"(\d+)", f"{run.session}/{run.run}")
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts)


def _plan_presentation(group: _Group, films: dict[Path, Film], config: DataConfig) -> PlannedPresentation:
    showings, shown, runs = group
    first = runs[0][0]
    grid = TrGrid(first.tr, max(scan.volumes for _, scan in runs))
    steps = [config.video.frame_skip / films[film].fps for film in shown]
    return PlannedPresentation(
        id=first.label,
        run=first.run or first.label,
        grid=grid,
        films=shown,
        showings=showings,
        video=place(grid, showings, steps),
        audio=place(grid, showings, [CODEC_STEP] * len(shown)),
        scans={f"sub-{run.subject}": ScanOfRun(run, scan) for run, scan in runs},
    )


def _check_unique(presentations: Sequence[PlannedPresentation]) -> None:
    """Ids name presentations in messages and reports; the same run may have shown other films to other subjects."""
    seen: dict[str, int] = {}
    for presentation in presentations:
        count = seen[presentation.id] = seen.get(presentation.id, 0) + 1
        if count > 1:
            object.__setattr__(presentation, "id", f"{presentation.id}_variant-{count}")
