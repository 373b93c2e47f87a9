"""NIfTI files whose bytes depend on nothing but their content: no time stamps, written whole or not at all."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

SCAN_STEP = 0.25
"""Intensity of one integer step of a scan; its noise is some forty times that."""
_COMPRESSION = 1


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _gzipped(path: Path) -> Iterator[gzip.GzipFile]:
    with (
        _replacing(path) as partial,
        partial.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=_COMPRESSION, mtime=0) as stream,
    ):
        yield stream


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    with _replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_mask(path: Path, mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> None:
    """A mask of 0 and 1, uint8."""
    _write(path, iter([mask]), _header(mask.shape, np.uint8, affine))


def write_map(
    path: Path, values: NDArray[np.floating[Any]], mask: NDArray[np.bool_], affine: NDArray[np.float64]
) -> None:
    """A float32 volume with `values` (V,) in the mask, 0 elsewhere."""
    _write(path, iter([_unmasked(values, mask)]), _header(mask.shape, np.float32, affine))


def write_series(
    path: Path,
    values: NDArray[np.floating[Any]],
    mask: NDArray[np.bool_],
    affine: NDArray[np.float64],
    tr_seconds: float,
) -> None:
    """`values` (T, V) in the mask, 0 elsewhere, as int16 with one scale: the error is under 1/65000 of the largest."""
    step = float(np.abs(values).max(initial=0.0)) / 32767 or 1.0

    header = _header((*mask.shape, len(values)), np.int16, affine, tr_seconds, step)
    _write(path, (_unmasked(row, mask) for row in values), header)


def write_scan(
    path: Path,
    volumes: Iterator[NDArray[np.floating[Any]]],
    shape: tuple[int, ...],
    affine: NDArray[np.float64],
    tr_seconds: float,
) -> None:
    """A BOLD run of intensities, `volumes` one after the other, int16 in steps of `SCAN_STEP`."""
    _write(path, volumes, _header(shape, np.int16, affine, tr_seconds, SCAN_STEP))


def _unmasked(values: NDArray[np.floating[Any]], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    volume = np.zeros(mask.shape, np.float32)
    volume[mask] = values
    return volume


def _header(
    shape: tuple[int, ...],
    dtype: type[np.generic],
    affine: NDArray[np.float64],
    tr_seconds: float = 0.0,
    step: float = 1.0,
) -> Any:
    """A NIfTI-1 header in MNI space, little-endian, data right after it."""
    header: Any = nibabel.Nifti1Header(endianness="<")  # type: ignore[no-untyped-call]
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_sform(affine, code="mni")
    header.set_qform(affine, code="mni")
    header.set_xyzt_units("mm", "sec")
    header.set_zooms((*np.sqrt((affine[:3, :3] ** 2).sum(axis=0)), *([tr_seconds] if len(shape) > 3 else [])))
    header.set_slope_inter(step, 0.0)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    return header


def _write(path: Path, volumes: Iterator[NDArray[Any]], header: Any) -> None:
    """The header, then a volume at a time: the first axis runs fastest, time slowest."""
    dtype = header.get_data_dtype()
    with _gzipped(path) as stream:
        stream.write(header.binaryblock)
        stream.write(b"\0" * 4)
        for volume in volumes:
            if dtype == np.int16:
                limits = np.iinfo(np.int16)
                volume = np.clip(np.rint(volume / float(header["scl_slope"])), limits.min, limits.max)
            stream.write(volume.astype(dtype).tobytes(order="F"))
