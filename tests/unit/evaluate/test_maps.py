"""NIfTI maps: every value comes back from its own voxel, with the mask's affine."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from giblet.errors import DataError
from giblet.evaluate.maps import MaskSpace, save_maps

AFFINE = np.array([[-4.0, 0, 0, 90], [0, 4, 0, -126], [0, 0, 4, -72], [0, 0, 0, 1]])


def mask_file(folder: Path) -> tuple[Path, np.ndarray]:
    inside = np.random.default_rng(0).random((6, 5, 4)) > 0.6
    path = folder / "mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(inside.astype(np.uint8), AFFINE), path)
    return path, inside


def test_round_trip(tmp_path: Path):
    path, inside = mask_file(tmp_path)
    space = MaskSpace(path, int(inside.sum()))
    values = np.arange(inside.sum(), dtype=np.float32) / 7
    values[3] = np.nan
    (saved,) = save_maps(space, {"modelr": values}, tmp_path / "maps", "sub-01")
    assert saved.name == "sub-01_desc-modelr_map.nii.gz"
    image = nibabel.load(saved)
    np.testing.assert_array_equal(image.affine, AFFINE)
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(image.dataobj)[inside], values)
    assert np.isnan(np.asarray(image.dataobj)[~inside]).all()
    np.testing.assert_array_equal(space.values_of(image), values)


def test_order_of_voxels_is_that_of_the_prepared_bold(tmp_path: Path):
    """`volume[mask]`, as preparation reads scans."""
    path, inside = mask_file(tmp_path)
    volume = np.random.default_rng(1).normal(size=inside.shape).astype(np.float32)
    space = MaskSpace(path, int(inside.sum()))
    back = np.asarray(space.image_of(volume[inside]).dataobj)
    np.testing.assert_array_equal(back[inside], volume[inside])


def test_another_grid_is_refused(tmp_path: Path):
    path, inside = mask_file(tmp_path)
    space = MaskSpace(path, int(inside.sum()))
    shifted = AFFINE.copy()
    shifted[0, 3] += 4
    with pytest.raises(DataError, match="another grid"):
        space.values_of(nibabel.Nifti1Image(np.zeros(inside.shape, np.float32), shifted))
    with pytest.raises(DataError, match="voxels"):
        MaskSpace(path, int(inside.sum()) + 1)
