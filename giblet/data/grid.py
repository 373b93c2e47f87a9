"""The TR grid of a run: which frame of which film falls into which TR.

A run has its own clock, which starts with its first volume. TR t is the time `[t, t + 1) x TR`. A film starts at its
onset on that clock and is never stretched: what lies outside the scan is cut off. Sample k of a film (a video frame
kept, an EnCodec frame) stands at `onset + k x step`, and belongs to the TR in which it begins. Times are exact
fractions, so 75 codec frames a second at a TR of 1.5 s alternate 113 and 112 without drift.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from giblet.errors import DataError


def exact(seconds: float | str) -> Fraction:
    """Seconds as the decimal number that was written, to a microsecond."""
    return Fraction(str(seconds)).limit_denominator(1_000_000)


@dataclass(frozen=True, slots=True)
class TrGrid:
    """T TRs of `tr` seconds."""

    tr: Fraction
    trs: int

    @property
    def duration(self) -> Fraction:
        """Of the scan, in seconds."""
        return self.tr * self.trs


@dataclass(frozen=True, slots=True)
class Showing:
    """A film on a run's clock, in seconds; `duration` is what is seen of it, before the scan's ends cut it."""

    onset: Fraction
    duration: Fraction


@dataclass(frozen=True, slots=True)
class Placement:
    """Where samples `first … first + n - 1` of a film go: row `tr[i]`, slot `slot[i]`, both int64 (n,)."""

    first: int
    tr: npt.NDArray[np.int64]
    slot: npt.NDArray[np.int64]

    @property
    def stop(self) -> int:
        """One past the last sample."""
        return self.first + len(self.tr)


@dataclass(frozen=True, slots=True)
class Layout:
    """The placement of each showing, and how many samples each TR has: int64 (T,)."""

    placements: tuple[Placement, ...]
    counts: npt.NDArray[np.int64]

    def mask(self, slots: int) -> npt.NDArray[np.bool_]:
        """Which of `slots` slots of each TR are filled: bool (T, slots)."""
        mask: npt.NDArray[np.bool_] = np.arange(slots) < self.counts[:, None]
        return mask


def first_samples(grid: TrGrid, onset: Fraction, step: Fraction) -> npt.NDArray[np.int64]:
    """The first sample k with `onset + k x step >= t x TR`, for t in 0..T: int64 (T + 1,). May be negative."""
    return np.array([math.ceil((t * grid.tr - onset) / step) for t in range(grid.trs + 1)], np.int64)


def place(grid: TrGrid, showings: Sequence[Showing], steps: Sequence[Fraction]) -> Layout:
    """Place the samples of each showing; `steps` has the seconds between samples of each."""
    counts = np.zeros(grid.trs, np.int64)
    placements = []
    for showing, step in zip(showings, steps, strict=True):
        samples = math.ceil(showing.duration / step)
        bounds = np.clip(first_samples(grid, showing.onset, step), 0, samples)
        here = np.diff(bounds)
        rows = np.repeat(np.arange(grid.trs), here)
        slots = np.arange(len(rows)) - np.repeat(np.cumsum(here) - here, here) + counts[rows]
        placements.append(Placement(int(bounds[0]), rows, slots))
        counts = counts + here
    return Layout(tuple(placements), counts)


def overlap_seconds(
    grid: TrGrid, onsets: npt.NDArray[np.float64], ends: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Seconds that each segment `[onset, end)` shares with each TR: float64 (T, segments)."""
    starts = (np.arange(grid.trs) * float(grid.tr))[:, None]
    shared = np.minimum(ends, starts + float(grid.tr)) - np.maximum(onsets, starts)
    result: npt.NDArray[np.float64] = np.maximum(shared, 0.0)
    return result


def stimulus_mask(grid: TrGrid, showings: Sequence[Showing]) -> npt.NDArray[np.bool_]:
    """TRs with a film in them: bool (T,)."""
    seen = np.zeros(grid.trs, np.bool_)
    for showing in showings:
        first = max(math.floor(showing.onset / grid.tr), 0)
        stop = math.ceil((showing.onset + showing.duration) / grid.tr)
        seen[first : max(stop, 0)] = True
    return seen


def seen_duration(film_seconds: Fraction, event_seconds: Fraction | None, *, tr: Fraction, where: str) -> Fraction:
    """How much of a film an event shows.

    A duration up to one TR beyond the film's end is rounding, and cut; beyond that it is an error.
    """
    if event_seconds is None:
        return film_seconds
    if event_seconds > film_seconds + tr:
        raise DataError(
            f"{where}: the event lasts {float(event_seconds):g} s and the film {float(film_seconds):g} s",
            remedy="correct the event's duration, or write n/a for the whole film; a film is never stretched",
        )
    return min(event_seconds, film_seconds)


def check_showings(grid: TrGrid, showings: Sequence[Showing], *, where: str) -> None:
    """Raise `DataError` where a showing runs past the scan or into the next one.

    A showing may run past the scan's end by less than one TR (the scanner stopped within the last volume): the rest
    is cut. A negative onset (the film ran before the first volume) is BIDS, and cut too.
    """
    for showing in showings:
        end = showing.onset + showing.duration
        if end >= grid.duration + grid.tr or showing.onset >= grid.duration:
            raise DataError(
                f"{where}: a film is shown from {float(showing.onset):g} s to {float(end):g} s, and the scan lasts "
                f"{float(grid.duration):g} s ({grid.trs} TRs of {float(grid.tr):g} s)",
                remedy="correct onset and duration in the events table; a film is never stretched to fit a scan",
            )
        if end <= 0:
            raise DataError(
                f"{where}: a film ends {float(-end):g} s before the first volume",
                remedy="remove the event, or correct its onset",
            )
    for earlier, later in itertools.pairwise(showings):
        if later.onset < earlier.onset + earlier.duration:
            raise DataError(
                f"{where}: a film starts at {float(later.onset):g} s, before the one before it ends at "
                f"{float(earlier.onset + earlier.duration):g} s",
                remedy="correct onset and duration in the events table",
            )


def repeat_last(values: npt.NDArray[Any], counts: npt.NDArray[np.int64], *, axis: int) -> None:
    """Fill the slots that a TR lacks with its last sample, in place. `axis` is that of the slots; rows stand first."""
    slots = values.shape[axis]
    moved = np.moveaxis(values, axis, 1)
    for row in np.flatnonzero((counts > 0) & (counts < slots)):
        moved[row, counts[row] :] = moved[row, counts[row] - 1]
