"""EnCodec at 24 kHz through either package, and its weights in either format.

`encodec` (0.1.1, CC BY-NC 4.0) and `transformers` (Apache 2.0) implement the same network (Défossez et al. 2022,
arXiv:2210.13438) with other names for the same tensors; `to_transformers_names` and `to_encodec_names` translate, so a
lab that has the weights in one format may use either package.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, remove_weight_norm

from giblet.config.schema import AudioConfig
from giblet.data.causal import Causal
from giblet.data.sound import HOP_SAMPLES, SAMPLE_RATE_HZ
from giblet.data.weights import resolve_weights
from giblet.errors import DataError, DependencyError

RANDOM_SEED = 20220
RANDOM_CODEBOOK_SCALE = 0.5

State = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Convolutions:
    """The encoder's convolutions before and after its LSTM, (1, channels, length) to the same."""

    before: Callable[[torch.Tensor], torch.Tensor]
    after: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Codec:
    """The encoder's half of the network, cut at its LSTM so that it can be streamed; `quantizer.encode` makes codes.

    `beginning`, as the package has it, pads what is before a stream's first sample. `onwards` has its weights and pads
    nothing: its output is shorter than its input by what the convolutions see of the past, which has to be given.
    """

    beginning: Convolutions
    onwards: Convolutions
    lstm: nn.LSTM
    quantizer: Any
    backend: str

    def quantize(self, embeddings: torch.Tensor, bandwidth_kbps: float) -> torch.Tensor:
        """Codes int64 (Q, frames) of embeddings (1, 128, frames)."""
        if self.backend == "encodec":
            codes = self.quantizer.encode(embeddings, SAMPLE_RATE_HZ // HOP_SAMPLES, bandwidth_kbps)
        else:
            codes = self.quantizer.encode(embeddings, bandwidth_kbps)
        result: torch.Tensor = codes[:, 0]
        return result


def load_codec(config: AudioConfig) -> Codec:
    """Build the network and load its weights.

    Raises `DependencyError` where the package or the weights are not here, `DataError` where a file does not hold
    the weights of the 24 kHz model.
    """
    model = _encodec_model() if config.backend == "encodec" else _transformers_model()
    if config.weights == "random":
        randomize(model)
    else:
        path = resolve_weights(config)
        assert path is not None
        _load(model, read_weights(path), config.backend, path)
    _fold_norms(model.encoder)
    model.eval().requires_grad_(False)
    layers = list(model.encoder.model if config.backend == "encodec" else model.encoder.layers)
    at = next(i for i, layer in enumerate(layers) if hasattr(layer, "lstm"))
    beginning = Convolutions(nn.Sequential(*layers[:at]), nn.Sequential(*layers[at + 1 :]))
    onwards = Convolutions(Causal(layers[:at]), Causal(layers[at + 1 :]))
    return Codec(beginning, onwards, layers[at].lstm, model.quantizer, config.backend)


def _fold_norms(encoder: nn.Module) -> None:
    """Make each convolution's weight, kept as direction and size in two ways by the packages, one tensor."""
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv1d) and parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight")
        elif isinstance(layer, nn.Conv1d):
            remove_weight_norm(layer)


def read_weights(path: Path) -> State:
    """Read a state dict in either format, from a file or a transformers folder. No pickled code is run."""
    if path.is_dir():
        files = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).exists()]
        if not files:
            raise DataError(
                f"{path} holds neither model.safetensors nor pytorch_model.bin",
                remedy="point data.audio.weights at EnCodec's 24 kHz weights",
            )
        path = files[0]
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as weights: {error}", remedy="copy the file again, or use another"
        ) from error
    state = state.get("best_state", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise DataError(f"{path} holds no state dict", remedy="save the model's state_dict() and nothing else")
    return state


_TO_TRANSFORMERS = (
    (r"^(encoder|decoder)\.model\.", r"\1.layers."),
    (r"\.(conv|convtr)\.\1\.", ".conv."),
    (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
    (r"^quantizer\.vq\.layers\.(\d+)\._codebook\.", r"quantizer.layers.\1.codebook."),
)
_TO_ENCODEC = (
    (r"\.parametrizations\.weight\.original0$", ".weight_g"),
    (r"\.parametrizations\.weight\.original1$", ".weight_v"),
    (r"^quantizer\.layers\.(\d+)\.codebook\.", r"quantizer.vq.layers.\1._codebook."),
    (r"^(encoder|decoder)\.layers\.", r"\1.model."),
)


def to_transformers_names(state: Mapping[str, torch.Tensor]) -> State:
    """A state dict of the `encodec` package under the names of `transformers`' EncodecModel."""
    return {_rename(name, _TO_TRANSFORMERS): tensor for name, tensor in state.items()}


def to_encodec_names(state: Mapping[str, torch.Tensor]) -> State:
    """A state dict of `transformers`' EncodecModel under the names of the `encodec` package."""
    renamed = {}
    for name, tensor in state.items():
        name = _rename(name, _TO_ENCODEC)
        if ".conv." in name:
            name = name.replace(".conv.", f".{_convolution(name, tensor, state)}.")
        renamed[name] = tensor
    return renamed


def _convolution(name: str, tensor: torch.Tensor, state: Mapping[str, torch.Tensor]) -> str:
    """`convtr.convtr` for the decoder's upsampling layers, which are those that follow an ELU directly."""
    match = re.match(r"^decoder\.model\.(\d+)\.conv\.", name)
    last = max((int(m.group(1)) for key in state if (m := re.match(r"^decoder\.\w+\.(\d+)\.", key))), default=0)
    return "convtr.convtr" if match and 0 < int(match.group(1)) < last else "conv.conv"


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def randomize(model: Any) -> None:
    """Give a model seeded random weights and codebooks, the same whenever and wherever it is done."""
    generator = torch.Generator().manual_seed(RANDOM_SEED)
    for parameter in model.parameters():
        with torch.no_grad():
            fan_in = max(parameter[0].numel(), 1) if parameter.dim() > 1 else 1
            bound = fan_in**-0.5 if parameter.dim() > 1 else 0.1
            parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator) * 1.7)
    for name, buffer in model.named_buffers():
        if name.endswith(("embed", "embed_avg")):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * RANDOM_CODEBOOK_SCALE)
        elif name.endswith("inited"):
            buffer.fill_(1)


def _encodec_model() -> Any:
    try:
        from encodec.model import EncodecModel
    except ImportError as error:
        raise DependencyError(
            f"data.audio.backend is encodec, and that package cannot be imported: {error}",
            remedy="pip install 'giblet[encodec]' (CC BY-NC 4.0), or set data.audio.backend to transformers",
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # encodec 0.1.1 uses torch's old weight_norm
        return EncodecModel.encodec_model_24khz(pretrained=False)


def _transformers_model() -> Any:
    try:
        from transformers import EncodecConfig, EncodecModel
    except ImportError as error:
        raise DependencyError(
            f"data.audio.backend is transformers, and that package cannot be imported: {error}",
            remedy="pip install 'giblet[hf]', or set data.audio.backend to encodec",
        ) from error
    return EncodecModel(EncodecConfig())


def _load(model: Any, state: State, backend: str, path: Path) -> None:
    from_encodec = any(name.startswith("encoder.model.") for name in state)
    state = {_rename(name, _TO_ENCODEC[:2]) if not from_encodec else name: t for name, t in state.items()}
    if backend == "transformers":
        state = to_transformers_names(state)
    elif not from_encodec:
        state = to_encodec_names(state)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        missing, unexpected = [str(error).splitlines()[-1].strip()], []
    if missing or unexpected:
        raise DataError(
            f"{path} does not hold the weights of EnCodec's 24 kHz model: {len(missing)} tensors missing or of another "
            f"shape (first: {missing[0] if missing else 'none'}), {len(unexpected)} unknown "
            f"(first: {unexpected[0] if unexpected else 'none'})",
            remedy="point data.audio.weights at the 24 kHz model's weights, not the 48 kHz one's",
        )
