"""Checkpoints of any size, written as a stream: a legacy `.pt` in the production network's shape, and one of ours."""

from __future__ import annotations

import io
import json
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import torch

from giblet.checkpoint.layout import CheckpointRef
from giblet.checkpoint.manifest import Chunk, Manifest, ObjectRecord, TensorRecord
from giblet.config import load_config
from giblet.models.build import meta_model

POOL_BYTES = 32 * 1024 * 1024
BLOCK_BYTES = 8 * 1024 * 1024
ZERO = (
    "encoder.layer7_bottleneck.1.bias", "decoder.layer8.0.bias", "decoder.layer8.1.running_mean",
    "decoder.layer12_video.0.bias", "decoder.layer12_text.4.bias",
)  # fmt: skip
FULL_GB = 13.6
"""Gigabytes of the production network's file: 3.4 billion weights of two bytes, and two bytes of state for each."""


def shapes(share: float) -> dict[str, tuple[int, ...]]:
    """The 162 entries of the production network; matrices have this share of their rows."""
    state = meta_model(load_config("configs/prod.yaml")).state_dict()
    return {
        name: (max(1, round(value.shape[0] * share)), *value.shape[1:]) if value.ndim > 1 else tuple(value.shape)
        for name, value in state.items()
    }


class Pool:
    """Random numbers, the same ones over and over: what is verified does not get faster by being alike."""

    def __init__(self) -> None:
        values = torch.randn(POOL_BYTES // 4, generator=torch.Generator().manual_seed(0)) * 0.02
        raw = torch.randint(0, 256, (POOL_BYTES,), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
        narrow = values.to(torch.bfloat16).repeat(2)
        self._bytes = {
            "F32": values.numpy().tobytes(), "BF16": narrow.view(torch.int16).numpy().tobytes(),
            "U8": raw.numpy().tobytes(), "V32": values.square().numpy().tobytes(),
        }  # fmt: skip

    def bytes_of(self, kind: str, size: int) -> Iterator[bytes]:
        """So many bytes of a kind, in pieces."""
        for start in range(0, size, POOL_BYTES):
            yield self._bytes[kind][: min(POOL_BYTES, size - start)]


class _Storage:
    def __init__(self, kind: str, key: str, elements: int) -> None:
        self.kind, self.key, self.elements = kind, key, elements


class _Tensor:
    """Pickles as torch's tensors do."""

    def __init__(self, storage: _Storage, shape: tuple[int, ...]) -> None:
        self.storage, self.shape = storage, shape

    def __reduce__(self) -> tuple[Any, ...]:
        strides = tuple(math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))
        rebuild: Any = torch._utils._rebuild_tensor_v2
        return rebuild, (self.storage, 0, self.shape, strides, False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, item: Any) -> Any:
        if not isinstance(item, _Storage):
            return None
        kind = {"F32": "FloatStorage", "BF16": "BFloat16Storage", "U8": "ByteStorage", "I64": "LongStorage"}[item.kind]
        return ("storage", getattr(torch, kind), item.key, "cpu", item.elements)


def write_legacy(path: Path, gigabytes: float) -> Path:
    """bfloat16 weights and 8-bit AdamW state in the file that the earlier trainer wrote."""
    pool, entries, number = Pool(), [], iter(range(10_000))

    def tensor(kind: str, shape: tuple[int, ...], fill: str | None = None) -> _Tensor:
        storage = _Storage(kind, str(next(number)), math.prod(shape))
        entries.append((storage, fill or kind))
        return _Tensor(storage, shape)

    weights: dict[str, _Tensor] = {}
    state: dict[int, dict[str, Any]] = {}
    for name, shape in shapes(gigabytes / FULL_GB).items():
        kind = "I64" if not shape else "BF16"
        weights[name] = tensor(kind, shape, "zero" if name in ZERO else None)
        if shape and not name.endswith(("running_mean", "running_var")):
            blocks = (-(-math.prod(shape) // 256),)
            state[len(state)] = {
                "step": 1, "state1": tensor("U8", shape), "state2": tensor("U8", shape),
                "absmax1": tensor("F32", blocks, "V32"), "absmax2": tensor("F32", blocks, "V32"),
            }  # fmt: skip
    tree = {
        "epoch": 1, "global_step": 212, "model_state_dict": weights,
        "optimizer_state_dict": {"state": state, "param_groups": [{"lr": 1e-4, "params": list(state)}]},
        "scheduler_state_dict": {"last_epoch": 1}, "best_val_loss": 1.25, "config": {"epochs": 100},
        "train_history": [1.5], "val_history": [1.25],
    }  # fmt: skip
    stream = io.BytesIO()
    _Pickler(stream, protocol=2).dump(tree)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        archive.writestr("archive/byteorder", "little")
        for storage, fill in entries:
            width = {"F32": 4, "BF16": 2, "U8": 1, "I64": 8}[storage.kind]
            with archive.open(f"archive/data/{storage.key}", "w", force_zip64=True) as file:
                if storage.kind == "I64" or fill == "zero":
                    file.write(np.full(storage.elements, 0 if fill == "zero" else 212, f"<i{width}").tobytes())
                else:
                    for piece in pool.bytes_of(fill, storage.elements * width):
                        file.write(piece)
        archive.writestr("archive/version", "3\n")
    return path


def write_giblet(folder: Path, gigabytes: float, shards: int = 8) -> str:
    """A run with one checkpoint of float32 weights and their two moments; returns its address."""
    pool, ref = Pool(), CheckpointRef(212, "00001-00001-bench", "bench")
    elements = sum(math.prod(shape) for shape in shapes(1.0).values())
    wanted: dict[str, tuple[tuple[int, ...], str]] = {}
    for name, shape in shapes(gigabytes * 1e9 / 12 / elements).items():
        if shape:
            wanted[f"model.{name}"] = (shape, "F32")
            wanted[f"optimizer.exp_avg.{name}"] = (shape, "F32")
            wanted[f"optimizer.exp_avg_sq.{name}"] = (shape, "V32")
    place = folder / ref.prefix
    place.mkdir(parents=True)
    tensors, objects, largest_first = {}, [], sorted(wanted, key=lambda n: -math.prod(wanted[n][0]))
    for rank in range(shards):
        names = largest_first[rank::shards]
        header, at = {}, 0
        for name in names:
            size = 4 * math.prod(wanted[name][0])
            header[name] = {"dtype": "F32", "shape": list(wanted[name][0]), "data_offsets": [at, at + size]}
            at += size
        head = json.dumps(header).encode()
        head = (len(head)).to_bytes(8, "little") + head
        key, crc = f"rank-{rank:05d}.safetensors", google_crc32c.value(head)
        with (place / key).open("wb") as file:
            file.write(head)
            for name in names:
                shape, kind = wanted[name]
                start = file.tell()
                crcs = []
                for piece in pool.bytes_of(kind, 4 * math.prod(shape)):
                    file.write(piece)
                    crc = google_crc32c.extend(crc, piece)
                    view = memoryview(piece)
                    blocks = (view[b : b + BLOCK_BYTES] for b in range(0, len(piece), BLOCK_BYTES))
                    crcs += [f"{google_crc32c.value(bytes(block)):08x}" for block in blocks]
                chunk = Chunk(
                    key=key, start=start, stop=file.tell(), offset=(0,) * len(shape), shape=shape, crc32c=tuple(crcs)
                )
                tensors[name] = TensorRecord(dtype="F32", shape=shape, chunks=(chunk,))
            objects.append(ObjectRecord(key=key, size_bytes=file.tell(), crc32c=f"{crc:08x}"))
    manifest = Manifest(
        run=ref.run, step=ref.step, attempt=ref.attempt, start=1, world_size=shards, created_by="ci/bench.py",
        objects=tuple(objects), committed_unix_seconds=0.0, block_bytes=BLOCK_BYTES, tensors=tensors,
        state={"step": 212, "epoch": 1, "samples_consumed": 212},
    )  # fmt: skip
    (folder / ref.manifest_key).write_bytes(manifest.dump())
    return f"{folder}/{ref.prefix.rstrip('/')}"
