"""What the tensors of a model must look like, written down without the model and without torch. For verification.

Nothing here touches a checkpoint: it is the independent side of the comparison. Tests hold it against the model itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from giblet.config import GibletConfig
from giblet.errors import ConfigError
from giblet.models.dimensions import CODE_FEATURES, CODES, Dimensions, resolve_dimensions


class ExpectedTensor(NamedTuple):
    """A tensor of the state dict: name, global shape, dtype as in `torch.float32` without the prefix."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Structure:
    """The state dict of a configuration's model, in its order.

    `still`: parameters whose gradient is structurally zero, so that they stay as initialised and AdamW's moments stay
    zero. They are shifts that a batch norm right behind them subtracts again. `hrf_taps`: K of a kernel at the TR;
    without it a model of `data.hrf.kind` `fir` has no shape (`ConfigError`).
    """

    def __init__(
        self, config: GibletConfig, dimensions: Dimensions | None = None, *, hrf_taps: int | None = None
    ) -> None:
        self.tensors: dict[str, ExpectedTensor] = {}
        self.parameters: list[str] = []
        self.still: set[str] = set()
        self._batch = config.model.norm == "batch"
        self._begin_zero: set[str] = set()
        widths = resolve_dimensions(config, dimensions)
        self._encoder(config, widths)
        self._voxel_head(config, widths.voxels, hrf_taps)
        self._decoder(config, widths)

    def zero(self, trained_steps: int = 1) -> set[str]:
        """Entries that may be all zero in a healthy model after so many optimizer steps.

        - Biases that start at zero and have no gradient (`still` ones of the decoder and the bottleneck's).
        - `decoder.layer8.1.running_mean`: the batch mean of the bottleneck is its norm's bias, zero, and layer 8 adds a
          zero bias to it.
        - Before the first step everything that starts at zero.
        """
        mean = {"decoder.layer8.1.running_mean"} if self._batch else set()
        return (self.still & self._begin_zero) | mean | (self._begin_zero if trained_steps == 0 else set())

    def _encoder(self, config: GibletConfig, widths: Dimensions) -> None:
        model = config.model
        inputs = {
            "video": (widths.video_frames * widths.video_height * widths.video_width * 3, model.video_hidden),
            "audio": (widths.audio_codebooks * widths.audio_frames, model.audio_hidden),
            "text": (widths.text_dimension, model.text_hidden),
        }
        for kind, (first, hidden) in inputs.items():
            for index, (before, after) in enumerate(pairwise((first, *hidden)), 1):
                self._linear(f"encoder.{kind}_encoder.fc{index}", before, after, normed=True)
                self._norm(f"encoder.{kind}_encoder.bn{index}", after)
        joined = sum(hidden[-1] for _, hidden in inputs.values())
        first, second = model.encoder_hidden
        self._block("encoder.feature_conv", joined, joined)
        self._block("encoder.layer5", joined, first)
        self._block("encoder.layer6", first, second)
        self._block("encoder.layer7_bottleneck", second, model.bottleneck)
        if self._batch:
            self.still.add("encoder.layer7_bottleneck.1.bias")

    def _voxel_head(self, config: GibletConfig, voxels: int, hrf_taps: int | None) -> None:
        head = "encoder.bottleneck_to_voxels"
        if config.data.hrf.kind == "fir":
            if hrf_taps is None:
                raise ConfigError("data.hrf.kind is fir, whose kernels depend on the TR")
            self._add(f"{head}.hrf_kernel", voxels, hrf_taps)
        self._block(head, config.model.bottleneck, config.model.voxel_hidden)
        self._linear(f"{head}.4", config.model.voxel_hidden, voxels)

    def _decoder(self, config: GibletConfig, widths: Dimensions) -> None:
        model = config.model
        joint = (model.bottleneck, *model.decoder_hidden)
        for index in range(4):
            self._block(f"decoder.layer{8 + index}", joint[index], joint[index + 1])
        branches: dict[str, Sequence[int]] = {
            "video": model.video_decoder_hidden, "audio": model.audio_decoder_hidden, "text": model.text_decoder_hidden,
        }  # fmt: skip
        for kind, hidden in branches.items():
            self._block(f"decoder.layer12_{kind}", joint[-1], hidden[0])
            self._block(f"decoder.layer12_{kind}", hidden[0], hidden[1], at=4)
        classify = model.audio_objective == "classify"
        positions = widths.audio_codebooks * widths.audio_frames
        frame = widths.video_height * widths.video_width * 3
        self._linear("decoder.layer13_video.0", branches["video"][1], frame)
        self._linear("decoder.layer13_audio", branches["audio"][1], positions * (CODE_FEATURES if classify else 1))
        self._linear("decoder.layer13_text", branches["text"][1], widths.text_dimension)
        if classify:
            self._add("decoder.audio_codebook.weight", widths.audio_codebooks, CODE_FEATURES, CODES)
            self._add("decoder.audio_codebook.bias", widths.audio_codebooks, 1, CODES, begins_zero=True)

    def _block(self, name: str, inputs: int, outputs: int, at: int = 0) -> None:
        """Linear and norm."""
        self._linear(f"{name}.{at}", inputs, outputs, normed=True)
        self._norm(f"{name}.{at + 1}", outputs)

    def _linear(self, name: str, inputs: int, outputs: int, *, normed: bool = False) -> None:
        """Biases are random in the encoder, and begin at zero in the decoder."""
        self._add(f"{name}.weight", outputs, inputs)
        self._add(f"{name}.bias", outputs, begins_zero=name.startswith("decoder."))
        if normed and self._batch:
            self.still.add(f"{name}.bias")

    def _norm(self, name: str, features: int) -> None:
        self._add(f"{name}.weight", features)
        self._add(f"{name}.bias", features, begins_zero=True)
        if self._batch:
            self._add(f"{name}.running_mean", features, trained=False, begins_zero=True)
            self._add(f"{name}.running_var", features, trained=False)
            self._add(f"{name}.num_batches_tracked", dtype="int64", trained=False, begins_zero=True)

    def _add(
        self, name: str, *shape: int, dtype: str = "float32", trained: bool = True, begins_zero: bool = False
    ) -> None:
        self.tensors[name] = ExpectedTensor(name, shape, dtype)
        if trained:
            self.parameters.append(name)
        if begins_zero:
            self._begin_zero.add(name)
