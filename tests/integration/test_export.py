"""A checkpoint that several ranks wrote in shards, as one file."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from giblet.checkpoint import CheckpointStore, open_checkpoint
from giblet.checkpoint.export import export_safetensors
from giblet.config.schema import GibletConfig
from giblet.storage import LocalStorage
from tests.support.ranks import RankPool

CONFIG = GibletConfig()


def whole() -> dict[str, torch.Tensor]:
    """Types of every width, shapes that no number of ranks divides, nothing and a single number."""
    return {
        "model.rows": torch.arange(7 * 5, dtype=torch.float32).reshape(7, 5),
        "model.columns": torch.arange(3 * 11, dtype=torch.float64).reshape(3, 11),
        "model.half": torch.arange(13, dtype=torch.bfloat16),
        "model.bytes": torch.arange(5, dtype=torch.uint8),
        "model.count": torch.tensor(41),
        "model.empty": torch.empty(0, 4),
        "optimizer.step.rows": torch.tensor(3.0),
    }


def save(rank: int, world: int, root: str) -> None:
    mesh = init_device_mesh("cpu", (world,))
    dimensions = {"model.rows": 0, "model.columns": 1, "model.half": 0}
    tensors = {
        name: distribute_tensor(tensor, mesh, [Shard(dimensions[name])]) if name in dimensions else tensor
        for name, tensor in whole().items()
    }
    store = CheckpointStore(LocalStorage(root), "run", CONFIG.checkpoint)
    store.begin(CONFIG)
    store.save(4, tensors, {"step": 4}, wait=True)
    store.close()


def test_shards_come_together_in_one_file(ranks: RankPool, tmp_path: Path) -> None:
    ranks.run(2, save, str(tmp_path / "store"))
    checkpoint = open_checkpoint(f"{tmp_path}/store/runs/run")
    assert len({chunk.key for _, _, chunk in checkpoint.manifest.chunks()}) == 2
    written = export_safetensors(checkpoint, tmp_path / "all.safetensors", everything=True)
    found = load_file(tmp_path / "all.safetensors")
    assert found.keys() == whole().keys()
    for name, tensor in whole().items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    assert written.elements == sum(tensor.numel() for tensor in whole().values())
    with safe_open(tmp_path / "all.safetensors", "pt") as file:
        assert file.metadata()["step"] == "4"
    export_safetensors(checkpoint, tmp_path / "model.safetensors")
    assert load_file(tmp_path / "model.safetensors").keys() == {
        name.removeprefix("model.") for name in whole() if name.startswith("model.")
    }
