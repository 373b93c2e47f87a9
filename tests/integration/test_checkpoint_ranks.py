"""Several ranks save and load: FSDP2 and DDP, at one world size and at another, through folders and S3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from giblet.checkpoint import CheckpointStore, GibletStorageReader, GibletStorageWriter, open_checkpoint
from giblet.config.schema import GibletConfig
from giblet.errors import CheckpointError, GibletError, StorageDeniedError
from giblet.storage import LocalStorage
from tests.support.faults import faults_in
from tests.support.ranks import RankPool

CONFIG = GibletConfig()


def make_model() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(13, 7), torch.nn.BatchNorm1d(7), torch.nn.Linear(7, 3, bias=False))


def trained(sharded: bool) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = make_model()
    if sharded:
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(3):
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, 0.1 * step - 0.01 * number)
        optimizer.step()
    return model, optimizer


def flat(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{key}.{name}"] = value
    return tensors


def whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone() for name, t in tensors.items()}


def save(rank: int, world: int, root: str, sharded: bool) -> dict[str, Any]:
    store = CheckpointStore(LocalStorage(root), "run", CONFIG.checkpoint)
    store.begin(CONFIG)
    tensors = flat(*trained(sharded))
    expected = whole(tensors)
    store.save(3, tensors, {"rank": rank, "seen": 24})
    for tensor in tensors.values():  # training goes on while the upload runs
        (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach().zero_()
    store.wait()
    store.close()
    return {name: value.numpy() for name, value in expected.items()}


def load(rank: int, world: int, root: str, sharded: bool) -> dict[str, Any]:
    store = CheckpointStore(LocalStorage(root), "run", CONFIG.checkpoint)
    tensors = flat(*trained(sharded))
    for tensor in tensors.values():
        (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach().fill_(7)
    ref = store.latest()
    assert ref is not None
    state = store.load(ref, tensors)
    assert state == {"rank": 0, "seen": 24}
    store.close()
    return {name: value.numpy() for name, value in whole(tensors).items()}


CASES = [  # (ranks, FSDP) that save, (ranks, FSDP) that load
    ((2, True), (2, True)),
    ((2, True), (1, False)),
    ((3, True), (2, True)),
    ((2, False), (3, True)),
    ((1, False), (2, True)),
]


@pytest.mark.parametrize(("saving", "loading"), CASES)
def test_what_is_loaded_is_what_was_saved(
    saving: tuple[int, bool], loading: tuple[int, bool], ranks: RankPool, tmp_path: Path
) -> None:
    expected = ranks.run(saving[0], save, str(tmp_path), saving[1])[0]
    for found in ranks.run(loading[0], load, str(tmp_path), loading[1]):
        assert found.keys() == expected.keys()
        for name in expected:
            assert (found[name] == expected[name]).all(), name


def test_each_byte_is_stored_once_whoever_holds_it(ranks: RankPool, tmp_path: Path) -> None:
    """DDP: both ranks hold everything; the shards together hold it once, both ranks write."""
    expected = ranks.run(2, save, str(tmp_path), False)[0]
    manifest = open_checkpoint(f"{tmp_path}/runs/run").manifest
    assert manifest.elements == sum(value.size for value in expected.values())
    files = [load_file(path) for path in tmp_path.glob("runs/run/checkpoints/*/*/*.safetensors")]
    assert len(files) == 2
    assert sum(t.numel() for file in files for t in file.values()) == manifest.elements
    assert faults_in(open_checkpoint(f"{tmp_path}/runs/run")) == []


def reshard(rank: int, world: int, root: str) -> None:
    """DCP's own functions, a mesh cut along rows, saved; loaded along columns, replicated, and uneven."""
    mesh = init_device_mesh("cpu", (world,))
    full = torch.arange(7 * 10, dtype=torch.float64).reshape(7, 10)
    rows = distribute_tensor(full, mesh, [Shard(0)])
    dcp.save({"x": rows, "n": {"lr": 0.1, "steps": [1, 2]}}, storage_writer=GibletStorageWriter(root))
    for placement in (Shard(1), Replicate(), Shard(0)):
        target: dict[str, Any] = {
            "x": distribute_tensor(torch.zeros(7, 10, dtype=torch.float64), mesh, [placement]),
            "n": {"lr": 0.0, "steps": None},
        }
        dcp.load(target, storage_reader=GibletStorageReader(root))
        assert torch.equal(target["x"].full_tensor(), full)
        assert target["n"] == {"lr": 0.1, "steps": [1, 2]}


def test_dcp_itself_saves_and_reshards_with_our_writer_and_reader(ranks: RankPool, tmp_path: Path) -> None:
    ranks.run(3, reshard, str(tmp_path / "x"))


class Refusing(LocalStorage):
    """Refuses the shard of rank 1."""

    def put(self, key: str, body: Any, *, if_absent: bool = False) -> int:
        if key.endswith("rank-00001.safetensors"):
            raise StorageDeniedError("no room for rank 1")
        return super().put(key, body, if_absent=if_absent)


def save_refused(rank: int, world: int, root: str) -> str:
    store = CheckpointStore(Refusing(root), "run", CONFIG.checkpoint)
    store.begin(CONFIG)
    store.save(1, flat(*trained(True)))
    try:
        store.wait()
    except GibletError as error:
        return error.message
    finally:
        store.close()
    return "committed"


def test_a_failure_of_one_rank_is_known_by_all_and_nothing_is_committed(ranks: RankPool, tmp_path: Path) -> None:
    assert ranks.run(2, save_refused, str(tmp_path)) == ["no room for rank 1"] * 2
    assert list(tmp_path.glob("runs/run/checkpoints/*/*/MANIFEST.json")) == []


def load_damaged(rank: int, world: int, root: str) -> tuple[str, int | None]:
    store = CheckpointStore(LocalStorage(root), "run", CONFIG.checkpoint)
    tensors = flat(*trained(True))
    ref = store.latest()
    assert ref is not None
    try:
        store.load(ref, tensors)
    except CheckpointError as error:
        after = store.latest()
        return error.message, None if after is None else after.step
    finally:
        store.close()
    return "loaded", None


def test_one_flipped_bit_in_one_shard_is_found_by_all_ranks_and_the_one_before_is_taken(
    ranks: RankPool, tmp_path: Path
) -> None:
    ranks.run(2, save_two, str(tmp_path))
    shard = max(tmp_path.glob("runs/run/checkpoints/step-00000002/*/rank-00001.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-5] ^= 4
    shard.write_bytes(data)
    results = ranks.run(2, load_damaged, str(tmp_path))
    assert results[0] == results[1]
    assert "CRC-32C" in results[0][0]
    assert results[0][1] == 1
    assert len(list(tmp_path.glob("runs/run/checkpoints/step-00000002/*/QUARANTINED.json"))) == 1
    assert shard.exists()


def save_two(rank: int, world: int, root: str) -> None:
    store = CheckpointStore(LocalStorage(root), "run", CONFIG.checkpoint)
    store.begin(CONFIG)
    tensors = flat(*trained(True))
    store.save(1, tensors)
    store.save(2, tensors, wait=True)
    store.close()
