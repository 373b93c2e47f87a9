"""What is found in a BIDS folder, and what is refused."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction

import numpy as np
import pytest

from giblet.config.schema import BoldConfig, HrfConfig, SplitConfig
from giblet.data.bids import find_masks, find_runs
from giblet.data.plan import make_plan
from giblet.data.split import Timeline, split_presentations, use_of_trs
from giblet.errors import DataError
from tests.support.bids import make_bids, make_bold, save_bold, tiny_config, write_events
from tests.support.media import make_film


@pytest.fixture
def bids(tmp_path):
    return make_bids(tmp_path / "bids", trs=60, tr_seconds=3.0, film_seconds=4)


def _func(root, subject="01", run="1", ending="bold.nii.gz"):
    return root / f"sub-{subject}" / "func" / f"sub-{subject}_task-movie_run-{run}_{ending}"


def _plan(root, **changes):
    return make_plan(find_runs(root), tiny_config(root, root / "cache", **changes))


def test_runs_are_found_with_their_sidecars_events_and_masks(bids):
    folder = find_runs(bids)
    assert folder.subjects == ("01", "02")
    assert [(r.subject, r.run) for r in folder.runs] == [("01", "1"), ("01", "2"), ("02", "1"), ("02", "2")]
    assert folder.runs[0].tr == 3
    assert folder.runs[0].events[0].film == (bids / "stimuli" / "film1.mp4").resolve()
    assert folder.simulated
    assert [path.name for path in find_masks(folder, "02")] == ["sub-02_desc-brain_mask.nii.gz"]


def test_the_nearer_sidecar_overrides(bids):
    _func(bids, ending="bold.json").write_text(json.dumps({"RepetitionTime": 2.5}))
    trs = {(r.subject, r.run): r.tr for r in find_runs(bids).runs}
    assert trs[("01", "1")] == Fraction(5, 2)
    assert trs[("01", "2")] == 3


def test_events_are_inherited_too(bids):
    for subject in ("01", "02"):
        _func(bids, subject, "1", "events.tsv").unlink()
    write_events(bids / "task-movie_run-1_events.tsv", [(1.5, "n/a", "film2.mp4")])
    run = find_runs(bids).runs[0]
    assert (run.events[0].onset, run.events[0].duration) == (Fraction(3, 2), None)


def test_rows_without_a_film_are_passed_over(bids):
    write_events(_func(bids, ending="events.tsv"), [(0, 1, "n/a"), (1, 4, "film1.mp4"), (7, 1, "face.png")])
    assert len(find_runs(bids).runs[0].events) == 1


def test_subjects_who_saw_the_same_share_one_presentation(bids):
    plan = _plan(bids)
    assert [(p.id, sorted(p.scans)) for p in plan.presentations] == [
        ("task-movie_run-1", ["sub-01", "sub-02"]),
        ("task-movie_run-2", ["sub-01", "sub-02"]),
    ]


def test_another_onset_is_another_presentation(bids):
    write_events(_func(bids, "02", "1", "events.tsv"), [(2, 4, "film1.mp4")])
    plan = _plan(bids)
    assert [sorted(p.scans) for p in plan.presentations] == [["sub-01"], ["sub-02"], ["sub-01", "sub-02"]]
    assert len({p.id for p in plan.presentations}) == 3


def test_defect_3_each_run_has_its_own_clock(bids):
    for subject in ("01", "02"):
        write_events(_func(bids, subject, "2", "events.tsv"), [(9, 4, "film2.mp4")])
    first, second = _plan(bids).presentations
    assert first.video.placements[0].tr[0] == 0
    assert second.video.placements[0].tr[0] == 3


def test_a_sidecar_without_repetition_time_is_refused(bids):
    (bids / "task-movie_bold.json").write_text(json.dumps({"TaskName": "movie"}))
    with pytest.raises(DataError, match="RepetitionTime is missing"):
        find_runs(bids)
    (bids / "task-movie_bold.json").write_text(json.dumps({"RepetitionTime": 1500}))
    with pytest.raises(DataError, match="RepetitionTime is 1500"):
        find_runs(bids)


def test_runs_of_different_tr_are_refused(bids):
    _func(bids, "02", "2", "bold.json").write_text(json.dumps({"RepetitionTime": 2.0}))
    with pytest.raises(DataError, match=r"different TRs: 2 s .*, 3 s"):
        _plan(bids)


def test_events_that_run_past_the_film_are_refused(bids):
    write_events(_func(bids, ending="events.tsv"), [(0, 30, "film1.mp4")])
    with pytest.raises(DataError, match="the event lasts 30 s and the film 4"):
        _plan(bids)


def test_events_that_run_past_the_scan_are_refused(bids):
    write_events(_func(bids, ending="events.tsv"), [(181, 4, "film1.mp4")])
    with pytest.raises(DataError, match="the scan lasts 180 s"):
        _plan(bids)


def test_a_film_without_sound_is_refused(bids):
    make_film(bids / "stimuli" / "film2.mp4", seconds=4, sound=False)
    with pytest.raises(DataError, match=r"film2\.mp4 has no sound"):
        _plan(bids)


def test_a_film_that_is_not_there_is_refused(bids):
    (bids / "stimuli" / "film2.mp4").unlink()
    with pytest.raises(DataError, match=r"line 2 shows 'film2\.mp4', and there is no"):
        find_runs(bids)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda b: _func(b, ending="events.tsv").unlink(), "no events table"),
        (lambda b: _func(b, ending="events.tsv").write_text("onset\tduration\n0\t1\n"), "lacks the column stim_file"),
        (lambda b: write_events(_func(b, ending="events.tsv"), [("soon", 4, "film1.mp4")]), "onset is 'soon'"),
        (lambda b: write_events(_func(b, ending="events.tsv"), [(0, 4, "face.png")]), "shows no film"),
        (lambda b: (b / "task-movie_bold.json").write_text("{"), "is not JSON"),
        (lambda b: save_bold(_func(b, ending="space-x_bold.nii.gz"), make_bold(5)), "two scans of the same run"),
    ],
)
def test_a_damaged_folder_is_refused_with_the_file_s_name(bids, spoil, said):
    spoil(bids)
    with pytest.raises(DataError, match=said):
        find_runs(bids)


def test_a_folder_that_is_no_bids_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        find_runs(tmp_path / "absent")
    with pytest.raises(DataError, match="holds no BOLD scans"):
        find_runs(tmp_path)


def test_task_and_subjects_must_exist(bids):
    with pytest.raises(DataError, match="has the tasks movie"):
        find_runs(bids, task="rest")
    with pytest.raises(DataError, match="names 09"):
        find_runs(bids, subjects=("01", "09"))
    save_bold(bids / "sub-01/func/sub-01_task-rest_bold.nii.gz", make_bold(5))
    with pytest.raises(DataError, match=r"data\.task is not set"):
        find_runs(bids)
    assert find_runs(bids, task="movie", subjects=("02",)).subjects == ("02",)


def test_defect_2_a_shift_and_a_haemodynamic_model_are_refused_together(bids):
    (bids / "task-movie_bold.json").write_text(json.dumps({"RepetitionTime": 3.0, "BoldShiftTRs": 3}))
    with pytest.raises(DataError, match=r"already moved by 3 TRs, and data\.hrf\.kind is convolve"):
        _plan(bids)
    assert _plan(bids, hrf=HrfConfig(kind="none")).presentations
    with pytest.raises(DataError, match="sidecars state BoldShiftTRs 3"):
        _plan(bids, hrf=HrfConfig(kind="none"), bold=BoldConfig(shift_trs=2))


def _timelines(*trs, films=None):
    return [
        Timeline(f"task-movie_run-{i}", str(i), t, frozenset({(films or {}).get(i, f"film{i}.mp4")}))
        for i, t in enumerate(trs, 1)
    ]


def test_defect_18_blocks_are_contiguous_with_gaps_and_the_last_run_tests():
    split, notes = split_presentations(_timelines(133, 133, 132), Fraction(3, 2), SplitConfig())
    assert split["test"] == ((2, 0, 132),)
    assert split["train"] == ((0, 0, 93), (1, 0, 93))
    assert split["validation"] == ((0, 113, 133), (1, 113, 133))
    assert not notes
    uses = use_of_trs(split, 0, 133)
    assert uses.count(None) * 1.5 >= 30


@pytest.mark.parametrize("tr", ["0.8", "1.5", "2", "2.7"])
def test_gaps_are_never_shorter_than_asked(tr):
    split, _ = split_presentations(_timelines(300), Fraction(tr), SplitConfig(gap_seconds=31))
    blocks = sorted((first, end) for blocks in split.values() for _, first, end in blocks)
    assert len(blocks) == 3
    for (_, end), (first, _) in itertools.pairwise(blocks):
        assert (first - end) * float(tr) >= 31
    assert np.isclose(sum(e - f for f, e in blocks) + 2 * np.ceil(31 / float(tr)), 300)


def test_named_runs_test_whatever_their_zeros():
    split, _ = split_presentations(_timelines(133, 133, 132), Fraction(3, 2), SplitConfig(test_runs=("01",)))
    assert split["test"] == ((0, 0, 133),)
    with pytest.raises(DataError, match="the runs are 1, 2, 3"):
        split_presentations(_timelines(133, 133, 132), Fraction(3, 2), SplitConfig(test_runs=("4",)))


def test_a_film_seen_in_training_and_test_is_noted():
    _, notes = split_presentations(_timelines(133, 133, films={1: "a", 2: "a"}), Fraction(3, 2), SplitConfig())
    assert "training runs show too: a" in notes[0]


def test_a_run_too_short_to_split_is_refused():
    with pytest.raises(DataError, match="too short to be split"):
        split_presentations(_timelines(40), Fraction(3, 2), SplitConfig())
