"""`CheckpointStore` in one process: what goes in comes out, what is damaged is found, who may write is settled."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from giblet.checkpoint import CheckpointStore, Manifest, list_checkpoints, list_runs, open_checkpoint
from giblet.checkpoint import store as store_module
from giblet.checkpoint.resume import pointer_body
from giblet.config.load import load_config_data
from giblet.config.schema import GibletConfig
from giblet.errors import CheckpointError, OutOfSpaceError, RunConflictError, StorageUnavailableError
from giblet.storage import LocalStorage, MemoryStorage
from giblet.storage.memory import Call
from giblet.telemetry.metrics import Metrics
from tests.support.faults import faults_in, flip_bit, truncate

CONFIG = GibletConfig()
DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.float8_e4m3fn,
    torch.float8_e5m2,
]  # fmt: skip


@pytest.fixture(autouse=True)
def _log_is_heard() -> Iterator[None]:
    """caplog listens at the root."""
    logger = logging.getLogger("giblet")
    before, logger.propagate = logger.propagate, True
    yield
    logger.propagate = before


def begun(storage: MemoryStorage | LocalStorage, config: GibletConfig = CONFIG) -> CheckpointStore:
    store = CheckpointStore(storage, "run", config.checkpoint)
    store.begin(config)
    return store


def bits(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def blank(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


def test_every_type_and_shape_comes_back_bit_for_bit(tmp_path: Path) -> None:
    raw = torch.arange(24, dtype=torch.uint8) % 2
    tensors = {f"model.{str(d).rpartition('.')[2]}": raw.to(d).reshape(4, 6) for d in DTYPES}
    tensors |= {
        "zero_dimensions": torch.tensor(math.pi, dtype=torch.float64),
        "empty": torch.empty(0, 5),
        "transposed": torch.arange(12.0).reshape(3, 4).T,
        "every_second": torch.arange(20)[::2],
        "expanded": torch.tensor([1.5]).expand(3, 2),
        "special": torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-45]),
    }
    store = begun(LocalStorage(tmp_path))
    ref = store.save(7, tensors, wait=True)
    found = blank(tensors)
    store.load(ref, found)
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert bits(found[name]) == bits(tensor), name
    shard = tmp_path / ref.prefix / "rank-00000.safetensors"
    assert (8 + int.from_bytes(shard.read_bytes()[:8], "little")) % 64 == 0, "the tensors begin at a cache line"
    by_another_tool = load_file(shard)
    assert {name: bits(tensor) for name, tensor in by_another_tool.items()} == {n: bits(t) for n, t in tensors.items()}
    assert not any(b"pickle" in path.read_bytes() or path.read_bytes()[:2] == b"\x80\x02" for path in _files(tmp_path))


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_tensor_larger_than_a_block_and_a_request_comes_back() -> None:
    store = begun(MemoryStorage())
    tensors = {"w": torch.arange(9_300_001, dtype=torch.float32), "v": torch.arange(3_000_000)}  # 37 and 24 MB
    found = blank(tensors)
    found["v"] = torch.zeros(3_000_000, 2, dtype=torch.int64)[:, 0]  # not contiguous: filled by way of a copy
    store.load(store.save(1, tensors, wait=True), found)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_state_is_exact() -> None:
    state = {
        "step": 12, "loss": 0.1 + 0.2, "best": math.inf, "tiny": 5e-324, "nothing": None, "nested": [1, [2.5, (True,)]],
        "by_number": {1: "a", 2: "b"}, "big": 2**80, "text": "µ∂é\n\"'",
    }  # fmt: skip
    store = begun(MemoryStorage())
    ref = store.save(1, {"w": torch.zeros(1)}, state, wait=True)
    found = store.load(ref, {"w": torch.zeros(1)})
    assert found == state
    assert isinstance(found["nested"][1][1], tuple)
    nan = store.load(store.save(2, {"w": torch.zeros(1)}, {"x": math.nan}, wait=True), {"w": torch.zeros(1)})
    assert math.isnan(nan["x"])


def test_training_goes_on_while_a_save_uploads() -> None:
    """The tensors and the state that are saved are those of the call, whatever happens to them afterwards."""
    storage = MemoryStorage()
    store = begun(storage)
    tensors, state = {"w": torch.ones(1000)}, {"losses": [1.0]}
    ref = store.save(1, tensors, state)
    tensors["w"].fill_(5)
    state["losses"].append(2.0)
    store.wait()
    found = blank(tensors)
    assert store.load(ref, found) == {"losses": [1.0]}
    assert torch.equal(found["w"], torch.ones(1000))


def test_one_save_is_in_flight_and_the_buffer_is_reused() -> None:
    store = begun(MemoryStorage())
    memory = set()
    for step in range(1, 6):
        store.save(step, {"w": torch.full((100,), float(step))})
        memory.add(store._buffer._memory.data_ptr())
    store.wait()
    assert len(memory) == 1
    assert [entry.step for entry in list_checkpoints(store.storage, "run")] == [3, 4, 5]


@pytest.mark.parametrize("fault", ["flip", "truncate manifest", "flip manifest", "lose shard", "shorten shard"])
def test_a_damaged_checkpoint_is_quarantined_and_the_one_before_is_taken(fault: str) -> None:
    storage = MemoryStorage()
    store = begun(storage)
    tensors = {"w": torch.arange(100.0)}
    one, two = (store.save(step, tensors, {"step": step}, wait=True) for step in (1, 2))
    shard = f"{two.prefix}rank-00000.safetensors"
    a_number = storage.objects[two.manifest_key].index(b'"step"') + 7
    before = set(storage.objects)
    {
        "flip": lambda: flip_bit(storage, shard),
        "truncate manifest": lambda: truncate(storage, two.manifest_key, 300),
        "flip manifest": lambda: flip_bit(storage, two.manifest_key, a_number),
        "lose shard": lambda: storage.delete(shard),
        "shorten shard": lambda: truncate(storage, shard, 150),
    }[fault]()
    fresh = CheckpointStore(storage, "run")
    ref = fresh.latest()
    assert ref is not None
    if fault == "flip":  # a size tells nothing of a bit: it shows when the byte is read
        assert ref == two
        with pytest.raises(CheckpointError, match="CRC-32C differs"):
            fresh.load(ref, blank(tensors))
        ref = fresh.latest()
    assert ref == one
    assert fresh.load(one, blank(tensors)) == {"step": 1}
    assert two.quarantine_key in storage.objects
    assert before - set(storage.objects) <= {shard}, "quarantine deletes nothing"
    assert [(c.step, c.quarantined) for c in list_checkpoints(storage, "run")] == [(1, False), (2, True)]
    assert begun(storage).last_committed == one


def test_a_run_whose_checkpoints_are_all_bad_begins_anew_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    storage = MemoryStorage()
    ref = begun(storage).save(1, {"w": torch.ones(3)}, wait=True)
    storage.delete(f"{ref.prefix}rank-00000.safetensors")
    assert CheckpointStore(storage, "run").begin(CONFIG).resumed_from is None
    assert any("begins anew" in record.message for record in caplog.records)
    assert ref.manifest_key in storage.objects


def test_every_single_flipped_byte_is_found() -> None:
    storage = MemoryStorage()
    store = begun(storage)
    ref = store.save(1, {"w": torch.arange(6.0)}, wait=True)
    for key in (ref.manifest_key, f"{ref.prefix}rank-00000.safetensors"):
        whole = storage.objects[key]
        for at in range(0, len(whole), 3):
            flip_bit(storage, key, at)
            try:
                found = open_checkpoint(ref, storage=storage)
            except CheckpointError:
                pass
            else:
                assert faults_in(found), (key, at)
            storage.objects[key] = whole


def test_an_address_finds_run_step_attempt_and_manifest(tmp_path: Path) -> None:
    store = begun(LocalStorage(tmp_path))
    refs = [store.save(step, {"w": torch.zeros(1)}, wait=True) for step in (1, 2, 2)]
    for address, ref in (
        ("runs/run", refs[2]), ("runs/run/checkpoints/step-1", refs[0]),
        ("runs/run/checkpoints/step-00000002/", refs[2]), (refs[1].prefix, refs[1]), (refs[1].manifest_key, refs[1]),
    ):  # fmt: skip
        assert open_checkpoint(f"{tmp_path}/{address}").ref == ref, address
    for address in ("runs/none", "runs/run/checkpoints/step-9", "runs/run/starts/1.json", "nowhere"):
        with pytest.raises(CheckpointError):
            open_checkpoint(f"{tmp_path}/{address}")


def test_a_changed_configuration_is_refused_by_its_keys() -> None:
    storage = MemoryStorage()
    begun(storage)
    may = load_config_data({"training": {"epochs": 3}, "checkpoint": {"keep_last": 9}, "verify": {"restore": False}})
    begun(storage, may)
    with pytest.raises(RunConflictError) as caught:
        begun(storage, load_config_data({"training": {"learning_rate": 0.5}, "run": {"seed": 8}}))
    assert caught.value.exit_code == 75
    for words in ("training.learning_rate: was 0.0001, is now 0.5", "run.seed: was 7, is now 8", "run.name"):
        assert words in str(caught.value)
    assert "epochs" not in str(caught.value)


def test_a_newer_start_takes_over_and_the_older_one_ends() -> None:
    storage = MemoryStorage()
    old, tensors = begun(storage), {"w": torch.zeros(3)}
    first = old.save(1, tensors, wait=True)
    new = begun(storage)
    assert new.last_committed == first
    with pytest.raises(RunConflictError, match="start 2 of run run took over from start 1"):
        old.save(2, tensors, wait=True)
    with pytest.raises(RunConflictError):
        old.save(3, tensors)
    ref = new.save(2, tensors, wait=True)
    assert CheckpointStore(storage, "run").latest() == ref
    assert sum(key.endswith("MANIFEST.json") for key in storage.objects) == 2


def test_starts_are_numbered_once_even_at_one_moment() -> None:
    storage = MemoryStorage()
    begun(storage)
    race = CheckpointStore(storage, "run")
    started = []

    def intrude(call: Call, key: str) -> None:
        if call == "put" and key.endswith("starts/2.json") and not started:
            started.append(key)
            begun(storage)

    storage.before = intrude
    assert race.begin(CONFIG).number == 3
    assert [key for key in storage.objects if "/starts/" in key] == [f"runs/run/starts/{n}.json" for n in (1, 2, 3)]


def test_a_start_says_where_it_resumed_and_how_it_ended() -> None:
    storage = MemoryStorage()
    store = begun(storage)
    store.save(4, {"w": torch.zeros(1)}, wait=True)
    store.end("done", 0, 4)
    store.end("crashed", 128, 3)
    assert b'"cause":"done"' in storage.objects["runs/run/starts/1.end.json"]
    start = CheckpointStore(storage, "run").begin(CONFIG)
    assert (start.number, start.resumed_step, start.world_size) == (2, 4, 1)
    assert b'"resumed_from":{"step":4,' in storage.objects["runs/run/starts/2.json"]
    (run,) = list_runs(storage)
    assert (run.run, run.starts, run.checkpoints, run.newest_step) == ("run", 2, 1, 4)


def test_storage_without_conditional_puts_is_named_and_works(caplog: pytest.LogCaptureFixture) -> None:
    storage = MemoryStorage("memory://old-server", conditional_puts=False)
    with caplog.at_level(logging.WARNING):
        store = begun(storage)
    assert [r.fields["storage"] for r in caplog.records if "conditional" in r.message] == ["memory://old-server"]  # type: ignore[attr-defined]
    ref = store.save(1, {"w": torch.zeros(1)}, wait=True)
    again = begun(storage)
    assert again.last_committed == ref
    with pytest.raises(RunConflictError):
        store.save(2, {"w": torch.zeros(1)}, wait=True)
    with pytest.raises(RunConflictError, match="seed"):
        begun(storage, load_config_data({"run": {"seed": 8}}))


@pytest.mark.parametrize(
    ("request_of", "name"), [("put", ".safetensors"), ("head", ".safetensors"), ("list", ""), ("put", "MANIFEST.json")]
)
def test_uploads_and_commits_that_fail_twice_are_tried_again(
    request_of: Call, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "RETRY_PAUSES_SECONDS", (0.0, 0.0))
    storage = MemoryStorage()
    store = begun(storage)
    failures = [StorageUnavailableError("still away"), StorageUnavailableError("away")]

    def fail(call: Call, key: str) -> None:
        if call == request_of and key.endswith(name) and failures:
            raise failures.pop()

    storage.before = fail
    assert store.load(store.save(1, {"w": torch.ones(3)}, {"a": 1}, wait=True), {"w": torch.zeros(3)}) == {"a": 1}
    assert not failures


def test_a_commit_whose_answer_was_lost_is_found_to_be_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "RETRY_PAUSES_SECONDS", (0.0,))
    storage = MemoryStorage()
    store = begun(storage)
    put, lost = storage.put, []

    def put_and_lose(key: str, *arguments: Any, **options: Any) -> None:
        put(key, *arguments, **options)
        if key.endswith("MANIFEST.json") and not lost:
            lost.append(key)
            raise StorageUnavailableError("no answer")

    monkeypatch.setattr(storage, "put", put_and_lose)
    ref = store.save(1, {"w": torch.ones(3)}, wait=True)
    assert lost == [ref.manifest_key]
    assert store.last_committed == ref


def test_a_failed_save_is_counted_and_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "RETRY_PAUSES_SECONDS", (0.0,))
    storage, metrics = MemoryStorage(), Metrics("run")
    store = CheckpointStore(storage, "run", CONFIG.checkpoint, metrics)
    store.begin(CONFIG)
    first = store.save(1, {"w": torch.ones(3)}, wait=True)

    def away(call: Call, key: str) -> None:
        raise StorageUnavailableError("away")

    storage.before = away
    store.save(2, {"w": torch.ones(3)})
    store.save(3, {"w": torch.ones(3)})
    with pytest.raises(StorageUnavailableError, match="away"):
        store.wait()
    assert store.last_committed == first
    value = metrics.registry.get_sample_value
    assert value("giblet_checkpoint_failures_total", {"run": "run", "cause": "storage_unavailable"}) == 2
    assert value("giblet_checkpoint_committed_step", {"run": "run"}) == 1
    storage.before = lambda call, key: None
    assert store.save(4, {"w": torch.ones(3)}, wait=True).step == 4
    assert value("giblet_checkpoint_committed_step", {"run": "run"}) == 4
    assert value("giblet_checkpoint_save_seconds_count", {"run": "run"}) == 2


def test_a_full_disk_fails_the_save_and_keeps_the_last_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path)
    store = begun(storage)
    first = store.save(1, {"w": torch.ones(3)}, wait=True)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("giblet.storage.local.os.fsync", full)
    with pytest.raises(OutOfSpaceError, match="No space left") as caught:
        store.save(2, {"w": torch.ones(3)}, wait=True)
    assert caught.value.exit_code == 74
    monkeypatch.undo()
    assert CheckpointStore(storage, "run").latest() == first
    assert list(tmp_path.glob(".partial/*")) == []


def test_retention_keeps_last_kth_best_resumed_and_verified() -> None:
    storage = MemoryStorage()
    config = load_config_data({"checkpoint": {"keep_last": 2, "keep_every_steps": 10}})
    store = begun(storage, config)
    for step in range(1, 6):
        store.save(step, {"w": torch.zeros(1)}, best=step == 2, wait=True)
    store = begun(storage, config)  # resumes from 5
    refs = {step: store.save(step, {"w": torch.zeros(1)}, wait=True) for step in (6, 7)}
    storage.put("runs/run/verified.json", pointer_body(refs[6]))
    bad = store.save(8, {"w": torch.zeros(1)}, wait=True)
    flip_bit(storage, f"{bad.prefix}rank-00000.safetensors")
    with pytest.raises(CheckpointError):
        store.load(bad, {"w": torch.zeros(1)})
    for step in range(9, 16):
        store.save(step, {"w": torch.zeros(1)}, wait=True)
    assert [c.step for c in list_checkpoints(storage, "run")] == [2, 5, 6, 8, 10, 14, 15]
    assert CheckpointStore(storage, "run").latest(verified_first=True) == refs[6]
    assert open_checkpoint(refs[6], storage=storage).manifest.step == 6


def test_what_a_killed_save_left_is_removed_later_and_a_living_ones_is_not() -> None:
    storage = MemoryStorage()
    begun(storage)
    storage.put("runs/run/checkpoints/step-00000005/00001-00009-dead/rank-00000.safetensors", b"half")
    storage.put("runs/run/checkpoints/step-00000005/00007-00001-newer/rank-00000.safetensors", b"another start's")
    begun(storage).save(6, {"w": torch.zeros(1)}, wait=True)
    left = {key.split("/")[4] for key in storage.objects if "step-00000005" in key}
    assert left == {"00007-00001-newer"}


def test_what_does_not_fit_is_refused_and_not_quarantined() -> None:
    storage = MemoryStorage()
    store = begun(storage)
    ref = store.save(1, {"w": torch.zeros(3), "v": torch.zeros(2)}, wait=True)
    for tensors, words in (
        ({"w": torch.zeros(4)}, r"w is F32 \[4\] here and F32 \[3\] there"),
        ({"w": torch.zeros(3, dtype=torch.float64)}, r"F64 \[3\] here"),
        ({"u": torch.zeros(3)}, "it has no u"),
    ):
        with pytest.raises(CheckpointError, match=words):
            store.load(ref, tensors)
    assert store.load(ref, {"w": torch.ones(3)}) is None
    assert store.latest() == ref


def test_what_cannot_be_saved_is_refused_at_once() -> None:
    store = begun(MemoryStorage())
    with pytest.raises(CheckpointError, match="no exact JSON"):
        store.save(1, {"w": torch.zeros(1)}, {"x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="x: a float is no tensor"):
        store.save(1, {"x": 1.0})  # type: ignore[dict-item]
    with pytest.raises(CheckpointError, match="complex128 cannot be saved"):
        store.save(1, {"x": torch.zeros(1, dtype=torch.complex128)})
    with pytest.raises(CheckpointError, match="before begin"):
        CheckpointStore(MemoryStorage(), "run").save(1, {})


def test_a_manifest_that_contradicts_itself_is_refused() -> None:
    storage = MemoryStorage()
    ref = begun(storage).save(1, {"w": torch.zeros(3, 4), "v": torch.zeros(2)}, wait=True)
    manifest = Manifest.parse(storage.get(ref.manifest_key))
    tensor = manifest.tensors["w"]
    (chunk,) = tensor.chunks
    for name, changes in {
        "not listed": {"key": "rank-00009.safetensors"},
        "beyond": {"start": chunk.start + 10**6, "stop": chunk.stop + 10**6},
        "bytes are not": {"stop": chunk.stop - 4},
        "CRCs for": {"crc32c": ()},
        "reaches beyond": {"offset": (1, 0)},
        "number of dimensions": {"offset": (0,)},
        "do not add up": {"shape": (2, 4), "stop": chunk.start + 32},
    }.items():
        bent = tensor.model_copy(update={"chunks": (dataclasses.replace(chunk, **changes),)})
        body = manifest.model_copy(update={"tensors": {**manifest.tensors, "w": bent}}).dump()
        with pytest.raises(CheckpointError, match=name):
            Manifest.parse(body)
    for body in (b"", b"{}", b"[1]", storage.get(ref.manifest_key)[:-1], b'{"manifest_crc32c":"00000000"}'):
        with pytest.raises(CheckpointError):
            Manifest.parse(body)
