"""The main job, end to end, as a person runs it: `ci/demo.py --quick`."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest


@pytest.mark.timeout(900)
def test_it_is_killed_once_resumes_and_says_so(demo: tuple[Path, str]) -> None:
    folder, said = demo
    assert "killed with SIGKILL at step" in said
    summary = json.loads((folder / "report/evaluation.json").read_text())
    page = (folder / "report/report.html").read_text()
    assert summary["simulated"] is True
    assert "resumed from the checkpoint of step" in page
    assert "killed" in page
    assert "simulated" in page.lower()


@pytest.mark.timeout(900)
def test_the_checkpoint_in_s3_was_read_back_and_accepted(demo: tuple[Path, str]) -> None:
    folder, said = demo
    assert "SAFE" in said or "verdict=SAFE" in said
    assert "verdict=UNSAFE" not in said
    page = (folder / "report/report.html").read_text()
    assert "every check passed" in page


@pytest.mark.timeout(900)
def test_maps_lie_in_the_space_of_the_mask(demo: tuple[Path, str]) -> None:
    folder, _said = demo
    mask = nib.load(next((folder / "bids").glob("sub-01/anat/*desc-brain_mask.nii.gz")))
    r_map = nib.load(folder / "report/maps/sub-01_desc-modelr_map.nii.gz")
    np.testing.assert_allclose(r_map.affine, mask.affine)
    values = r_map.get_fdata()[mask.get_fdata() > 0]
    assert np.nanmax(np.abs(values)) <= 1.0
    assert np.nanstd(values) > 0
