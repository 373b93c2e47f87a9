"""What a checkpoint ought to hold, from the configuration alone: the judge's own side of the comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from giblet.config.schema import GibletConfig
from giblet.errors import ConfigError
from giblet.models.dimensions import Dimensions, resolve_dimensions
from giblet.models.structure import ExpectedTensor, Structure

OPTIMIZER_STATES = ("exp_avg", "exp_avg_sq", "step")
_BRANCHES = {
    "video_weight": ("decoder.layer12_video.", "decoder.layer13_video."),
    "audio_weight": ("decoder.layer12_audio.", "decoder.layer13_audio.", "decoder.audio_"),
    "text_weight": ("decoder.layer12_text.", "decoder.layer13_text."),
    "bold_weight": ("encoder.bottleneck_to_voxels.",),
}


@dataclass(frozen=True)
class Expectation:
    """The model's tensors by state-dict name; None where the configuration is not known, and then `reason`.

    `zero`: weights that the architecture lets be all zero. `still`: parameters without a gradient.
    """

    tensors: Mapping[str, ExpectedTensor] | None
    parameters: tuple[str, ...]
    zero: frozenset[str]
    still: frozenset[str]
    reason: str = ""

    @classmethod
    def of(
        cls,
        config: GibletConfig | None,
        dimensions: Dimensions | None,
        step: int | None,
        hrf_taps: int | None = None,
    ) -> Expectation:
        """From a configuration and the dimensions that it leaves open.

        Without a configuration the names of the production network still say which zeros are explained.
        """
        known, reason = config is not None, "no configuration was given (--config)"
        if config is not None:
            try:
                resolve_dimensions(config, dimensions)
                if config.data.hrf.kind == "fir" and hrf_taps is None:
                    raise ConfigError("the kernels of data.hrf.kind fir depend on the TR, which is not known")
            except ConfigError as error:
                known, reason = False, f"the configuration leaves the model open: {error.message}"
        used, taps = (config, hrf_taps) if known and config is not None else (_any_config(config), 2)
        structure = Structure(used, dimensions if known else Dimensions(1, 1, 1, 1, 1, 1, 1), hrf_taps=taps)
        untrained = _untrained_branches(used)
        parameters = tuple(structure.parameters)
        branches = {name for name in parameters if name.startswith(untrained)}
        zero = structure.zero(1 if step is None else step) | {name for name in branches if name.endswith(".bias")}
        return cls(
            structure.tensors if known else None,
            parameters, frozenset(zero), frozenset(structure.still | branches), "" if known else reason,
        )  # fmt: skip


def _any_config(config: GibletConfig | None) -> GibletConfig:
    """A configuration with the same names of tensors, all widths open."""
    base = GibletConfig()
    if config is None:
        return base
    settings = {name: getattr(config.model, name) for name in ("norm", "audio_objective")}
    return base.model_copy(update={"data": config.data, "model": base.model.model_copy(update=settings)})


def _untrained_branches(config: GibletConfig) -> tuple[str, ...]:
    """Parts that no loss reaches, because its weight is 0: their optimizer state stays zero."""
    return tuple(
        prefix for weight, prefixes in _BRANCHES.items() if getattr(config.model, weight) == 0 for prefix in prefixes
    )
