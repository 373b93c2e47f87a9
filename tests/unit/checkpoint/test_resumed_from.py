"""A start's record says where it really went on from, also when the checkpoint it meant to take proves damaged."""

from __future__ import annotations

import pytest
import torch

from giblet.checkpoint import CheckpointStore, exact_json, layout
from giblet.config.schema import GibletConfig
from giblet.errors import CheckpointError
from giblet.storage import MemoryStorage
from tests.support.faults import flip_bit

CONFIG = GibletConfig()


def test_the_record_of_a_start_is_corrected_when_loading_takes_the_one_before() -> None:
    storage = MemoryStorage()
    first = CheckpointStore(storage, "run", CONFIG.checkpoint)
    first.begin(CONFIG)
    tensors = {"w": torch.arange(8.0)}
    good, bad = (first.save(step, tensors, {"step": step}, wait=True) for step in (1, 2))
    flip_bit(storage, bad.prefix + layout.shard_name(0))
    second = CheckpointStore(storage, "run", CONFIG.checkpoint)
    assert second.begin(CONFIG).resumed_from == bad
    with pytest.raises(CheckpointError):
        second.load(bad, {"w": torch.zeros(8)})
    assert second.load(second.latest(), {"w": torch.zeros(8)}) == {"step": 1}
    record = exact_json.loads(storage.get(layout.start_key("run", 2)))
    assert record["resumed_from"] == {"step": 1, "attempt": good.attempt}
    assert record["world_size"] == 1
    second.save(3, tensors, {"step": 3}, wait=True)
    second.load(good, {"w": torch.zeros(8)})
    assert exact_json.loads(storage.get(layout.start_key("run", 2)))["resumed_from"]["step"] == 1
