"""Saves a second checkpoint and is SIGKILLed at a stated place of it; run by test_checkpoint_s3.

    python -m tests.support.killed_saver URL ENDPOINT STAGE…   prints a JSON object a stage: what a new process finds

Each stage is a process of its own (forked, since importing torch takes seconds), and its death is a real one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any, BinaryIO

import torch

from giblet.checkpoint import CheckpointStore
from giblet.config.schema import CheckpointConfig, GibletConfig
from giblet.errors import CheckpointError
from giblet.storage import Storage, open_storage

SMALL, LARGE = 1_000, 20_000_000  # 80 MB: three parts


class Deadly:
    """A store that kills its process at one place."""

    def __init__(self, inner: Storage, stage: str) -> None:
        self._inner, self._stage, self.armed = inner, stage, False
        self.url, self.get, self.head, self.list = inner.url, inner.get, inner.head, inner.list

    def put(self, key: str, body: Any, *, if_absent: bool = False) -> int:
        name = key.rpartition("/")[2]
        self._die_if("before shard", name.endswith(".safetensors"))
        self._die_if("before manifest", name == "MANIFEST.json")
        if self.armed and self._stage == "within shard" and name.endswith(".safetensors"):
            body = DeadlyBody(body)
        size = self._inner.put(key, body, if_absent=if_absent)
        self._die_if("after shard", name.endswith(".safetensors"))
        self._die_if("after manifest", name == "MANIFEST.json")
        return size

    def delete(self, key: str) -> None:
        self._inner.delete(key)
        self._die_if("while pruning", key.endswith("MANIFEST.json"))

    def _die_if(self, stage: str, here: bool) -> None:
        if self.armed and here and stage == self._stage:
            os.kill(os.getpid(), signal.SIGKILL)


class DeadlyBody:
    """A body whose reader dies when two parts are on their way."""

    def __init__(self, body: BinaryIO) -> None:
        self._body, self._reads = body, 0

    def read(self, size: int = -1) -> bytes:
        self._reads += 1
        if self._reads == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._body.read(size)


def save(storage: Storage, run: str, stage: str) -> None:
    config = GibletConfig.model_validate({"checkpoint": {"keep_last": 1}})
    deadly = Deadly(storage, stage)
    store = CheckpointStore(deadly, run)
    store.begin(config)
    store.save(1, {"w": torch.ones(SMALL)}, {"step": 1}, wait=True)
    deadly.armed = True
    store.save(2, {"w": torch.full((LARGE if stage == "within shard" else SMALL,), 2.0)}, {"step": 2}, wait=True)


def find(storage: Storage, run: str) -> dict[str, object]:
    store = CheckpointStore(storage, run)
    while (ref := store.latest()) is not None:
        target = {"w": torch.zeros(SMALL)}
        try:
            state = store.load(ref, target)
        except CheckpointError:
            continue
        return {"step": ref.step, "state": state, "whole": bool((target["w"] == ref.step).all())}
    return {"step": None}


def main(url: str, endpoint: str, stages: list[str]) -> None:
    torch.set_num_threads(1)
    config = CheckpointConfig(url=url, endpoint_url=endpoint or None)
    for stage in stages:
        run = stage.replace(" ", "-")
        child = os.fork()
        if child == 0:
            save(open_storage(url, config), run, stage)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        found = find(open_storage(url, config), run)
        print(json.dumps({"stage": stage, "signal": os.WTERMSIG(status), **found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
