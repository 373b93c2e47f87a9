"""`make scale` in small: how what a checkpoint costs grows with the ranks, through the same simulation."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from giblet.checkpoint.shard import ShardStream, lay_out
from tests.support.cluster import REPOSITORY as REPOSITORY  # puts ci/ on the path

# isort: split
from scale import prices, report
from scale.checkpoint import Result, fake_group, simulate, zeros
from scale.counting import CountingStorage
from scale.model70b import parameters, replicated_tensors, sharded_tensors
from scale.peers import peer_plan, written_zeros

LAYERS, WIDTH = 1, 256
FEW, MANY = 16, 64


@functools.cache
def result(ranks: int) -> Result:
    return simulate(ranks, layers=LAYERS, width=WIDTH)


def test_requests_of_a_save_grow_no_faster_than_the_ranks() -> None:
    few, many = result(FEW).steps["next save"].requests, result(MANY).steps["next save"].requests
    assert many["HeadObject"] == MANY
    assert few.keys() >= many.keys() - {"CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"}
    for operation, count in many.items():
        assert count <= few.get(operation, 1) * MANY / FEW, operation
    assert many["ListObjectsV2"] == few["ListObjectsV2"]


def test_the_manifest_grows_with_the_chunks_and_no_faster() -> None:
    sizes = [result(ranks).manifest_bytes / result(ranks).chunks for ranks in (FEW, MANY)]
    assert max(sizes) < 200
    assert sizes[1] < sizes[0] * 1.1


def test_only_the_first_save_sends_plans_to_the_first_rank() -> None:
    steps = result(MANY).steps
    assert steps["next save"].gathered_bytes < 0.7 * steps["first save"].gathered_bytes
    assert "global plan" in steps["first save"].readings
    assert "global plan" not in steps["next save"].readings


def test_a_resume_reads_the_manifest_once_to_choose_and_once_to_load() -> None:
    for ranks in (FEW, MANY):
        reads = result(ranks).steps["resume"].read_keys
        assert reads["MANIFEST.json"] == 2
        assert result(ranks).steps["resume"].readings["parse"].times == 2


def test_peers_are_planned_as_dcp_plans_them() -> None:
    """Uneven rows, ranks without any, and what every rank holds."""
    world, sharded, replicated = 24, sharded_tensors(1, 128), replicated_tensors(1)
    plans = {}
    for rank in (0, 1, world // 2, world - 1):
        with fake_group(rank, world):
            planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
            planner.set_up_planner(zeros(world, rank, sharded, replicated), is_coordinator=rank == 0)
            plans[rank] = planner.create_local_plan()
    assert any(item.tensor_data.chunk.sizes[0] == 0 for item in plans[world - 1].items if item.tensor_data.size)
    for rank, real in plans.items():
        assert peer_plan(plans[0], rank, world) == real, rank


def test_an_upload_of_zeros_is_told_of_as_a_real_one_would_be() -> None:
    world = 4
    with fake_group(0, world):
        planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        planner.set_up_planner(zeros(world, 0, {"w": (40_001, 300)}, ["n"]), is_coordinator=True)
        shape = lay_out(planner.create_local_plan().items)
    stream = ShardStream("rank-00000.safetensors", shape, lambda entry: memoryview(bytes(entry.stop - entry.start)))
    storage = CountingStorage()
    storage.put("runs/r/rank-00000.safetensors", stream)  # type: ignore[arg-type]
    told = written_zeros("rank-00000.safetensors", shape)
    assert [entry.storage_data.chunk for entry in told] == stream.chunks
    assert {entry.storage_data.object.size_bytes for entry in told} == {stream.object.size_bytes}
    assert storage.sizes == {"runs/r/rank-00000.safetensors": shape.size_bytes}


def test_the_model_has_seventy_billion_parameters() -> None:
    assert len(parameters()) == 723
    assert sum(torch.Size(shape).numel() for shape in parameters().values()) == 70_553_706_496


def test_prices() -> None:
    assert prices.requests_dollars({"UploadPart": 1000, "GetObject": 1000, "DeleteObject": 9}) == pytest.approx(0.0054)
    assert prices.storage_dollars(10**12) == pytest.approx(23.0)
    with pytest.raises(KeyError, match="Teleport"):
        prices.requests_dollars({"Teleport": 1})


def test_the_tables_have_every_size() -> None:
    found = {"checkpoint": [dataclasses.asdict(result(ranks)) for ranks in (FEW, MANY)], "cluster": []}
    text = report.tables(found)
    assert f"| ranks | {FEW} | {MANY} |" in text
    assert f"| save: HEAD | {FEW} | {MANY} |" in text
