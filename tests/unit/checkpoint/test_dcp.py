"""PyTorch's own `dcp.save`, `async_save` and `load` with our writer and reader, in one process."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

from giblet.checkpoint import GibletStorageReader, GibletStorageWriter
from giblet.storage import LocalStorage
from tests.support.faults import flip_bit

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable):UserWarning")
VALUES = {
    "step": 12, "rate": 0.1 + 0.2, "worst": math.inf, "name": "µ\n", "nothing": None, "flag": True, "raw": b"\0\xff",
    "pair": (1, (2.5, "x")), "by_number": ({1: "a", 2: [3]},), "steps": [1, 2, 3],
}  # fmt: skip


def some_tensors() -> dict[str, torch.Tensor]:
    return {
        "float": torch.randn(30, 7),
        "double": torch.randn(5, dtype=torch.float64),
        "bf16": torch.randn(9, 2).bfloat16(),
        "half": torch.randn(3).half(),
        "int": torch.arange(-5, 5),
        "byte": torch.arange(7, dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "complex": torch.randn(3, dtype=torch.complex64),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "transposed": torch.randn(4, 6).T,
        "every_second": torch.arange(20.0)[::2],
        "expanded": torch.tensor([1.5]).expand(3, 2),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }


def state() -> dict[str, Any]:
    tensors = some_tensors()
    return {"model": tensors, "optimizer": {"state": [{"m": torch.ones(2)}, {"m": torch.zeros(2)}]}, "values": VALUES}


def blank(value: Any) -> Any:
    """The same structure with nothing of it left."""
    if isinstance(value, torch.Tensor):
        return torch.zeros(value.shape, dtype=value.dtype)
    if isinstance(value, dict):
        return {key: blank(item) for key, item in value.items()}
    return [blank(item) for item in value] if isinstance(value, list) and not isinstance(value[0], int) else 0


def assert_same(found: Any, expected: Any) -> None:
    assert isinstance(found, torch.Tensor) == isinstance(expected, torch.Tensor)
    if isinstance(expected, torch.Tensor):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert torch.equal(found, expected.detach())
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert (type(found), found) == (type(expected), expected)


def test_nested_tensors_and_values_come_back(tmp_path: Path) -> None:
    saved = state()
    dcp.save(saved, storage_writer=GibletStorageWriter(tmp_path))
    found = blank(saved)
    dcp.load(found, storage_reader=GibletStorageReader(tmp_path))
    assert_same(found, saved)
    assert {path.name for path in tmp_path.iterdir()} <= {"MANIFEST.json", "rank-00000.safetensors", ".partial"}


def test_an_address_can_be_given_at_the_call(tmp_path: Path) -> None:
    writer, reader = GibletStorageWriter(tmp_path / "x"), GibletStorageReader(tmp_path / "x")
    for place in ("a", "b"):
        dcp.save({"w": torch.ones(3)}, checkpoint_id=tmp_path / place, storage_writer=writer)
        found = {"w": torch.zeros(3)}
        dcp.load(found, checkpoint_id=tmp_path / place, storage_reader=reader)
        assert torch.equal(found["w"], torch.ones(3))
    assert writer.checkpoint_id == reader.checkpoint_id == str(tmp_path / "b")


def test_what_is_not_asked_for_is_not_read(tmp_path: Path) -> None:
    dcp.save(state(), storage_writer=GibletStorageWriter(tmp_path))
    shard = tmp_path / "rank-00000.safetensors"
    manifest = GibletStorageReader(tmp_path).manifest
    (chunk,) = manifest.tensors["model.float"].chunks
    flip_bit(LocalStorage(tmp_path), shard.name, chunk.start)
    found = {"model": {"double": torch.zeros(5, dtype=torch.float64)}, "values": {"step": 0}}
    dcp.load(found, storage_reader=GibletStorageReader(tmp_path))
    assert found["values"]["step"] == 12
    with pytest.raises(CheckpointException, match=r"model\.float are not those that were written"):
        dcp.load({"model": {"float": torch.zeros(30, 7)}}, storage_reader=GibletStorageReader(tmp_path))


def test_a_partial_load_leaves_what_is_missing(tmp_path: Path) -> None:
    dcp.save({"a": torch.ones(3)}, storage_writer=GibletStorageWriter(tmp_path))
    found = {"a": torch.zeros(3), "b": torch.full((2,), 7.0)}
    with pytest.raises(CheckpointException, match="Missing key"):
        dcp.load(dict(found), storage_reader=GibletStorageReader(tmp_path))
    planner = DefaultLoadPlanner(allow_partial_load=True)
    dcp.load(found, storage_reader=GibletStorageReader(tmp_path), planner=planner)
    assert torch.equal(found["a"], torch.ones(3))
    assert torch.equal(found["b"], torch.full((2,), 7.0))


def test_keys_alone_are_enough_to_load(tmp_path: Path) -> None:
    saved = state()
    dcp.save(saved, storage_writer=GibletStorageWriter(tmp_path))
    found = _load_state_dict_from_keys({"model.float", "values"}, storage_reader=GibletStorageReader(tmp_path))
    assert_same(found, {"model": {"float": saved["model"]["float"]}, "values": VALUES})


def test_another_type_is_converted_and_another_shape_refused(tmp_path: Path) -> None:
    values = torch.randn(40)
    dcp.save({"w": values}, storage_writer=GibletStorageWriter(tmp_path))
    found = {"w": torch.zeros(40, dtype=torch.bfloat16)}
    dcp.load(found, storage_reader=GibletStorageReader(tmp_path))
    assert torch.equal(found["w"], values.bfloat16())
    with pytest.raises(CheckpointException, match=r"[Ss]ize mismatch"):
        dcp.load({"w": torch.zeros(41)}, storage_reader=GibletStorageReader(tmp_path))


def test_an_asynchronous_save_holds_what_was_there_at_the_call(tmp_path: Path) -> None:
    tensor = torch.ones(1000)
    saving = dcp.async_save({"w": tensor, "step": 3}, storage_writer=GibletStorageWriter(tmp_path))
    tensor.fill_(9)
    saving.result()  # type: ignore[union-attr]
    found = {"w": torch.zeros(1000), "step": 0}
    dcp.load(found, storage_reader=GibletStorageReader(tmp_path))
    assert_same(found, {"w": torch.ones(1000), "step": 3})


def test_cached_plans_write_every_time(tmp_path: Path) -> None:
    for step in range(3):
        planner = DefaultSavePlanner(enable_plan_caching=True)
        dcp.save({"w": torch.full((4,), float(step))}, storage_writer=GibletStorageWriter(tmp_path / str(step)),
                 planner=planner)  # fmt: skip
        found = {"w": torch.zeros(4)}
        dcp.load(found, storage_reader=GibletStorageReader(tmp_path / str(step)))
        assert torch.equal(found["w"], torch.full((4,), float(step)))


class Counter:
    """A `Stateful`."""

    def __init__(self, count: int) -> None:
        self.count = count

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]


def test_stateful_objects(tmp_path: Path) -> None:
    model, counter = torch.nn.Linear(3, 2), Counter(5)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    dcp.save({"model": model, "counter": counter}, storage_writer=GibletStorageWriter(tmp_path))
    torch.nn.init.zeros_(model.weight)
    counter.count = 0
    dcp.load({"model": model, "counter": counter}, storage_reader=GibletStorageReader(tmp_path))
    assert_same(dict(model.state_dict()), expected)
    assert counter.count == 5


def test_what_cannot_be_kept_is_refused_by_name_and_nothing_is_committed(tmp_path: Path) -> None:
    for what, words in ((Path(), "thing: neither a tensor"), (torch.zeros(1, dtype=torch.complex128), "complex128"),
                        ({1, 2}, "thing: neither a tensor")):  # fmt: skip
        with pytest.raises(CheckpointException, match=words):
            dcp.save({"thing": what}, storage_writer=GibletStorageWriter(tmp_path))
    with pytest.raises(Exception, match="use_collectives"):
        dcp.save({"w": torch.ones(1)}, storage_writer=GibletStorageWriter(tmp_path), use_collectives=False)
    assert not (tmp_path / "MANIFEST.json").exists()
    dcp.save({"w": torch.ones(1)}, storage_writer=GibletStorageWriter(tmp_path))
    with pytest.raises(CheckpointException, match="holds a checkpoint already"):
        dcp.save({"w": torch.ones(1)}, storage_writer=GibletStorageWriter(tmp_path))


def test_writer_and_reader_travel_to_another_process(tmp_path: Path) -> None:
    store = LocalStorage(tmp_path)
    writer = pickle.loads(pickle.dumps(GibletStorageWriter(str(tmp_path), prefix="deep/er", state={"a": 1}, step=4)))
    dcp.save({"w": torch.ones(2)}, storage_writer=writer)
    assert store.head("deep/er/MANIFEST.json") is not None
    reader = pickle.loads(pickle.dumps(GibletStorageReader(str(tmp_path), prefix="deep/er")))
    found = {"w": torch.zeros(2)}
    dcp.load(found, storage_reader=reader)
    assert (reader.manifest.state, reader.manifest.step) == ({"a": 1}, 4)
    assert torch.equal(found["w"], torch.ones(2))
    pickle.dumps(GibletStorageWriter("s3://bucket/x"))
