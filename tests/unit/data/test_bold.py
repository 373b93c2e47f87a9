"""BOLD from NIfTI to voxels by TRs."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from nilearn import signal

from giblet.config.schema import BoldConfig
from giblet.data import bold
from giblet.errors import DataError
from tests.support.bids import AFFINE, SHAPE, ball, make_bold, save_bold


@pytest.fixture
def data():
    return make_bold(60)


def _scan(tmp_path, data, affine=AFFINE, name="bold.nii.gz"):
    save_bold(tmp_path / name, data, affine)
    return bold.open_scan(tmp_path / name)


def _extract(scan, inside=None):
    mask = bold.BrainMask(ball() if inside is None else inside, AFFINE)
    out = np.zeros((scan.volumes, mask.voxels), np.float32)
    return out, bold.extract(scan, mask, out)


def test_volumes_are_nibabel_s(tmp_path, data):
    scan = _scan(tmp_path, data)
    assert np.array_equal(np.stack(list(bold.volumes(scan)), -1), data)
    image = nibabel.Nifti1Image(data.astype(np.int16), AFFINE)
    image.header.set_slope_inter(0.5, 3)
    nibabel.save(image, tmp_path / "scaled.nii")
    wanted = nibabel.load(tmp_path / "scaled.nii").get_fdata()
    assert np.allclose(np.stack(list(bold.volumes(bold.open_scan(tmp_path / "scaled.nii"))), -1), wanted, atol=1e-3)


def test_columns_are_the_mask_s_voxels_in_order(tmp_path, data):
    out, usable = _extract(_scan(tmp_path, data))
    assert np.array_equal(out, data[ball()].T)
    assert usable.all()


@pytest.mark.parametrize(
    ("detrend", "high_pass_hz", "standardize"),
    [(True, 0.01, True), (True, 0.02, False), (False, 0.01, True), (True, 0, True)],
)
def test_cleaning_equals_nilearn_s_where_all_rows_train(detrend, high_pass_hz, standardize):
    rng = np.random.default_rng(0)
    raw = (500 + np.linspace(0, 30, 120)[:, None] + rng.normal(size=(120, 9))).astype(np.float32)
    mine, everything = raw.copy(), np.ones(120, bool)
    config = BoldConfig(detrend=detrend, high_pass_hz=high_pass_hz, standardize=standardize)
    bold.clean(mine, everything, everything, 1.5, config)
    wanted = signal.clean(
        raw.astype(float),
        detrend=detrend,
        filter="cosine" if high_pass_hz else False,
        high_pass=high_pass_hz or None,
        t_r=1.5,
        standardize="zscore_sample" if standardize else None,
        standardize_confounds=True,
    )
    if not standardize:
        wanted = wanted - wanted.mean(0)
    # nilearn removes the mean and the drifts in turn, we at once: they differ by the cosines' overlap with the line
    assert np.abs(mine - wanted).max() < (1e-3 if standardize else 1e-2)


def test_defect_18_rows_that_do_not_train_change_nothing_that_trains():
    rng = np.random.default_rng(1)
    raw = (100 + rng.normal(size=(120, 7))).astype(np.float32)
    training, usable = np.arange(120) < 70, np.ones(120, bool)
    first, second = raw.copy(), raw.copy()
    second[~training] = second[~training] * 5 + 1000
    bold.clean(first, usable, training, 1.5, BoldConfig())
    bold.clean(second, usable, training, 1.5, BoldConfig())
    assert np.array_equal(first[training], second[training])
    assert np.allclose(first[training].mean(0), 0, atol=1e-5)
    assert np.allclose(first[training].std(0, ddof=1), 1, atol=1e-5)


def test_rows_that_do_not_train_are_cleaned_by_their_whole_run():
    raw = (100 + np.random.default_rng(1).normal(size=(120, 7))).astype(np.float32)
    training, usable = np.arange(120) < 70, np.ones(120, bool)
    held_out, part = raw.copy(), raw.copy()
    bold.clean(held_out, usable, np.zeros(120, bool), 1.5, BoldConfig())
    bold.clean(part, usable, training, 1.5, BoldConfig())
    assert np.array_equal(part[~training], held_out[~training])


def test_a_voxel_that_does_not_vary_is_zero():
    raw = np.full((50, 2), 7.5, np.float32)
    raw[:, 1] += np.random.default_rng(0).normal(size=50)
    bold.clean(raw, np.ones(50, bool), np.arange(50) < 30, 2.0, BoldConfig())
    assert not raw[:, 0].any()
    assert raw[:, 1].any()


@pytest.mark.parametrize("fill", ["zero", "constant", "repeat"])
def test_a_constant_tail_is_masked_out_and_not_fitted(tmp_path, data, fill):
    filled = data.copy()
    filled[..., -7:] = {"zero": 0, "constant": 500, "repeat": data[..., -8:-7]}[fill]
    out, usable = _extract(_scan(tmp_path, filled))
    assert usable.tolist() == [True] * 53 + [False] * 7
    shorter, longer = out[:53].copy(), out.copy()
    bold.clean(longer, usable, np.ones(60, bool), 1.5, BoldConfig(high_pass_hz=0))
    bold.clean(shorter, usable[:53], np.ones(53, bool), 1.5, BoldConfig(high_pass_hz=0))
    assert np.allclose(longer[:53], shorter, atol=1e-4)
    assert not longer[53:].any()


def test_a_scan_that_is_mostly_constant_is_refused(tmp_path, data):
    data[..., 20:] = 0
    with pytest.raises(DataError, match="40 of 60 volumes carry no information"):
        _extract(_scan(tmp_path, data))


def test_nan_in_the_brain_is_refused_with_its_place(tmp_path, data):
    data[4, 4, 3, 17] = np.nan
    with pytest.raises(
        DataError, match=r"volume 17: 1 of \d+ brain voxels are NaN or infinite, the first at \(4, 4, 3"
    ):
        _extract(_scan(tmp_path, data))


def test_nan_outside_the_brain_is_nothing(tmp_path, data):
    data[0, 0, 0] = np.nan
    out, usable = _extract(_scan(tmp_path, data))
    assert usable.all()
    assert np.isfinite(out).all()


def test_a_scan_of_the_wrong_shape_is_refused(tmp_path, data):
    save_bold(tmp_path / "flat.nii.gz", data[..., 0])
    with pytest.raises(DataError, match="BOLD has four axes"):
        bold.open_scan(tmp_path / "flat.nii.gz")


def test_a_truncated_scan_is_refused(tmp_path, data):
    for name in ("a.nii", "a.nii.gz"):
        save_bold(tmp_path / name, data)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
        with pytest.raises(DataError, match=r"a\.nii"):
            list(bold.volumes(bold.open_scan(tmp_path / name)))
    (tmp_path / "b.nii.gz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read as NIfTI"):
        bold.open_scan(tmp_path / "b.nii.gz")


def test_a_mask_on_another_grid_is_refused(tmp_path, data):
    scan = _scan(tmp_path, data)
    nibabel.save(nibabel.Nifti1Image(ball((9, 8, 8)).astype(np.uint8), AFFINE), tmp_path / "shape.nii.gz")
    with pytest.raises(DataError, match=r"shape \(9, 8, 8\)"):
        bold.read_mask(tmp_path / "shape.nii.gz", scan)
    moved = AFFINE.copy()
    moved[0, 3] = 4
    nibabel.save(nibabel.Nifti1Image(ball().astype(np.uint8), moved), tmp_path / "affine.nii.gz")
    with pytest.raises(DataError, match="different affines"):
        bold.read_mask(tmp_path / "affine.nii.gz", scan)
    with pytest.raises(DataError, match="different affines"):
        bold.check_same_grid([scan, _scan(tmp_path, data, moved, "moved.nii.gz")])


def test_of_several_masks_the_one_on_the_scan_s_grid_is_taken(tmp_path, data):
    scan = _scan(tmp_path, data)
    paths = [tmp_path / "t1.nii.gz", tmp_path / "bold_grid.nii.gz"]
    nibabel.save(nibabel.Nifti1Image(ball((18, 16, 14)).astype(np.uint8), AFFINE / 2), paths[0])
    nibabel.save(nibabel.Nifti1Image(ball().astype(np.uint8), AFFINE), paths[1])
    assert bold.choose_mask(paths, scan) == paths[1]
    assert bold.choose_mask([], scan) is None
    with pytest.raises(DataError, match="0 of the masks"):
        bold.choose_mask([paths[0], paths[0]], scan)


def test_defect_19_the_mask_is_anatomical_and_epi_not_the_whole_box(tmp_path):
    data = make_bold(20)
    data[2:4, :, :, :] = np.random.default_rng(0).normal(20, 2, data[2:4].shape)  # no signal in part of the brain
    mean = data.mean(-1)
    wanted = ball().copy()
    wanted[2:4] = False
    mask = bold.brain_mask(mean, AFFINE, ball())
    assert np.array_equal(mask.inside, wanted)
    bright_skull = make_bold(20).mean(-1)
    bright_skull[0, 0, 0] = 2000
    assert not bold.brain_mask(bright_skull, AFFINE, ball()).inside[0, 0, 0]
    mask.save(tmp_path / "mask.nii.gz")
    image = nibabel.load(tmp_path / "mask.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj) > 0, wanted)
    assert np.array_equal(image.affine, AFFINE)


def test_without_an_anatomical_mask_the_brain_is_found_all_the_same():
    shape = (24, 26, 22)
    brain = ball(shape, 8)
    volume = np.random.default_rng(0).normal(20, 2, shape) + 1000 * brain
    inside = bold.brain_mask(volume.astype(np.float32), AFFINE, None).inside
    assert (inside & brain).sum() / (inside | brain).sum() > 0.9


def test_the_mask_s_mean_is_of_chosen_volumes_only(tmp_path, data):
    data[1, 1, 1, 3] = np.nan
    scan = _scan(tmp_path, data)
    mean = bold.MeanVolume(SHAPE)
    chosen = np.arange(60) < 20
    mean.add(scan, chosen)
    assert mean.count == 20
    assert np.allclose(mean.mean(), np.nan_to_num(data[..., :20]).mean(-1), rtol=1e-5)
