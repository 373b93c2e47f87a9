"""What changed between two checkpoints, however they are sharded, beside the same numbers from whole tensors."""

from __future__ import annotations

import json
import math

import pytest
import torch

from giblet.cli import main
from giblet.errors import CheckpointError
from giblet.storage import LocalStorage, MemoryStorage
from giblet.verify import difference as module
from giblet.verify.difference import difference
from giblet.verify.opening import open_source
from tests.support.faults import truncate
from tests.support.weights import legacy_file, small_config, trained_tensors, training_state, write_checkpoint

CONFIG = small_config()
BEFORE, AFTER = trained_tensors(CONFIG, 4, seed=0), trained_tensors(CONFIG, 8, seed=1)


def written(storage, tensors, step, shards=2):
    return write_checkpoint(storage, tensors, training_state(CONFIG, step), step=step, shards=shards)


@pytest.mark.parametrize("shards", [(1, 1), (2, 3)])
def test_every_tensor_beside_torch(shards, monkeypatch):
    monkeypatch.setattr(module, "READ_BYTES", 256)  # many pieces of one tensor
    storage = MemoryStorage()
    one, two = (
        written(storage, tensors, step, shard)
        for tensors, step, shard in zip((BEFORE, AFTER), (4, 8), shards, strict=True)
    )
    found = difference(*(open_source(w.url, storage) for w in (one, two)))
    assert {tensor.name for tensor in found.tensors} == BEFORE.keys()
    for tensor in found.tensors:
        a, b = BEFORE[tensor.name].double(), AFTER[tensor.name].double()
        assert tensor.changed == int((a != b).sum()), tensor.name
        assert tensor.largest == pytest.approx(float((b - a).abs().max())), tensor.name
        if a.norm() > 0:
            assert tensor.relative == pytest.approx(float((b - a).norm() / a.norm()), abs=1e-12), tensor.name


def test_nothing_changed_and_one_element_did():
    storage = MemoryStorage()
    name = "model.encoder.layer5.0.weight"
    changed = {**BEFORE, name: BEFORE[name].clone()}
    changed[name][1, 2] += 0.5
    one, two, same = written(storage, BEFORE, 4), written(storage, changed, 8), written(storage, BEFORE, 12)
    first, second, third = (open_source(w.url, storage) for w in (one, two, same))
    (found,) = [tensor for tensor in difference(first, second).tensors if tensor.changed]
    assert (found.name, found.changed, found.largest) == (name, 1, pytest.approx(0.5))
    assert not any(tensor.changed for tensor in difference(first, third).tensors)


def test_a_nan_counts_as_a_change_once():
    storage = MemoryStorage()
    name = "model.encoder.layer5.0.weight"
    broken = {**BEFORE, name: BEFORE[name].clone()}
    broken[name][0, 0] = math.nan
    good, bad = (open_source(written(storage, t, s).url, storage) for t, s in ((BEFORE, 4), (broken, 8)))
    assert [tensor.changed for tensor in difference(good, bad).tensors if tensor.changed] == [1]
    assert not any(tensor.changed for tensor in difference(bad, bad).tensors)


def test_what_only_one_has_and_what_is_damaged():
    storage = MemoryStorage()
    fewer = {name: value for name, value in BEFORE.items() if name.startswith("model.")}
    one, two = written(storage, BEFORE, 4), written(storage, fewer, 8)
    first, second = (open_source(w.url, storage) for w in (one, two))
    found = difference(first, second)
    assert (set(found.only_first), found.only_second) == (BEFORE.keys() - fewer.keys(), ())
    truncate(storage, two.ref.prefix + two.object(), 900)
    with pytest.raises(CheckpointError, match="cut short"):
        difference(first, second)


def test_on_the_command_line_a_checkpoint_beside_a_legacy_file(tmp_path, capsys):
    """Their tensors have other names, and are told so; the same file beside itself is the same."""
    one = written(LocalStorage(tmp_path / "store"), BEFORE, 4)
    legacy_file(tmp_path / "old.pt", BEFORE)
    assert main(["verify", "--diff", str(tmp_path / "old.pt"), str(tmp_path / "old.pt"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["changed_tensors"], told["only_first"]) == (0, [])
    assert len(told["tensors"]) > 100
    assert main(["verify", "--diff", one.url, str(tmp_path / "old.pt")]) == 0
    assert "only in the first" in capsys.readouterr().out
    assert main(["verify", "--diff", one.url, one.url, "extra"]) == 2
    assert main(["verify"]) == 2


def test_zero_that_moves_has_no_relative_change():
    storage = MemoryStorage()
    a = {**BEFORE, "model.encoder.layer5.0.bias": torch.zeros_like(BEFORE["model.encoder.layer5.0.bias"])}
    first, second = (open_source(written(storage, t, s).url, storage) for t, s in ((a, 4), (AFTER, 8)))
    moved = next(t for t in difference(first, second).tensors if t.name == "model.encoder.layer5.0.bias")
    assert moved.relative == math.inf
    assert moved.to_json()["relative"] is None
