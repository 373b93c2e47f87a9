"""The commit protocol, crashed at every call to storage: what was committed is found, whole, or nothing is lost."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from giblet.checkpoint import CheckpointRef, CheckpointStore
from giblet.config.load import load_config_data
from giblet.errors import CheckpointError, GibletError
from giblet.storage import MemoryStorage
from tests.support.faults import DeadError, DiesAt, flip_bit, truncate

CONFIG = load_config_data({"checkpoint": {"keep_last": 2}})
SIZE = 11


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("giblet")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(level)


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"model.w": torch.full((SIZE,), float(value)), "model.n": torch.tensor(int(value * 4))}


def shadow(objects: MemoryStorage) -> MemoryStorage:
    """Another process's view of the same objects."""
    view = MemoryStorage()
    view.objects, view._modified, view._lock = objects.objects, objects._modified, objects._lock
    return view


def recover(objects: MemoryStorage) -> tuple[CheckpointRef, float] | None:
    """What a healthy new process finds: the checkpoint it would go on from, and what it holds."""
    store = CheckpointStore(shadow(objects), "run")
    while (ref := store.latest()) is not None:
        target = tensors(-1)
        try:
            state = store.load(ref, target)
        except CheckpointError:
            continue
        value = float(target["model.w"][0])
        assert torch.equal(target["model.w"], torch.full((SIZE,), value)), "two saves are mixed"
        assert int(target["model.n"]) == int(value * 4)
        assert state == {"value": value}
        return ref, value
    return None


def run_to_its_death(objects: MemoryStorage, number: int | None, after: bool) -> tuple[int, int]:
    """Begin, save steps 1 to 4; returns the last step known committed, and how many calls were made."""
    view = shadow(objects)
    fate = DiesAt(view, number, after=after)
    acknowledged = 0
    try:
        store = CheckpointStore(view, "run")
        store.begin(CONFIG)
        for step in (1, 2, 3, 4):
            store.save(step, tensors(step / 4), {"value": step / 4}, wait=True, best=step == 2)
            acknowledged = step
    except (GibletError, DeadError):
        assert fate.dead
    return acknowledged, fate.calls


def test_death_at_every_call_loses_no_acknowledged_step() -> None:
    _, calls = run_to_its_death(MemoryStorage(), None, after=False)
    assert calls > 30
    for number in range(calls):
        for after in (False, True):
            objects = MemoryStorage()
            acknowledged, _ = run_to_its_death(objects, number, after)
            found = recover(objects)
            step = found[0].step if found else 0
            assert acknowledged <= step <= acknowledged + 1, (number, after)
            assert found is None or found[1] == step / 4
            # and a new start goes on from there
            store = CheckpointStore(shadow(objects), "run")
            assert store.begin(CONFIG).resumed_step == step
            store.save(step + 1, tensors(9), {"value": 9.0}, wait=True)
            assert recover(objects) == (store.last_committed, 9.0)


save_actions = st.tuples(
    st.just("save"), st.integers(0, 2), st.one_of(st.none(), st.tuples(st.integers(0, 14), st.booleans()))
)
actions = st.lists(
    st.one_of(
        save_actions,
        save_actions,
        st.tuples(st.just("start")),
        st.tuples(st.just("damage"), st.sampled_from(["shard", "manifest", "lost", "short"])),
    ),
    min_size=2,
    max_size=8,
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(actions)
def test_any_history_leaves_a_whole_checkpoint_behind(history: list[tuple[object, ...]]) -> None:
    """Starts, zombies of older starts, deaths, and damage, in any order.

    Model: a step is *good* once its save was acknowledged, until its bytes are damaged. Recovery finds a checkpoint
    that holds exactly what some save was given, and none older than the newest good one that retention must keep.
    """
    objects = MemoryStorage()
    processes: list[tuple[MemoryStorage, CheckpointStore]] = []
    given_to_save: dict[int, set[float]] = {}
    good: set[int] = set()
    damaged = 0
    value = step = 0

    def start() -> None:
        view = shadow(objects)
        store = CheckpointStore(view, "run")
        store.begin(CONFIG)
        processes.append((view, store))

    start()
    for action in history:
        if action[0] == "start":
            start()
        elif action[0] == "save":
            _, age, death = action
            view, store = processes[max(0, len(processes) - 1 - age)]  # type: ignore[operator]
            value, step = value + 1, step + 1
            given_to_save.setdefault(step, set()).add(value / 4)
            number, after = death if death is not None else (None, False)  # type: ignore[misc]
            fate = DiesAt(view, number, after=after)
            try:
                store.save(step, tensors(value / 4), {"value": value / 4}, wait=True)
                good.add(step)
                assert age == 0 or store is processes[-1][1], "an older start committed"
            except (GibletError, DeadError):
                pass
            if fate.dead:
                processes = [(other, s) for other, s in processes if s is not store]
                if not processes:
                    start()
        elif (found := recover(objects)) is not None and damaged == 0:
            damaged += 1
            good.discard(found[0].step)
            damage(objects, found[0], str(action[1]))
    found = recover(objects)
    newest_good = max(good, default=0)
    if newest_good:
        assert found is not None
        assert found[0].step >= newest_good
    if found is not None:
        assert found[1] in given_to_save[found[0].step]


def damage(objects: MemoryStorage, ref: CheckpointRef, kind: str) -> None:
    shard = f"{ref.prefix}rank-00000.safetensors"
    if kind == "shard":
        flip_bit(objects, shard)
    elif kind == "manifest":
        truncate(objects, ref.manifest_key, 200)
    elif kind == "lost":
        objects.delete(shard)
    else:
        truncate(objects, shard, 100)
