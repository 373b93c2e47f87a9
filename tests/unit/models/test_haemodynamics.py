"""The lag in the BOLD head against numpy: causal, within a segment, once."""

import numpy as np
import pytest
import torch

from giblet.data.hrf import canonical_kernel, convolve_causal
from giblet.models import MultimodalAutoencoder
from tests.support.model import SMALL, inputs

KERNEL = torch.tensor(canonical_kernel(1.5, 6.0), dtype=torch.float32)


def build(hrf, **changes):
    torch.manual_seed(0)
    model = MultimodalAutoencoder(**{**SMALL, **changes}, hrf=hrf, hrf_kernel=None if hrf == "none" else KERNEL).eval()
    with torch.no_grad():
        model.encoder.bottleneck_to_voxels[4].bias.normal_()
    return model


def expected_bold(model, segments, trs, mask=None):
    """Convolve what the same network predicts row by row, without its bias, segment by segment."""
    bias = model.encoder.bottleneck_to_voxels[4].bias.detach().numpy()
    levels = model(*inputs(segments * trs))["predicted_fmri"].detach().numpy() - bias
    if mask is not None:
        levels[~mask] = 0
    parts = levels.reshape(segments, trs, -1)
    return np.concatenate([convolve_causal(part, KERNEL.numpy().astype(float)) for part in parts]) + bias


@pytest.mark.parametrize("voxels", [9, 40], ids=["output narrower", "hidden narrower"])
@pytest.mark.parametrize("hrf", ["convolve", "fir"])
def test_bold_is_convolved_within_each_segment(hrf, voxels):
    model = build(hrf, voxels=voxels)
    found = model(*inputs(12), trs=6)["predicted_fmri"].detach().numpy()
    np.testing.assert_allclose(found, expected_bold(model, 2, 6), rtol=1e-4, atol=1e-5)


def test_rows_before_a_run_count_as_nothing():
    model = build("convolve", voxels=40)
    mask = np.ones(12, bool)
    mask[:3] = mask[10:] = False
    found = model(*inputs(12), trs=6, row_mask=torch.from_numpy(mask))["predicted_fmri"].detach().numpy()
    np.testing.assert_allclose(found, expected_bold(model, 2, 6, mask), rtol=1e-4, atol=1e-5)


def test_no_lag_means_no_lag_and_a_row_on_its_own_has_no_past():
    for hrf in ("none", "convolve", "fir"):
        model = build(hrf)
        plain = model(*inputs(12))["predicted_fmri"]
        assert torch.equal(plain, build("none")(*inputs(12), trs=6)["predicted_fmri"])


def test_only_bold_lags():
    model = build("convolve")
    rows, segments = model(*inputs(12)), model(*inputs(12), trs=6)
    for name in ("bottleneck", "video_recon", "audio_recon", "text_recon"):
        assert torch.equal(rows[name], segments[name])


def test_rows_that_are_not_decoded_change_nothing_else():
    model = build("convolve")
    real = torch.ones(12, dtype=torch.bool)
    real[:2] = False
    wanted = real & (torch.arange(12) % 6 > 2)
    for mask in (real, None):
        whole = model(*inputs(12), trs=6, row_mask=mask)
        some = model(*inputs(12), trs=6, row_mask=mask, decode_mask=wanted)
        for name, value in whole.items():
            rows = slice(None) if name in ("bottleneck", "predicted_fmri") else wanted
            torch.testing.assert_close(some[name], value[rows], rtol=1e-5, atol=1e-5)


def test_kernels_are_learned_per_voxel_and_start_canonical():
    model = build("fir")
    kernels = dict(model.named_parameters())["encoder.bottleneck_to_voxels.hrf_kernel"]
    assert torch.equal(kernels, KERNEL.repeat(9, 1))
    model(*inputs(12), trs=6)["predicted_fmri"].square().sum().backward()
    assert kernels.grad.abs().amin(0).gt(0).all()


def test_a_model_without_a_kernel_says_so():
    model = MultimodalAutoencoder(**SMALL, hrf="convolve").eval()
    with pytest.raises(ValueError, match="built without hrf_kernel"):
        model(*inputs(12), trs=6)
    with pytest.raises(ValueError, match="'fir' needs hrf_kernel"):
        MultimodalAutoencoder(**SMALL, hrf="fir")
