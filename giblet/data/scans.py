"""The BOLD of a prepared dataset: each subject's mask, and its scans, cleaned, on the presentations' grids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from giblet.config.schema import BoldConfig
from giblet.data import bold
from giblet.data.bids import find_masks, run_mask
from giblet.data.plan import Plan
from giblet.data.report import array_name
from giblet.data.workspace import Workspace, flush
from giblet.errors import DataError
from giblet.telemetry.logs import get_logger

log = get_logger(__name__)


class Scans:
    """What becomes of the scans of a plan; what the workspace has recorded as done is not done again."""

    def __init__(self, plan: Plan, config: BoldConfig, workspace: Workspace) -> None:
        self._plan, self._config, self._workspace = plan, config, workspace

    def write(self, subject: str, advance: Callable[[int], None]) -> None:
        """A subject's mask, and its BOLD in every presentation that it saw; `advance` hears of volumes done."""
        mask = self._mask(subject)
        for index, presentation in enumerate(self._plan.presentations):
            if subject not in presentation.scans:
                continue
            part, scan = f"bold-{subject}-{index:03d}", presentation.scans[subject].scan
            if not self._workspace.state(part).get("done"):
                trs = presentation.grid.trs
                values = self._workspace.array(array_name(index, f"bold-{subject}"), (trs, mask.voxels), "float32")
                counted = self._workspace.array(array_name(index, f"bold_mask-{subject}"), (trs,), "bool")
                usable = bold.extract(scan, mask, values)
                if not usable.all():
                    log.warning("volumes without information are masked", scan=scan.path, volumes=int((~usable).sum()))
                training = self._plan.training_trs(index)[: scan.volumes]
                bold.clean(values[: scan.volumes], usable, training, float(self._plan.tr), self._config)
                counted[: scan.volumes] = usable
                flush(values, counted)
                self._workspace.record(part, {"done": True, "masked_volumes": int((~usable).sum())})
            advance(presentation.grid.trs)

    def notes(self) -> list[str]:
        """What the manifest says of volumes that could not be used."""
        notes = []
        for index, presentation in enumerate(self._plan.presentations):
            for subject in presentation.scans:
                masked = self._workspace.state(f"bold-{subject}-{index:03d}").get("masked_volumes", 0)
                if masked:
                    notes.append(f"{subject} {presentation.id}: {masked} volumes without information are masked")
        return notes

    def _mask(self, subject: str) -> bold.BrainMask:
        """The subject's brain mask, from training TRs, saved with its affine."""
        scans = {i: p.scans[subject].scan for i, p in enumerate(self._plan.presentations) if subject in p.scans}
        bold.check_same_grid(list(scans.values()))
        first = next(iter(scans.values()))
        path = self._workspace.folder / "masks" / f"{subject}.nii.gz"
        if self._workspace.state(f"mask-{subject}").get("done"):
            return bold.BrainMask(bold.read_mask(path, first), first.affine)
        if self._config.mask is not None:
            mask = bold.BrainMask(bold.read_mask(Path(self._config.mask), first), first.affine)
        else:
            masks = [bold.read_mask(path, first) for path in self._mask_files(subject, list(scans.values()))]
            anatomical = np.logical_and.reduce(masks) if masks else None
            mean = bold.MeanVolume(first.shape)
            for index, scan in scans.items():
                mean.add(scan, self._plan.training_trs(index)[: scan.volumes])
            if not mean.count:
                raise DataError(
                    f"{subject} has no training TRs, so no mask can be made of them",
                    remedy="name other runs in data.split.test_runs, or leave this subject out of data.subjects",
                )
            mask = bold.brain_mask(mean.mean(), first.affine, anatomical)
        path.parent.mkdir(exist_ok=True)
        mask.save(path)
        self._workspace.record(f"mask-{subject}", {"done": True})
        return mask

    def _mask_files(self, subject: str, scans: Sequence[bold.Scan]) -> list[Path]:
        """The runs' own masks if each has one, of which the brain is what all have; else the one anatomical mask."""
        own = [path for scan in scans if (path := run_mask(scan.path)) is not None]
        if len(own) == len(scans):
            return own
        chosen = bold.choose_mask(find_masks(self._plan.bids, subject.removeprefix("sub-")), scans[0])
        return [] if chosen is None else [chosen]
