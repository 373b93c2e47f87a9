"""BOLD from NIfTI to voxels by TRs: a brain mask, drift removed and z-scored within each run.

A scan is read volume by volume, so memory does not grow with its length. Nothing that is fitted sees TRs that do not
train: the mask comes from the mean of training TRs; rows that train are detrended, high-passed and scaled by fits to
training rows of their own run alone. Rows that do not train use a fit to all rows of their run, since drift can only be
removed where it was seen. Volumes without information (all voxels equal, or a copy of the volume before) are masked.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from giblet.config.schema import BoldConfig
from giblet.errors import DataError

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
AFFINE_TOLERANCE_MM = 1e-2
VOXELS_AT_ONCE = 4096
CHUNK = 1 << 20
DAMAGE = (OSError, EOFError, ValueError, zlib.error)
"""What reading a file that is cut off or damaged raises."""


@dataclass(frozen=True, slots=True)
class Scan:
    """A 4-D image's heading: `shape` of a volume, and how many there are.

    `header_tr_seconds`: the time between volumes as the image has it; None where it says nothing believable (no unit,
    or the 1 that programs write who do not know).
    """

    path: Path
    shape: tuple[int, int, int]
    volumes: int
    affine: npt.NDArray[np.float64]
    header_tr_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class BrainMask:
    """Which voxels are brain, bool (X, Y, Z), with the affine they live under."""

    inside: Mask
    affine: npt.NDArray[np.float64]

    @property
    def voxels(self) -> int:
        """V_s."""
        return int(self.inside.sum())

    def save(self, path: Path) -> None:
        """Write it as uint8 `.nii.gz`; equal masks are equal bytes."""
        image = nibabel.Nifti1Image(self.inside.astype(np.uint8), self.affine)  # type: ignore[no-untyped-call]
        path.write_bytes(gzip.compress(image.to_bytes(), mtime=0))


def open_scan(path: Path) -> Scan:
    """Read a scan's heading. Raises `DataError` unless it is a readable 4-D image."""
    image = _load(path)
    if len(image.shape) != 4 or image.shape[3] < 2:
        raise DataError(
            f"{path} has the shape {image.shape}; BOLD has four axes, the last of them time",
            remedy="use the 4-D time series",
        )
    kind = image.get_data_dtype()
    if kind.kind not in "iuf":
        raise DataError(f"{path} holds {kind}; BOLD is a real number a voxel", remedy="convert it to float32")
    return Scan(path, image.shape[:3], image.shape[3], np.asarray(image.affine, np.float64), _header_tr(image.header))


def _header_tr(header: Any) -> float | None:
    try:
        unit = header.get_xyzt_units()[1]
    except KeyError:  # a code that NIfTI does not know
        return None
    seconds = float(header.get_zooms()[3]) * {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}.get(unit, 0.0)
    return seconds if 0.05 <= seconds < 60 and seconds != 1.0 else None


def volumes(scan: Scan) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the volumes in turn, float32 (X, Y, Z). Raises `DataError` where the file ends too early."""
    proxy = _load(scan.path).dataobj
    size = math.prod(scan.shape) * proxy.dtype.itemsize
    slope, inter = np.float32(proxy.slope), np.float32(proxy.inter)
    try:
        with nibabel.openers.ImageOpener(str(scan.path)) as file:
            file.seek(proxy.offset)
            for index in range(scan.volumes):
                content = file.read(size)
                if len(content) != size:
                    raise EOFError(f"it ends within volume {index} of {scan.volumes}")
                volume = np.frombuffer(content, proxy.dtype).reshape(scan.shape, order="F").astype(np.float32)
                yield volume if slope == 1 and inter == 0 else volume * slope + inter
            while file.read(CHUNK):  # gzip compares its checksum at the very end
                pass
    except DAMAGE as error:
        raise DataError(f"{scan.path} is truncated or damaged: {error}", remedy="copy the scan again") from error


def check_same_grid(scans: Sequence[Scan]) -> None:
    """Raise `DataError` unless a subject's scans have one shape and one affine."""
    first = scans[0]
    for scan in scans[1:]:
        _check_grid(scan.path, scan.shape, scan.affine, first.path, first.shape, first.affine)


def read_mask(path: Path, scan: Scan) -> Mask:
    """An anatomical mask, bool (X, Y, Z). Raises `DataError` where it lies on another grid than the scan."""
    image = _load(path)
    _check_grid(path, image.shape, image.affine, scan.path, scan.shape, scan.affine)
    try:
        inside = np.asarray(image.dataobj) > 0.5
    except (*DAMAGE, TypeError) as error:
        raise DataError(f"the mask {path} cannot be read: {error}", remedy="copy the mask again") from error
    if not inside.any():
        raise DataError(f"the mask {path} is empty", remedy="use a mask whose brain voxels are 1")
    return inside


def choose_mask(paths: Sequence[Path], scan: Scan) -> Path | None:
    """Of several candidates the one on the scan's grid; of one, that one. Raises `DataError` where it is not clear."""
    if len(paths) < 2:
        return paths[0] if paths else None
    fitting = [path for path in paths if _same_grid(_load(path), scan)]
    if len(fitting) == 1:
        return fitting[0]
    raise DataError(
        f"{len(fitting)} of the masks {', '.join(map(str, paths))} have the shape and affine of {scan.path}",
        remedy="name the mask in data.bold.mask, or keep one",
    )


def brain_mask(mean: npt.NDArray[np.float32], affine: Array, anatomical: Mask | None) -> BrainMask:
    """Brain = anatomical ∩ EPI, the latter from a mean of training volumes (nilearn's intensity histogram).

    Without an anatomical mask, opening and the largest component (nilearn's defaults) do what it would: drop what is
    bright and not brain. Raises `DataError` where nothing is left.
    """
    from nilearn.masking import compute_epi_mask  # takes seconds to import

    image = nibabel.Nifti1Image(np.nan_to_num(mean), affine)  # type: ignore[no-untyped-call]
    alone = anatomical is None
    try:
        epi = compute_epi_mask(image, opening=2 if alone else False, connected=alone, ensure_finite=True)
        inside = np.asarray(epi.dataobj) > 0
    except (ValueError, TypeError) as error:
        raise DataError(f"no brain was found in the mean BOLD image: {error}", remedy="set data.bold.mask") from error
    inside = inside if anatomical is None else inside & anatomical
    if not inside.any():
        raise DataError("the anatomical and the EPI mask have no voxel in common", remedy="check that they are aligned")
    return BrainMask(inside, np.asarray(affine, np.float64))


class MeanVolume:
    """The mean of chosen volumes of several scans; NaN counts as 0, so that it never makes a brain."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._sum = np.zeros(shape, np.float64)
        self.count = 0

    def add(self, scan: Scan, chosen: Mask) -> None:
        """Add the volumes where `chosen` bool (T,) is True."""
        last = int(np.flatnonzero(chosen)[-1]) if chosen.any() else -1
        for index, volume in zip(range(last + 1), volumes(scan), strict=False):
            if chosen[index]:
                self._sum += np.nan_to_num(volume, posinf=0, neginf=0)
                self.count += 1

    def mean(self) -> npt.NDArray[np.float32]:
        """float32 (X, Y, Z)."""
        return (self._sum / max(self.count, 1)).astype(np.float32)


def extract(scan: Scan, mask: BrainMask, out: Array) -> Mask:
    """Write the brain's voxels into `out` float32 (T, V_s); returns which volumes carry information, bool (T,).

    Raises `DataError` for a voxel in the brain that is not finite, and where most of a scan is constant.
    """
    usable = np.ones(scan.volumes, np.bool_)
    before: Array | None = None
    for index, volume in enumerate(volumes(scan)):
        row = volume[mask.inside]
        bad = ~np.isfinite(row)
        if bad.any():
            where = tuple(int(axis[np.flatnonzero(bad)[0]]) for axis in np.nonzero(mask.inside))
            raise DataError(
                f"{scan.path} volume {index}: {int(bad.sum())} of {mask.voxels} brain voxels are NaN or infinite, the "
                f"first at {where}",
                remedy="repair the scan, or give a mask in data.bold.mask that leaves these voxels out",
            )
        usable[index] = row.min() < row.max() if mask.voxels > 1 else True
        if before is not None and mask.voxels > 1 and np.array_equal(row, before):
            usable[index] = False
        before = row
        out[index] = row
    if usable.sum() < max(scan.volumes / 2, 3):
        raise DataError(
            f"{scan.path}: {int((~usable).sum())} of {scan.volumes} volumes carry no information (all brain voxels "
            "equal, or a copy of the volume before)",
            remedy="use the whole scan; a padded tail shorter than half of it is masked and passed over",
        )
    return usable


def clean(bold: Array, usable: Mask, training: Mask, tr_seconds: float, config: BoldConfig) -> None:
    """Remove drift and z-score in place, `bold` float32 (T, V_s) of one run.

    Rows in `training` by a fit to usable training rows, all others by a fit to all usable rows. Rows that are not
    usable become 0, as do voxels that do not vary.
    """
    design = drift_design(len(bold), tr_seconds, config)
    fits = [(usable & training, training), (usable, ~training)]
    for start in range(0, bold.shape[1], VOXELS_AT_ONCE):
        columns = slice(start, start + VOXELS_AT_ONCE)
        raw = bold[:, columns].astype(np.float64)
        for fitted, rows in fits:
            if rows.any() and fitted.any():
                bold[rows, columns] = _cleaned(raw, design, fitted, config.standardize)[rows]
        bold[~usable, columns] = 0


def drift_design(trs: int, tr_seconds: float, config: BoldConfig) -> npt.NDArray[np.float64]:
    """Drift regressors (T, columns): a constant, a line if asked, cosines below the cut-off if asked."""
    columns = [np.ones(trs)]
    if config.detrend:
        columns.append(np.linspace(-1, 1, trs))
    if config.high_pass_hz > 0:
        from nilearn.signal import create_cosine_drift  # takes seconds to import

        columns += list(create_cosine_drift(config.high_pass_hz, np.arange(trs) * tr_seconds).T[:-1])
    return np.stack(columns, axis=1)


def _cleaned(raw: Array, design: Array, fitted: Mask, standardize: bool) -> Array:
    weights, *_ = np.linalg.lstsq(design[fitted], raw[fitted], rcond=None)
    residual = raw - design @ weights
    if not standardize:
        return residual
    deviation = residual[fitted].std(axis=0, ddof=1)
    scale = np.abs(raw[fitted]).max(axis=0)
    varies = deviation > 1e-6 * np.maximum(scale, 1e-30)
    return np.where(varies, residual / np.where(varies, deviation, 1), 0)


def _load(path: Path) -> Any:
    try:
        return nibabel.load(path)
    except FileNotFoundError:
        raise DataError(f"there is no file {path}", remedy="correct the path") from None
    except (nibabel.filebasedimages.ImageFileError, *DAMAGE) as error:
        raise DataError(f"{path} cannot be read as NIfTI: {error}", remedy="copy the file again") from error


def _same_grid(image: Any, scan: Scan) -> bool:
    return tuple(image.shape[:3]) == scan.shape and np.allclose(image.affine, scan.affine, atol=AFFINE_TOLERANCE_MM)


def _check_grid(
    path: Path, shape: tuple[int, ...], affine: Array, other: Path, other_shape: tuple[int, ...], other_affine: Array
) -> None:
    if tuple(shape) != tuple(other_shape):
        raise DataError(
            f"{path} has the shape {tuple(shape)}, {other} has {tuple(other_shape)}",
            remedy="bring them to one grid, for instance with nilearn.image.resample_to_img",
        )
    if not np.allclose(affine, other_affine, atol=AFFINE_TOLERANCE_MM):
        raise DataError(
            f"{path} and {other} have the same shape and different affines (by up to "
            f"{np.abs(np.asarray(affine) - np.asarray(other_affine)).max():g}): they are not aligned",
            remedy="bring them to one grid, for instance with nilearn.image.resample_to_img",
        )
