"""What is written down of the network beside the network itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from giblet.errors import ConfigError
from giblet.models.build import meta_model
from giblet.models.dimensions import Dimensions
from giblet.models.norm import BatchNorm, LinearBeforeBatchNorm
from giblet.models.structure import Structure
from tests.support.training import small_config

width = st.integers(1, 40)


@settings(max_examples=60, deadline=None)
@given(
    dimensions=st.builds(Dimensions, *[st.integers(1, 5)] * 7),
    norm=st.sampled_from(["batch", "layer"]),
    audio=st.sampled_from(["regress", "classify"]),
    hrf=st.sampled_from(["none", "convolve", "fir"]),
    taps=st.integers(1, 20),
    widths=st.fixed_dictionaries(
        {"bottleneck": width, "voxel_hidden": width}
        | {
            name: st.lists(width, min_size=count, max_size=count)
            for name, count in {
                "video_hidden": 3, "audio_hidden": 2, "text_hidden": 2, "encoder_hidden": 2, "decoder_hidden": 4,
                "video_decoder_hidden": 2, "audio_decoder_hidden": 2, "text_decoder_hidden": 2,
            }.items()
        }
    ),
)  # fmt: skip
def test_it_is_the_model_s_for_every_configuration(dimensions, norm, audio, hrf, taps, widths):
    config = small_config(model={**widths, "norm": norm, "audio_objective": audio}, data={"hrf": {"kind": hrf}})
    model = meta_model(config, dimensions, hrf_kernel=torch.ones(taps))
    found = Structure(config, dimensions, hrf_taps=taps)
    wanted = [(name, tuple(v.shape), str(v.dtype)) for name, v in model.state_dict().items()]
    assert [(one.name, one.shape, f"torch.{one.dtype}") for one in found.tensors.values()] == wanted
    assert found.parameters == [name for name, _ in model.named_parameters()]
    assert found.still == {
        f"{name}.bias"
        for name, module in model.named_modules()
        if isinstance(module, LinearBeforeBatchNorm) or (isinstance(module, BatchNorm) and module.shift_removed)
    }


def test_learned_kernels_have_no_shape_without_a_tr():
    config = small_config(data={"hrf": {"kind": "fir"}})
    with pytest.raises(ConfigError, match="depend on the TR"):
        Structure(config, Dimensions(1, 1, 1, 1, 1, 1, 1))
