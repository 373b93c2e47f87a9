"""`dcp.save` and `dcp.load` with our writer and reader over real ranks: FSDP, DDP and HSDP, each after each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from giblet.checkpoint import GibletStorageReader, GibletStorageWriter
from giblet.checkpoint.opened import open_checkpoint
from tests.support.ranks import RankPool

CHAIN = [("fsdp", 1), ("fsdp", 8), ("fsdp", 2), ("ddp", 2), ("fsdp", 4), ("fsdp", 8), ("ddp", 1), ("hsdp", 4),
         ("fsdp", 2), ("fsdp", 1), ("ddp", 4), ("hsdp", 8)]  # fmt: skip


def trainer(kind: str, world: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Three steps of a small network. Seven rows on eight ranks: one has none."""
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(13, 7), torch.nn.BatchNorm1d(7), torch.nn.Linear(7, 3, bias=False))
    if kind == "hsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("copies", "shards")))
    elif kind == "fsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(3):
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, 0.1 * step - 0.01 * number)
        optimizer.step()
    return model, optimizer


def state_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments, "epoch": 2}


def whole(state: Any, name: str = "") -> dict[str, Any]:
    """Flat, and gathered from all ranks."""
    if isinstance(state, dict):
        return {k: v for key, item in state.items() for k, v in whole(item, f"{name}.{key}").items()}
    if isinstance(state, DTensor):
        state = state.full_tensor()
    return {name: state.detach().numpy().copy() if isinstance(state, torch.Tensor) else str(state)}


def pass_on(rank: int, world: int, kind: str, before: str | None, after: str) -> dict[str, Any]:
    """Load what the one before saved into a network that was spoilt, save it again; returns what was loaded."""
    model, optimizer = trainer(kind, world)
    if before is not None:
        for parameter in model.parameters():
            (parameter.to_local() if isinstance(parameter, DTensor) else parameter).detach().fill_(7)
        for moments in optimizer.state.values():
            for tensor in moments.values():
                (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach().zero_()
        state = state_of(model, optimizer) | {"epoch": 0}
        dcp.load(state, storage_reader=GibletStorageReader(before))
        assert state["epoch"] == 2
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    state = state_of(model, optimizer)
    dcp.save(state, storage_writer=GibletStorageWriter(after))
    return whole(state)


def test_any_layout_goes_on_from_any_other(ranks: RankPool, tmp_path: Path) -> None:
    expected: dict[str, Any] | None = None
    before: str | None = None
    for number, (kind, world) in enumerate(CHAIN):
        after = str(tmp_path / str(number))
        found = ranks.run(world, pass_on, kind, before, after)[0]
        expected = found if expected is None else expected
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert (found[name] == value) if isinstance(value, str) else (found[name] == value).all(), (kind, name)
        manifest = open_checkpoint(after).manifest
        assert manifest.elements == sum(v.size for v in expected.values() if not isinstance(v, str)), "stored twice"
        assert manifest.world_size == world
        before = after


def two_axes(rank: int, world: int, root: str) -> None:
    """A matrix cut along rows and columns at once comes back whole, along columns, and as a part of itself."""
    full = torch.arange(7 * 10, dtype=torch.float32).reshape(7, 10)
    mesh = init_device_mesh("cpu", (2, 2))
    dcp.save({"x": distribute_tensor(full, mesh, [Shard(0), Shard(1)])}, storage_writer=GibletStorageWriter(root))
    for placements in ([Shard(1), Shard(0)], [Replicate(), Shard(1)], [Replicate(), Replicate()]):
        target = {"x": distribute_tensor(torch.zeros(7, 10), mesh, placements)}
        dcp.load(target, storage_reader=GibletStorageReader(root))
        assert torch.equal(target["x"].full_tensor(), full)


def test_a_matrix_cut_along_both_axes(ranks: RankPool, tmp_path: Path) -> None:
    ranks.run(4, two_axes, str(tmp_path / "x"))


def save_asynchronously(rank: int, world: int, root: str) -> None:
    mesh = init_device_mesh("cpu", (world,))
    tensor = distribute_tensor(torch.arange(12.0), mesh, [Shard(0)])
    saving = dcp.async_save({"x": tensor, "n": rank * 0 + 5}, storage_writer=GibletStorageWriter(root))
    saving.result()  # type: ignore[union-attr]
    target = {"x": distribute_tensor(torch.zeros(12), mesh, [Shard(0)]), "n": 0}
    dcp.load(target, storage_reader=GibletStorageReader(root))
    assert torch.equal(target["x"].full_tensor(), torch.arange(12.0))  # type: ignore[attr-defined]
    assert target["n"] == 5


def test_two_ranks_save_asynchronously(ranks: RankPool, tmp_path: Path) -> None:
    ranks.run(2, save_asynchronously, str(tmp_path / "x"))
