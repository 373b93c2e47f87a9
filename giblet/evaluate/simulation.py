"""What a simulated data set keeps beside its scans: the true signal, and the ceiling that follows from it.

Layout, as `giblet example` writes it: `derivatives/simulation/<sub>/<sub>_task-*_run-<run>_desc-truesignal_bold.nii.gz`
and `…_desc-ceiling_map.nii.gz`. Nothing of it is ever an input to training or to the baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
from numpy.typing import NDArray

from giblet.evaluate.maps import MaskSpace


@dataclass(frozen=True)
class Simulation:
    """The truth of a simulated data set, in `folder`."""

    folder: Path

    @staticmethod
    def beside(bids: Path | None) -> Simulation | None:
        """The simulation's derivatives in a BIDS folder, or None if there are none."""
        folder = None if bids is None else bids / "derivatives" / "simulation"
        return Simulation(folder) if folder is not None and folder.is_dir() else None

    def signal(self, subject: str, run: str, space: MaskSpace, trs: int) -> NDArray[np.float32] | None:
        """True signal (T,V) of a run, unfiltered; None where it is not there or has another length."""
        image = self._image(subject, run, "truesignal", "bold")
        if image is None or image.shape[3] != trs:
            return None
        return np.ascontiguousarray(space.values_of(image).T)

    def ceiling(self, subject: str, run: str, space: MaskSpace) -> NDArray[np.float64] | None:
        """Expected ceiling (V,) of a run, free of sampling noise; 0 in voxels without signal."""
        image = self._image(subject, run, "ceiling", "map")
        return None if image is None else np.nan_to_num(space.values_of(image).astype(np.float64))

    def _image(self, subject: str, run: str, description: str, suffix: str) -> Any:
        for path in sorted((self.folder / subject).glob(f"{subject}_task-*_desc-{description}_{suffix}.nii.gz")):
            entities = dict(part.split("-", 1) for part in path.name.split("_") if "-" in part)
            if entities.get("run", "").lstrip("0") == run.lstrip("0"):
                return cast(Any, nibabel.load(path))
        return None
