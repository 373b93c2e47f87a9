"""The data set as a whole: BIDS, the same bytes from the same seed, and never half taken for whole."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from giblet.data.example import ExampleSummary, brain, nifti, write_example
from giblet.errors import ConfigError, DataError, OutOfSpaceError
from tests.support.example_film import frame_numbers, hashed_words, write_film, write_table


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sources")
    return {
        "film_path": write_film(folder / "made.mp4", 36),
        "annotations_path": write_table(folder / "made.tsv", 36),
        "embed": hashed_words,
        "resolution_mm": 8,
        "subjects": 2,
    }


@pytest.fixture(scope="module")
def written(sources: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> ExampleSummary:
    return write_example(tmp_path_factory.mktemp("bids") / "example", **sources)


def _files(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def test_every_run_has_scan_sidecar_events_and_stimulus(written: ExampleSummary) -> None:
    for subject in ("sub-01", "sub-02"):
        for run in (1, 2, 3):
            stem = written.path / subject / "func" / f"{subject}_task-bigbuckbunny_run-{run}"
            sidecar = json.loads(Path(f"{stem}_bold.json").read_text())
            image = nibabel.load(f"{stem}_bold.nii.gz")
            assert sidecar["RepetitionTime"] == pytest.approx(image.header.get_zooms()[3])
            assert image.shape[3] == written.trs[run - 1] == sidecar["NumberOfVolumes"]
            assert sidecar["TaskName"] == "bigbuckbunny"
            (event,) = _rows(Path(f"{stem}_events.tsv"))
            stimulus = written.path / "stimuli" / event["stim_file"]
            assert stimulus.is_file()
            times = [time for time, _ in frame_numbers(stimulus)]
            assert float(event["duration"]) == pytest.approx(times[-1] + 1 / 24, abs=0.01)
            scan_seconds = image.shape[3] * sidecar["RepetitionTime"]
            assert scan_seconds >= float(event["onset"]) + float(event["duration"]) + 12
            for row in _rows(stimulus.with_suffix(".tsv")):
                assert 0 <= float(row["onset"]) < float(event["duration"])
                assert row["text"]


def test_runs_begin_at_different_onsets(written: ExampleSummary) -> None:
    events = sorted((written.path / "sub-01" / "func").glob("*_events.tsv"))
    assert [float(_rows(path)[0]["onset"]) for path in events] == [6.0, 7.2, 9.3]


def test_every_page_says_simulated(written: ExampleSummary) -> None:
    pages = [*written.path.rglob("*_bold.json"), *written.path.rglob("dataset_description.json")]
    pages += [written.path / name for name in ("README", "participants.json", "participants.tsv", "CHANGES")]
    assert len(pages) == 6 + 2 + 4
    assert all("simulated" in page.read_text().lower() for page in pages)
    assert all("Blender" not in (written.path / name).read_text() for name in ("README", "LICENSE"))


def test_masks_maps_and_scans_share_one_grid(written: ExampleSummary) -> None:
    mask = nibabel.load(written.path / "sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    inside = np.asarray(mask.dataobj) > 0
    assert inside.sum() == written.brain_voxels
    for path in written.path.rglob("*.nii.gz"):
        image = nibabel.load(path)
        np.testing.assert_array_equal(image.affine, mask.affine)
        assert image.shape[:3] == mask.shape
        assert np.isfinite(np.asarray(image.dataobj)).all()
    scan = nibabel.load(next((written.path / "sub-01" / "func").glob("*run-1_bold.nii.gz"))).get_fdata()
    assert 850 < scan[inside].mean() < 1250
    assert scan[~inside].mean() < 40
    assert 0.003 < (scan[inside].std(axis=1) / scan[inside].mean(axis=1)).mean() < 0.04


def _filtered(path: Path, grey: np.ndarray) -> np.ndarray:
    series = nibabel.load(path).get_fdata()[grey].T
    return brain.remove_drift(series, brain.drift_basis(len(series), 1.5))


def test_the_true_signal_predicts_the_scan_as_well_as_the_ceiling_says(written: ExampleSummary) -> None:
    truth = written.path / "derivatives" / "simulation"
    for subject in ("sub-01", "sub-02"):
        grey = nibabel.load(written.path / subject / "anat" / f"{subject}_label-GM_mask.nii.gz").get_fdata() > 0
        task = f"{subject}_task-bigbuckbunny"
        ceiling = nibabel.load(truth / subject / f"{task}_desc-ceiling_map.nii.gz").get_fdata()[grey]
        found = []
        for run in (1, 2, 3):
            signal = _filtered(truth / subject / f"{task}_run-{run}_desc-truesignal_bold.nii.gz", grey)
            scan = _filtered(written.path / subject / "func" / f"{task}_run-{run}_bold.nii.gz", grey)
            baseline = nibabel.load(written.path / subject / "func" / f"{task}_run-{run}_bold.nii.gz")
            scan /= baseline.get_fdata()[grey].mean(axis=1)
            found.append((signal, scan))
        signal, scan = (np.concatenate(parts) for parts in zip(*found, strict=True))
        responsive = ceiling > 0
        norm = np.sqrt((signal**2).sum(axis=0) * (scan**2).sum(axis=0))[responsive]
        correlation = (signal * scan).sum(axis=0)[responsive] / norm
        assert correlation.mean() == pytest.approx(ceiling[responsive].mean(), abs=0.03)
        assert np.corrcoef(correlation, ceiling[responsive])[0, 1] > 0.4
        assert not signal[:, ~responsive].any()


def test_the_same_seed_writes_the_same_bytes(written: ExampleSummary, sources: dict[str, Any], tmp_path: Path) -> None:
    assert _files(write_example(tmp_path / "again", **sources).path) == _files(written.path)


def test_another_seed_writes_another_brain(written: ExampleSummary, sources: dict[str, Any], tmp_path: Path) -> None:
    other = _files(write_example(tmp_path / "other", **{**sources, "seed": 1, "subjects": 1}).path)
    here = _files(written.path)
    scans = [name for name in other if name.endswith("_bold.nii.gz")]
    assert len(scans) == 6
    assert all(other[name] != here[name] for name in scans)


def test_a_complete_data_set_is_left_alone_and_an_incomplete_one_finished(
    sources: dict[str, Any], tmp_path: Path
) -> None:
    first = write_example(tmp_path / "example", **{**sources, "subjects": 1})
    before = _files(first.path)
    times = {path: path.stat().st_mtime_ns for path in first.path.rglob("*")}
    assert write_example(first.path, **{**sources, "subjects": 1}).reused
    assert times == {path: path.stat().st_mtime_ns for path in first.path.rglob("*")}
    scan = next(first.path.rglob("*run-2_bold.nii.gz"))
    scan.write_bytes(scan.read_bytes()[:-100])
    assert not write_example(first.path, **{**sources, "subjects": 1}).reused
    assert _files(first.path) == before


def test_an_interrupted_one_is_not_taken_for_whole(
    sources: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(brain, "draw_subject", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_example(tmp_path / "example", **{**sources, "subjects": 1})
    assert not list((tmp_path / "example").rglob("simulation.json"))
    assert not write_example(tmp_path / "example", **{**sources, "subjects": 1}).reused
    assert list((tmp_path / "example").rglob("simulation.json"))
    assert not list((tmp_path / "example").rglob("*partial*"))
    assert not list((tmp_path / "example").rglob("unfinished.json"))


def test_other_settings_in_the_same_folder_are_refused(written: ExampleSummary, sources: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"other settings \(seed\)"):
        write_example(written.path, **{**sources, "seed": 5})


def test_a_folder_with_something_else_is_refused(sources: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="holds no example data set"):
        write_example(tmp_path, **sources)


def test_another_film_needs_a_table_of_its_own(sources: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--annotations"):
        write_example(tmp_path / "example", **{**sources, "annotations_path": None})
    assert not (tmp_path / "example").exists()


def test_all_faulty_settings_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"resolution_mm is 7.*subjects is 0.*minutes is 0"):
        write_example(tmp_path / "example", resolution_mm=7, subjects=0, minutes=0)


def test_a_full_disk_is_said_and_leaves_nothing_that_looks_whole(
    sources: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nifti, "write_scan", full)
    with pytest.raises(OutOfSpaceError, match="unfinished"):
        write_example(tmp_path / "example", **{**sources, "subjects": 1})
    assert not list((tmp_path / "example").rglob("simulation.json"))
