"""The commit protocol as a state machine: any history of starts, saves, deaths, take-overs, judgements and damage.

Each process sees the store through a `Hooked` view, so that it can die before or after any call it makes, or find that
another process began (and saved) between two of its calls. What the store then holds is looked at directly, not through
the code under test.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from giblet.checkpoint import CheckpointRef, CheckpointStore
from giblet.checkpoint.layout import start_number, starts_prefix, verified_key
from giblet.checkpoint.resume import pointer_body
from giblet.config.load import load_config_data
from giblet.config.schema import GibletConfig
from giblet.errors import CheckpointError, GibletError, RunConflictError
from giblet.storage import MemoryStorage, Storage
from tests.support.faults import DeadError, Hooked, flip_bit, truncate

RUN = "run"
SIZE = 11
Event = tuple[str, int, bool] | None
EVENTS = st.one_of(
    st.none(),
    st.tuples(st.just("die"), st.integers(0, 24), st.booleans()),
    st.tuples(st.sampled_from(["another starts", "another starts and saves"]), st.integers(0, 24), st.booleans()),
)
DAMAGE = st.sampled_from(["flip", "shorten", "lose", "truncate manifest"])


def tensors(value: float) -> dict[str, torch.Tensor]:
    """What a save is given; every save has a value of its own."""
    return {"model.w": torch.full((SIZE,), value), "model.n": torch.tensor(int(value * 4))}


@dataclass(eq=False, slots=True)
class Process:
    """A trainer: its view of the store, its number, and the step its weights are at."""

    view: Hooked
    store: CheckpointStore
    number: int
    step: int = 0


class ProtocolMachine(RuleBasedStateMachine):
    """Against the in-memory store; a subclass opens another one."""

    def __init__(self) -> None:
        super().__init__()
        self.storage = self.open()
        self.config = GibletConfig()
        self.alive: list[Process] = []
        self.numbers: list[int] = []
        self.value_of: dict[CheckpointRef, float] = {}
        self.acknowledged: set[CheckpointRef] = set()
        self.spoilt: set[CheckpointRef] = set()
        self.newest_good: CheckpointRef | None = None
        self.verified: CheckpointRef | None = None
        self.found_step = 0
        self.saves = 0

    def open(self) -> Storage:
        """An empty store."""
        return MemoryStorage()

    def view(self) -> Storage:
        """A new process's view of it, a `Hooked` one or around one."""
        return Hooked(self.storage)

    @initialize(keep_last=st.integers(1, 2))
    def configure(self, keep_last: int) -> None:
        self.config = load_config_data({"checkpoint": {"keep_last": keep_last}})

    @rule(event=EVENTS)
    def start(self, event: Event) -> None:
        view = self.view()
        self._arm(view, event)
        self._begin(view)

    @precondition(lambda self: self.alive)
    @rule(age=st.integers(0, 2), event=EVENTS, best=st.booleans())
    def save(self, age: int, event: Event, best: bool) -> None:
        process = self.alive[max(0, len(self.alive) - 1 - age)]
        self._arm(process.view, event)
        self._save(process, best)

    @precondition(lambda self: self.newest_good is not None)
    @rule(accept=st.booleans())
    def judge(self, accept: bool) -> None:
        ref = self.newest_good
        assert ref is not None
        verdict = "SAFE" if accept else "UNSAFE"
        self.storage.put(ref.report_key, json.dumps({"verdict": verdict}).encode())
        if accept:
            self.storage.put(verified_key(RUN), pointer_body(ref))
            self.verified = ref
        else:
            self._spoil(ref)

    @precondition(lambda self: self.newest_good is not None)
    @rule(kind=DAMAGE)
    def damage(self, kind: str) -> None:
        ref = self.newest_good
        assert ref is not None
        shard = f"{ref.prefix}rank-00000.safetensors"
        if kind == "flip":
            flip_bit(self.storage, shard)
        elif kind == "shorten":
            truncate(self.storage, shard, 100)
        elif kind == "lose":
            self.storage.delete(shard)
        else:
            truncate(self.storage, ref.manifest_key, 200)
        self._spoil(ref)

    @invariant()
    def start_numbers_are_unique(self) -> None:
        assert len(set(self.numbers)) == len(self.numbers), f"two starts have one number: {self.numbers}"

    @invariant()
    def what_is_committed_is_whole(self) -> None:
        committed = self._committed()
        for ref in committed - self.spoilt:
            self._assert_whole(ref)
        good = committed - self.spoilt
        if self.newest_good is not None and self.newest_good not in self.spoilt:
            newer = max(good, default=None)
            assert newer is not None, f"the last good one was deleted: {self.newest_good}"
            assert newer >= self.newest_good, f"the newest good one was deleted: {self.newest_good}"
        if self.verified is not None and self.verified not in self.spoilt:
            assert self.verified in committed, f"the newest verified one was deleted: {self.verified}"
        acknowledged = self.acknowledged - self.spoilt
        self.newest_good = max(good, default=None)
        if acknowledged and (newest := max(acknowledged)) in committed:
            assert self.newest_good is not None
            assert self.newest_good.step >= newest.step

    @invariant()
    def a_new_process_finds_the_newest(self) -> None:
        found = self._load(CheckpointStore(Hooked(self.storage), RUN))
        step = 0 if found is None else found.step
        good = max(self._committed() - self.spoilt, default=None)
        assert step >= self.found_step, f"latest() went back from step {self.found_step} to {step}"
        assert good is None or step >= good.step, f"a new process finds step {step} and passes over {good}"
        self.found_step = step

    def teardown(self) -> None:
        for process in self.alive:
            process.store.close()

    def _arm(self, view: Any, event: Event) -> None:
        view.disarm()
        if event is None:
            return
        what, number, after = event
        view.at(number, after=after, event=view.die if what == "die" else lambda: self._intrude("saves" in what))

    def _intrude(self, saves: bool) -> None:
        process = self._begin(self.view())
        assert process is not None
        if saves:
            self._save(process, best=False)

    def _begin(self, view: Any) -> Process | None:
        store = CheckpointStore(view, RUN)
        try:
            start = store.begin(self.config)
            process = Process(view, store, start.number)
            self.numbers.append(start.number)
            found = self._load(store, start.resumed_from)
        except (GibletError, DeadError):
            assert view.dead, "a start failed without a fault"
            return None
        process.step = 0 if found is None else found.step
        self.alive.append(process)
        return process

    def _save(self, process: Process, best: bool) -> None:
        self.saves += 1
        value, step = self.saves / 4, process.step + 1
        newest = process.number == self._newest_start()
        try:
            ref = process.store.save(step, tensors(value), {"value": value}, wait=True, best=best)
        except RunConflictError:
            assert process.number < self._newest_start(), "the newest start was fenced off"
            self.alive.remove(process)
            return
        except (GibletError, DeadError):
            assert process.view.dead, "a save failed without a fault"
            self.alive.remove(process)
            return
        assert newest, f"start {process.number} committed after start {self._newest_start()} took over"
        process.step = step
        self.acknowledged.add(ref)
        self.value_of[ref] = value

    def _load(self, store: CheckpointStore, ref: CheckpointRef | None = None) -> CheckpointRef | None:
        """As training does: what proves damaged is passed over for the one before."""
        ref = ref or store.latest()
        while ref is not None:
            target = tensors(-1.0)
            try:
                state = store.load(ref, target)
            except CheckpointError:
                ref = store.latest()
                continue
            expected = tensors(state["value"])
            assert all(torch.equal(target[name], expected[name]) for name in expected), "other bytes than were saved"
            assert self.value_of.setdefault(ref, state["value"]) == state["value"]
            assert 0 < state["value"] * 4 <= self.saves
            return ref
        return None

    def _spoil(self, ref: CheckpointRef) -> None:
        """From now on an older one may be found."""
        self.spoilt.add(ref)
        self.newest_good = max(self._committed() - self.spoilt, default=None)
        self.found_step = 0

    def _newest_start(self) -> int:
        """Also of one that died before it knew."""
        return max(start_number(info.key) or 0 for info in self.storage.list(starts_prefix(RUN)))

    def _committed(self) -> set[CheckpointRef]:
        refs = (CheckpointRef.of_manifest_key(info.key) for info in self.storage.list())
        return {ref for ref in refs if ref is not None}

    def _assert_whole(self, ref: CheckpointRef) -> None:
        manifest = json.loads(self.storage.get(ref.manifest_key))
        expected = tensors(manifest["state"]["value"])
        sizes = {info.key.removeprefix(ref.prefix): info.size_bytes for info in self.storage.list(ref.prefix)}
        for item in manifest["objects"]:
            assert sizes.get(item["key"]) == item["size_bytes"], f"a manifest without its {item['key']}"
        assert manifest["tensors"].keys() == expected.keys()
        for name, tensor in expected.items():
            data = b"".join(
                self.storage.get(ref.prefix + chunk["key"], chunk["start"], chunk["stop"])
                for chunk in manifest["tensors"][name]["chunks"]
            )
            assert data == tensor.numpy().tobytes(), f"{name} of {ref} is not as it was in memory"
