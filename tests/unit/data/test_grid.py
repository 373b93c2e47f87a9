"""The TR grid: which sample of a film falls into which TR."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from giblet.data.grid import (
    Showing,
    TrGrid,
    check_showings,
    exact,
    overlap_seconds,
    place,
    repeat_last,
    seen_duration,
    stimulus_mask,
)
from giblet.errors import DataError

CODEC = Fraction(1, 75)


def _show(onset, duration):
    return Showing(exact(onset), exact(duration))


def test_defect_7_codec_frames_of_a_tr_of_1_5_s_alternate_without_loss():
    grid = TrGrid(exact(1.5), 400)
    layout = place(grid, [_show(0, 600)], [CODEC])
    assert layout.counts[:4].tolist() == [113, 112, 113, 112]
    assert layout.counts.sum() == 600 * 75
    assert layout.mask(113).sum() == 600 * 75
    times = np.arange(45000) / 75
    assert np.array_equal(layout.placements[0].tr, (times / 1.5 + 1e-9).astype(int))


@pytest.mark.parametrize(("tr", "fps", "skip"), [(1.5, 24, 4), (2.0, 25, 3), (0.8, 30, 1), (1.49, 24, 2), (2.2, 8, 1)])
def test_defect_24_frames_of_a_tr_follow_from_the_film_s_rate(tr, fps, skip):
    grid = TrGrid(exact(tr), 50)
    step = Fraction(skip, fps)
    layout = place(grid, [_show(0, 50 * tr)], [step])
    mine = np.bincount(layout.placements[0].tr, minlength=50)
    times = np.array([float(k * step) for k in range(len(layout.placements[0].tr))])
    assert np.array_equal(mine, np.histogram(times + 1e-9, np.arange(51) * tr)[0])
    assert set(mine) <= {int(tr * fps // skip), int(tr * fps // skip) + 1}


def test_defect_4_a_film_is_offset_and_cut_never_stretched():
    grid = TrGrid(exact(2), 10)
    layout = place(grid, [_show(3, 30)], [Fraction(1, 2)])
    placement = layout.placements[0]
    assert placement.first == 0
    assert placement.tr[0] == 1
    assert placement.slot[:6].tolist() == [0, 1, 0, 1, 2, 3]
    assert placement.stop == (20 - 3) * 2
    before = place(grid, [_show(-5, 30)], [Fraction(1, 2)]).placements[0]
    assert (before.first, before.tr[0], before.slot[0]) == (10, 0, 0)


def test_two_films_in_one_run_share_a_tr_side_by_side():
    grid = TrGrid(exact(2), 6)
    layout = place(grid, [_show(0, 3), _show(3, 5)], [Fraction(1, 2), Fraction(1, 4)])
    assert layout.counts.tolist() == [4, 2 + 4, 8, 8, 0, 0]
    second = layout.placements[1]
    assert (second.tr[0], second.slot[0]) == (1, 2)
    assert stimulus_mask(grid, [_show(0, 3), _show(3, 5)]).tolist() == [True] * 4 + [False] * 2


def test_a_missing_frame_repeats_the_last():
    values = np.array([[1, 2, 0], [3, 0, 0], [0, 0, 0], [4, 5, 6]])
    repeat_last(values, np.array([2, 1, 0, 3]), axis=1)
    assert values.tolist() == [[1, 2, 2], [3, 3, 3], [0, 0, 0], [4, 5, 6]]


def test_events_beyond_the_film_are_refused_and_rounding_is_not():
    with pytest.raises(DataError, match=r"lasts 12 s and the film 10 s"):
        seen_duration(exact(10), exact(12), tr=exact(1.5), where="events")
    assert seen_duration(exact(10), exact(11), tr=exact(1.5), where="events") == 10
    assert seen_duration(exact(10), exact(4), tr=exact(1.5), where="events") == 4
    assert seen_duration(exact(10), None, tr=exact(1.5), where="events") == 10


@pytest.mark.parametrize(
    ("showings", "said"),
    [
        ([_show(0, 22)], "scan lasts 20 s"),
        ([_show(20, 1)], "scan lasts 20 s"),
        ([_show(-5, 4)], "before the first volume"),
        ([_show(0, 5), _show(4, 5)], "before the one before it ends"),
    ],
)
def test_events_beyond_the_scan_or_over_each_other_are_refused(showings, said):
    with pytest.raises(DataError, match=said):
        check_showings(TrGrid(exact(2), 10), showings, where="events.tsv")


def test_an_event_that_ends_within_the_tr_after_the_scan_is_cut():
    check_showings(TrGrid(exact(2), 10), [_show(0, 21.9)], where="events.tsv")


def test_overlap_is_in_seconds():
    shared = overlap_seconds(TrGrid(exact(2), 3), np.array([1.0, 3.5]), np.array([4.5, 9.0]))
    assert shared.tolist() == [[1.0, 0.0], [2.0, 0.5], [0.5, 2.0]]
