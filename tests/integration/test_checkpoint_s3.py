"""Checkpoints in a real S3 server: killed writers, changed bytes, parts, and DCP beside them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from torch.distributed.checkpoint.api import CheckpointException

from giblet.checkpoint import CheckpointStore, GibletStorageReader, GibletStorageWriter, open_checkpoint
from giblet.config.schema import GibletConfig
from giblet.errors import CheckpointError
from giblet.storage import Storage
from giblet.storage.embedded import EmbeddedServer
from tests.support.faults import faults_in, flip_bit, truncate
from tests.support.protocol_machine import ProtocolMachine

pytestmark = pytest.mark.s3
CONFIG = GibletConfig()
REPOSITORY = Path(__file__).parents[2]
STEP_FOUND = {
    "before shard": 1,
    "within shard": 1,
    "after shard": 1,
    "before manifest": 1,
    "after manifest": 2,
    "while pruning": 2,
}


def test_a_writer_killed_at_any_stage_leaves_a_whole_checkpoint(s3_server: EmbeddedServer) -> None:
    storage = s3_server.storage("killed")
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.killed_saver", storage.url, s3_server.endpoint_url, *STEP_FOUND],
        env={**os.environ, **s3_server.environment()}, cwd=REPOSITORY, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {row["stage"]: row for row in map(json.loads, done.stdout.splitlines())}
    for stage, step in STEP_FOUND.items():
        assert found[stage] == {"stage": stage, "signal": 9, "step": step, "state": {"step": step}, "whole": True}
    # the next start commits, and takes away what the dead one left
    store = CheckpointStore(storage, "after-shard")
    assert store.begin(CONFIG).resumed_step == 1
    store.save(2, {"w": torch.zeros(3)}, wait=True)
    prefix = "runs/after-shard/checkpoints/step-00000002/"
    assert {info.key.removeprefix(prefix).split("-")[0] for info in storage.list(prefix)} == {"00002"}
    assert storage.clean_unfinished(older_than_seconds=-60) >= 1, "the upload that was cut off"
    assert storage.clean_unfinished(older_than_seconds=-60) == 0


def test_any_history_leaves_in_a_real_bucket_what_was_promised(s3_server: EmbeddedServer) -> None:
    class RealMachine(ProtocolMachine):
        def open(self) -> Storage:
            return s3_server.storage("machine", uuid.uuid4().hex)

    logger = logging.getLogger("giblet")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        run_state_machine_as_test(RealMachine, settings=settings(  # type: ignore[no-untyped-call]
            max_examples=8, stateful_step_count=12, phases=[Phase.generate], deadline=None, derandomize=True,
            suppress_health_check=list(HealthCheck),
        ))  # fmt: skip
    finally:
        logger.setLevel(level)


@pytest.mark.parametrize("fault", ["flip", "truncate manifest", "lose shard"])
def test_damage_in_the_bucket_is_quarantined_and_the_one_before_is_taken(fault: str, s3_server: EmbeddedServer) -> None:
    storage = s3_server.storage("damage", fault.replace(" ", "-"))
    store = CheckpointStore(storage, "run")
    store.begin(CONFIG)
    tensors = {"w": torch.arange(5000.0)}
    one, two = (store.save(step, tensors, {"step": step}, wait=True) for step in (1, 2))
    shard = f"{two.prefix}rank-00000.safetensors"
    if fault == "flip":
        flip_bit(storage, shard)
    elif fault == "truncate manifest":
        truncate(storage, two.manifest_key, 100)
    else:
        storage.delete(shard)
    fresh = CheckpointStore(storage, "run")
    start = fresh.begin(CONFIG)
    if fault == "flip":
        assert start.resumed_from == two
        with pytest.raises(CheckpointError, match="CRC-32C"):
            fresh.load(two, tensors)
        assert fresh.latest() == one
    else:
        assert start.resumed_from == one
    assert fresh.load(one, {"w": torch.zeros(5000)}) == {"step": 1}
    assert storage.head(two.quarantine_key) is not None


def test_a_shard_in_parts_comes_back_and_scans(s3_server: EmbeddedServer) -> None:
    storage = s3_server.storage("parts")
    store = CheckpointStore(storage, "run")
    store.begin(CONFIG)
    tensors = {f"w{n}": torch.arange(2_500_001, dtype=torch.float64) + n for n in range(4)}  # 80 MB
    ref = store.save(1, tensors, wait=True)
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    store.load(ref, found)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert faults_in(open_checkpoint(ref, storage=storage)) == []


@pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled:UserWarning"
)  # DCP says so where there is one process
def test_dcp_saves_to_and_loads_from_an_address(s3_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = s3_server.storage("dcp")
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    state = {"model": {"w": torch.randn(30, 40, dtype=torch.float64)}, "epoch": 3, "lr": 0.1}
    dcp.save(state, storage_writer=GibletStorageWriter("s3://dcp/x"))
    target = {"model": {"w": torch.zeros(30, 40, dtype=torch.float64)}, "epoch": 0, "lr": 0.0}
    dcp.load(target, storage_reader=GibletStorageReader(storage, prefix="x/"))
    assert torch.equal(target["model"]["w"], state["model"]["w"])  # type: ignore[index]
    assert (target["epoch"], target["lr"]) == (3, 0.1)
    with pytest.raises(CheckpointException, match="holds a checkpoint already"):
        dcp.save(state, storage_writer=GibletStorageWriter("s3://dcp/x"))
    with pytest.raises(CheckpointException, match="neither a tensor nor a plain value"):
        dcp.save({"model": Path()}, storage_writer=GibletStorageWriter("s3://dcp/y"))
    assert open_checkpoint("s3://dcp/x").manifest.values == {"epoch": 3, "lr": 0.1}
