"""Into the model and through a held-out batch: the checks that need the whole model in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from giblet.config.schema import GibletConfig
from giblet.data.ensure import published_place
from giblet.data.hrf import hrf_kernel
from giblet.data.prepared import PreparedDataset
from giblet.data.transfer import fetch, is_published
from giblet.errors import ConfigError, DataError
from giblet.evaluate.heldout import NonFiniteOutputError, heldout_score
from giblet.models.autoencoder import MultimodalAutoencoder
from giblet.models.build import build_model
from giblet.models.dimensions import Dimensions
from giblet.models.encoders import VoxelHead
from giblet.verify.checks import Evidence
from giblet.verify.report import Check
from giblet.verify.sources import Chunk, Source, StoredObject

READ_BYTES = 32 * 1024 * 1024
_SYNTHETIC_ROWS = 2
_ABSOLUTE_SHARE = {"bold_correlation": 1.0, "token_accuracy": 1.0}
"""Scores between -1 and 1 that may be near 0: there the tolerance is an absolute one."""


def restoring_checks(
    evidence: Evidence,
    dimensions: Dimensions | None,
    tr_seconds: float | None,
    dataset: str | Path | None,
    device: str,
) -> tuple[list[Check], dict[str, float]]:
    """`restores` and `scores`, and the scores themselves."""
    config = evidence.config
    if config is None or evidence.expectation.tensors is None:
        why = f"not tried: {evidence.expectation.reason}"
        return [Check("restores", "skipped", why), Check("scores", "skipped", why)], {}
    model = empty_model(config, dimensions, None if tr_seconds is None else hrf_kernel(config, tr_seconds))
    fault = load_weights(evidence.source, model)
    if fault:
        return [Check("restores", "failed", fault), Check("scores", "skipped", "it does not restore")], {}
    model.to(device).eval()
    prepared, reason = _dataset(evidence.source, dataset, config)
    try:
        if prepared is None:
            _synthetic(model, device)
            detail = "its weights load; no held-out data at hand, so that it was run on a black frame only"
            return [Check("restores", "warning", f"{detail} ({reason})"), Check("scores", "skipped", reason)], {}
        scores = heldout_score(model, prepared, config, device)
    except NonFiniteOutputError as error:
        return [Check("restores", "failed", str(error)), Check("scores", "skipped", "its output is not finite")], {}
    restored = Check("restores", "passed", "its weights load; every output on the validation split is finite")
    return [restored, compare_scores(evidence, scores, config.verify.score_tolerance)], scores


def compare_scores(evidence: Evidence, scores: Mapping[str, float], tolerance: float) -> Check:
    """The recomputed validation scores beside those that training recorded at this step."""
    recorded = evidence.source.state.get("validation")
    if not isinstance(recorded, Mapping) or recorded.get("step") != evidence.source.step:
        of = f"; the newest is of step {recorded['step']:g}" if isinstance(recorded, Mapping) else ""
        detail = f"recomputed loss {scores['loss']:.6g}; training recorded none at this step{of}"
        return Check("scores", "skipped", detail)
    compared = {name: (float(recorded[name]), value) for name, value in scores.items() if name in recorded}
    apart = [
        f"{name} {value:.6g}, recorded {then:.6g}"
        for name, (then, value) in compared.items()
        if not math.isclose(then, value, rel_tol=tolerance, abs_tol=tolerance * _ABSOLUTE_SHARE.get(name, 1e-3))
    ]
    if apart:
        return Check("scores", "failed", f"recomputed {'; '.join(apart)}: more than {tolerance:g} apart")
    return Check("scores", "passed", f"recomputed loss {scores['loss']:.6g} agrees within {tolerance:g}")


def empty_model(config: GibletConfig, dimensions: Dimensions | None, kernel: Tensor | None) -> MultimodalAutoencoder:
    """The configuration's model on the CPU, its weights unset, without the time that initialising takes."""
    with torch.device("meta"):
        model = build_model(config, dimensions, hrf_kernel=kernel)
    model = model.to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, VoxelHead) and module.hrf_taps is not None:
            module.hrf_taps.copy_(torch.tensor(module.canonical_taps))
    return model


@torch.no_grad()
def load_weights(source: Source, model: nn.Module) -> str:
    """Copy the checkpoint's weights into `model`, a few megabytes at a time. Returns what is wrong, or nothing."""
    targets = model.state_dict()
    stored = set(source.weights.values())
    if missing := [name for name in targets if name not in stored]:
        return f"it does not load: {len(missing)} tensors are missing, {missing[0]} first"
    if transposed := [name for name in source.weights if name in source.unordered]:
        return f"it does not load: {transposed[0]} is stored as a view with strides, which giblet does not restore"
    for item in source.objects:
        for chunk in item.chunks:
            weight = source.weights.get(chunk.tensor)
            if weight not in targets:
                continue
            record = source.tensors[chunk.tensor]
            if tuple(targets[weight].shape) != record.shape:
                return f"it does not load: {weight} is {list(record.shape)}, not {list(targets[weight].shape)}"
            dtype: torch.dtype = getattr(torch, record.dtype)
            for target, data in _parts(source, item, chunk, targets[weight], record.format().item_bytes):
                if data.size != target.numel() * record.format().item_bytes:
                    return f"it does not load: {item.name} is cut short in {weight}"
                target.copy_(torch.from_numpy(data).view(dtype).reshape(target.shape))
    return ""


def _parts(
    source: Source, item: StoredObject, chunk: Chunk, target: Tensor, item_bytes: int
) -> Iterator[tuple[Tensor, Any]]:
    """Views of `target` with the bytes that belong there, a few rows of the chunk at a time."""
    box = target[tuple(slice(o, o + s) for o, s in zip(chunk.offsets, chunk.sizes, strict=True))]
    begin = item.begin + chunk.start
    if not chunk.sizes:
        yield box, _bytes(source, item.key, begin, begin + item_bytes)
        return
    row = math.prod(chunk.sizes[1:]) * item_bytes
    if not row:
        return
    step = max(1, READ_BYTES // row)
    for first in range(0, chunk.sizes[0], step):
        last = min(first + step, chunk.sizes[0])
        yield box[first:last], _bytes(source, item.key, begin + first * row, begin + last * row)


def _bytes(source: Source, key: str, start: int, stop: int) -> Any:
    return np.frombuffer(bytearray(source.storage.get(key, start, stop)), np.uint8)


def _dataset(source: Source, dataset: str | Path | None, config: GibletConfig) -> tuple[PreparedDataset | None, str]:
    """The prepared dataset to score on, fetched where it is published, or why there is none."""
    recorded = source.state.get("dataset")
    wanted = recorded.get("content_hash") if isinstance(recorded, Mapping) else None
    places = [dataset, config.data.prepared, wanted and f"{config.data.cache_dir}/{wanted}"]
    try:
        place = next((place for place in places if place is not None and Path(place).is_dir()), None)
        prepared = PreparedDataset.open(place) if place is not None else _fetched(source, wanted, config)
    except (DataError, ConfigError) as error:
        return None, f"the prepared dataset cannot be read: {error.message}"
    except OSError as error:
        return None, f"the prepared dataset cannot be fetched to data.cache_dir {config.data.cache_dir}: {error}"
    if prepared is None:
        return None, (
            f"the prepared dataset {wanted or 'it was trained on'} is neither in data.cache_dir "
            f"{config.data.cache_dir} nor published in {source.storage.url}"
        )
    if wanted is not None and prepared.manifest.content_hash != wanted:
        return None, f"{place} is the prepared dataset {prepared.manifest.content_hash}, it was trained on {wanted}"
    return prepared, ""


def _fetched(source: Source, wanted: str | None, config: GibletConfig) -> PreparedDataset | None:
    """The dataset of this hash from the checkpoint's own store, or from where `data.prepared` says."""
    named = published_place(config)
    stores = [(source.storage, wanted), *([named] if named is not None else [])]
    for storage, content_hash in stores:
        if content_hash is not None and is_published(storage, content_hash):
            return fetch(storage, content_hash, config.data.cache_dir)
    return None


@torch.no_grad()
def _synthetic(model: MultimodalAutoencoder, device: str) -> None:
    """One forward pass on black frames, silence and no words. Raises `NonFiniteOutputError`."""
    rows = _SYNTHETIC_ROWS
    outputs = model(
        torch.zeros(rows, *model.video_shape, device=device),
        torch.zeros(rows, *model.audio_shape, dtype=torch.int64, device=device),
        torch.zeros(rows, model.text_dimension, device=device),
    )
    bad = [name for name, values in outputs.items() if not bool(torch.isfinite(values.float()).all())]
    if bad:
        raise NonFiniteOutputError(f"{', '.join(bad)} is not finite even on a black frame")
