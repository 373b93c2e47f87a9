"""Per-voxel results as NIfTI images, in the space and with the affine of the subject's mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
from numpy.typing import NDArray

from giblet.errors import DataError

nifti_image = cast(Any, nibabel.Nifti1Image)


class MaskSpace:
    """A subject's mask: which voxel of the volume is which column of the data (C order, as nilearn and numpy index)."""

    def __init__(self, path: Path, voxels: int) -> None:
        self.image = cast(Any, nibabel.load(path))
        self.mask: NDArray[np.bool_] = np.asarray(self.image.get_fdata(dtype=np.float32)) > 0
        if int(self.mask.sum()) != voxels:
            raise DataError(
                f"{path} has {int(self.mask.sum())} voxels, the dataset {voxels}",
                remedy="prepare the dataset again with `giblet prepare`",
            )

    def image_of(self, values: NDArray[Any]) -> Any:
        """A NIfTI image of (V,) values; NaN where a voxel has none, and outside the mask."""
        volume = np.full(self.mask.shape, np.nan, dtype=np.float32)
        volume[self.mask] = values
        return nifti_image(volume, self.image.affine)

    def values_of(self, image: Any) -> NDArray[np.float32]:
        """(V,) values of an image on the same grid, (V,T) of a 4D one.

        Raises `DataError` if its shape or affine differ.
        """
        if image.shape[:3] != self.mask.shape or not np.allclose(image.affine, self.image.affine, atol=1e-3):
            raise DataError(
                f"{image.get_filename()} is on another grid ({image.shape[:3]}) than the mask ({self.mask.shape})",
                remedy="resample it to the mask's grid and affine",
            )
        return np.asarray(np.asarray(image.dataobj, dtype=np.float32)[self.mask])


def save_maps(space: MaskSpace, maps: dict[str, NDArray[Any]], folder: Path, subject: str) -> list[Path]:
    """Write `<subject>_desc-<name>_map.nii.gz` for each map (V,); returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, values in maps.items():
        path = folder / f"{subject}_desc-{name}_map.nii.gz"
        nibabel.save(space.image_of(values), path)
        paths.append(path)
    return paths
