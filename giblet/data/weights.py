"""Where EnCodec's weights are: a path, a download, or made up. It needs no torch until something is downloaded."""

from __future__ import annotations

import urllib.error
from pathlib import Path

from giblet.config.schema import AudioConfig
from giblet.errors import DependencyError

CODEBOOK_SIZE = 1024
"""Codes of a codebook."""

ENCODEC_FILE = "encodec_24khz-d7cc33bc.th"
ENCODEC_URL = f"https://dl.fbaipublicfiles.com/encodec/v0/{ENCODEC_FILE}"
TRANSFORMERS_NAME = "facebook/encodec_24khz"
RANDOM_NOTE = "audio codec weights are random (data.audio.weights: random): the codes carry no meaning of the sound"


def resolve_weights(config: AudioConfig) -> Path | None:
    """The local file or folder that holds the weights, downloaded if asked; None where they are random.

    Raises `DependencyError` where there is none and none can be had.
    """
    if config.weights == "random":
        return None
    if config.weights == "download":
        return _download_encodec() if config.backend == "encodec" else _download_transformers()
    path = Path(config.weights).expanduser()
    if not path.exists():
        raise DependencyError(
            f"data.audio.weights names {config.weights}, and there is no such file or folder",
            remedy="point it at EnCodec's 24 kHz weights (a .th, .safetensors or .bin file, or a transformers folder), "
            "or write `download` where there is a network, or `random` for tests",
        )
    return path


def _download_encodec() -> Path:
    import torch  # preparing starts without it

    path = Path(torch.hub.get_dir()) / "checkpoints" / ENCODEC_FILE
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(ENCODEC_URL, str(path), hash_prefix="d7cc33bc", progress=False)
    except (OSError, urllib.error.URLError, RuntimeError) as error:
        raise _no_weights(ENCODEC_URL, error) from error
    return path


def _download_transformers() -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(TRANSFORMERS_NAME, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:
        raise _no_weights(TRANSFORMERS_NAME, error) from error


def _no_weights(what: str, error: Exception) -> DependencyError:
    return DependencyError(
        f"EnCodec's weights are not on this machine, and {what} could not be downloaded: {error}",
        remedy="set data.audio.weights to a local path (a .th file or a transformers folder), or to `random` for tests",
    )
