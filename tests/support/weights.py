"""Small trained weights, and checkpoints of them written by hand: whole, or damaged in one stated way.

The manifest and the shards are made here with nothing of giblet's writer, so that a fault of the writer and the same
fault in the judge cannot cancel each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import torch
from safetensors.torch import save
from torch import Tensor

from giblet.checkpoint.layout import CheckpointRef
from giblet.checkpoint.manifest import Chunk, Manifest, ObjectRecord, TensorRecord, block_crcs
from giblet.config.schema import GibletConfig
from giblet.models.build import build_model
from giblet.storage import Storage

DTYPES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64", torch.float64: "F64",
    torch.float16: "F16", torch.float8_e4m3fn: "F8_E4M3", torch.uint8: "U8",
}  # fmt: skip
STEP = 12
BLOCK_BYTES = 4096


def small_config(**model: Any) -> GibletConfig:
    """A model of a few thousand weights whose every width is set."""
    widths = {
        "video_frames": 2, "video_height": 4, "video_width": 6, "audio_codebooks": 2, "audio_frames": 5,
        "text_dimension": 7, "voxels": 11, "video_hidden": (16, 12, 8), "audio_hidden": (8, 6), "text_hidden": (8, 6),
        "encoder_hidden": (16, 16), "bottleneck": 8, "voxel_hidden": 12, "decoder_hidden": (16, 12, 12, 8),
        "video_decoder_hidden": (8, 8), "audio_decoder_hidden": (8, 8), "text_decoder_hidden": (8, 8),
        "audio_objective": "regress",
    }  # fmt: skip
    return GibletConfig.model_validate({"model": {**widths, **model}, "data": {"hrf": {"kind": "none"}}})


def trained_tensors(config: GibletConfig, step: int = STEP, seed: int = 0) -> dict[str, Tensor]:
    """`model.*` and `optimizer.*` after a few real steps; the step counts say `step`."""
    torch.manual_seed(seed)
    model = build_model(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(3):
        rows, m = 16, config.model
        video = torch.rand(rows, m.video_frames, m.video_height, m.video_width, 3)
        audio = torch.randint(0, 1024, (rows, m.audio_codebooks, m.audio_frames))
        outputs = model(video, audio, torch.randn(rows, m.text_dimension))
        sum((value / 1000).square().mean() for value in outputs.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    tensors = {f"model.{name}": value.detach().clone() for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        tensors |= {f"optimizer.{kind}.{name}": state[kind].clone() for kind in ("exp_avg", "exp_avg_sq")}
        tensors[f"optimizer.step.{name}"] = torch.tensor(float(step))
    return tensors


def training_state(config: GibletConfig, step: int = STEP, **changes: Any) -> dict[str, Any]:
    """What training writes beside the tensors, at `step` of a run of 4 steps an epoch."""
    per_epoch, total, settings = 4, 100, config.training
    losses = [1.0 - 0.1 * epoch for epoch in range(step // per_epoch)]
    steps = [float(per_epoch * (epoch + 1)) for epoch in range(len(losses))]
    rate = settings.learning_rate * step / settings.warmup_steps  # all of it is warm-up
    state = {
        "step": step, "epoch": step // per_epoch, "samples_consumed": step * settings.global_batch_samples,
        "best": {"step": step, "epoch": step // per_epoch, "score": losses[-1]} if losses else None,
        "epochs_without_improvement": 0,
        "validation": {"step": float(step), "epoch": float(step // per_epoch), "loss": losses[-1]} if losses else None,
        "epoch_totals": {},
        "history": {"train": {}, "validation": {"step": steps, "loss": losses}},
        "schedule": {
            "learning_rate": rate, "total_steps": total, "steps_per_epoch": per_epoch,
            "global_batch_samples": settings.global_batch_samples,
        },
        "config": config.model_dump(mode="json"),
    }  # fmt: skip
    return {**state, **changes}


@dataclass
class Written:
    """A checkpoint in a store, and the means to damage it."""

    storage: Storage
    ref: CheckpointRef
    manifest: Manifest
    offsets: dict[str, tuple[str, int, int]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"{self.storage.url}/{self.ref.prefix.rstrip('/')}"

    def replace(self, key: str, data: bytes) -> None:
        self.storage.put(self.ref.prefix + key, data)

    def object(self, index: int = 0) -> str:
        return self.manifest.objects[index].key

    def rewrite_manifest(self, **changes: Any) -> None:
        """A manifest with other contents and a valid seal."""
        self.manifest = self.manifest.model_copy(update=changes)
        self.storage.put(self.ref.manifest_key, self.manifest.dump())


def write_checkpoint(
    storage: Storage,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    *,
    run: str = "movie",
    step: int = STEP,
    attempt: str = "20260101T000000-1",
    shards: int = 2,
) -> Written:
    """Each tensor cut into `shards` along its first axis, one safetensors file a shard, then the manifest."""
    ref = CheckpointRef(step, attempt, run)
    chunks: dict[str, list[Chunk]] = {name: [] for name in tensors}
    objects = []
    for rank in range(shards):
        key = f"rank-{rank:05d}.safetensors"
        parts: dict[str, tuple[Tensor, tuple[int, ...]]] = {}
        for name, value in tensors.items():
            rows = range(value.shape[0])[rank::shards] if value.ndim else range(0)
            if value.ndim and len(rows):
                bounds = [round(value.shape[0] * r / shards) for r in (rank, rank + 1)]
                part = value[bounds[0] : bounds[1]].contiguous()
                parts[name] = (part, (bounds[0],) + (0,) * (value.ndim - 1))
            elif not value.ndim and rank == 0:
                parts[name] = (value, ())
        data = save({name: part for name, (part, _) in parts.items() if part.numel()})
        objects.append(ObjectRecord(key=key, size_bytes=len(data), crc32c=f"{google_crc32c.value(data):08x}"))
        storage.put(ref.prefix + key, data)
        for name, start, stop in safetensors_places(data):
            part, offset = parts[name]
            chunks[name].append(
                Chunk(
                    key=key,
                    start=start,
                    stop=stop,
                    offset=offset,
                    shape=tuple(part.shape),
                    crc32c=block_crcs(data[start:stop], BLOCK_BYTES),
                )
            )
    manifest = Manifest(
        run=run, step=step, attempt=attempt, start=1, world_size=shards, created_by="tests", objects=tuple(objects),
        committed_unix_seconds=0.0, block_bytes=BLOCK_BYTES, state=dict(state),
        tensors={
            name: TensorRecord(dtype=DTYPES[value.dtype], shape=tuple(value.shape), chunks=tuple(chunks[name]))
            for name, value in tensors.items()
        },
    )  # fmt: skip
    storage.put(ref.manifest_key, manifest.dump())
    return Written(storage, ref, manifest)


def safetensors_places(data: bytes) -> list[tuple[str, int, int]]:
    """Name, first and last byte of each tensor in a safetensors file."""
    import json

    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return [(name, *(8 + length + at for at in entry["data_offsets"])) for name, entry in header.items()]


def legacy_file(path: Path, tensors: Mapping[str, Tensor], **more: Any) -> None:
    """A checkpoint as the earlier trainer wrote it."""
    weights = {name.removeprefix("model."): v for name, v in tensors.items() if name.startswith("model.")}
    torch.save(
        {
            "epoch": 1, "global_step": STEP, "model_state_dict": weights,
            "optimizer_state_dict": {"state": {0: {"step": torch.tensor(float(STEP))}}, "param_groups": []},
            "scheduler_state_dict": {"last_epoch": 1}, "best_val_loss": 0.5, "config": {"a": [1, 2]},
            "train_history": [0.7], "val_history": [0.5], **more,
        },
        path,
    )  # fmt: skip
