"""A catalogue of damage: what is done to small files of each kind, and what must be said of it."""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from giblet.errors import CheckpointError
from giblet.storage import LocalStorage
from giblet.verify import torch_source, verify
from giblet.verify.report import Report
from tests.support.weights import write_checkpoint

Tensors = dict[str, torch.Tensor]
WEIGHT, MOMENT = "layer.weight", "optimizer.exp_avg.layer.weight"
STATE = {"step": 12, "epoch": 3, "samples_consumed": 96}


def healthy() -> Tensors:
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(6, 8, generator=generator)
    return {WEIGHT: weights, "layer.bias": weights[0].clone(), MOMENT: weights * 0.1}


def write_safetensors(folder: Path, tensors: Tensors) -> Path:
    save_file(tensors, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def write_torch(folder: Path, tensors: Tensors, **more: object) -> Path:
    weights = {name: value for name, value in tensors.items() if not name.startswith("optimizer.")}
    moments = {name.removeprefix("optimizer."): v for name, v in tensors.items() if name.startswith("optimizer.")}
    tree = {
        "epoch": 3, "global_step": 12, "model_state_dict": weights, "optimizer": moments, "best_val_loss": 0.5,
        "scheduler_state_dict": {"last_epoch": 3}, "train_history": [0.75], "val_history": [0.5],
    }  # fmt: skip
    torch.save({name: value for name, value in {**tree, **more}.items() if value is not None}, folder / "legacy.pt")
    return folder / "legacy.pt"


def write_dcp(folder: Path, tensors: Tensors) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it saves in one process, which is meant
        dcp.save(dict(tensors), checkpoint_id=str(folder / "dcp"), no_dist=True)
    return folder / "dcp"


def write_giblet(folder: Path, tensors: Tensors) -> Path:
    named = {name if name.startswith("optimizer.") else f"model.{name}": value for name, value in tensors.items()}
    return Path(write_checkpoint(LocalStorage(folder / "store"), named, STATE).url)


WRITERS: dict[str, Callable[[Path, Tensors], Path]] = {
    "safetensors": write_safetensors, "torch": write_torch, "dcp": write_dcp, "giblet": write_giblet,
}  # fmt: skip


@pytest.fixture(params=list(WRITERS))
def write(request, tmp_path) -> Callable[[Tensors], Path]:
    return lambda tensors: WRITERS[request.param](tmp_path, tensors)


def failed(report: Report) -> set[str]:
    """The failed checks; these small checkpoints have no configuration to be compared with."""
    return {check.name for check in report.checks if check.status == "failed"}


def planted(name: str, at: int, value: float, dtype: torch.dtype = torch.float32) -> Tensors:
    tensors = healthy()
    tensors[name] = tensors[name].to(dtype)
    tensors[name].view(-1)[at] = value
    return tensors


# --- numbers: what is in the bytes

NUMBERS: dict[str, tuple[Tensors, set[str], dict[str, int]]] = {
    "nothing": (healthy(), set(), {"nan_elements": 0}),
    "NaN in the optimizer only": (planted(MOMENT, 5, math.nan), {"finite"}, {"nan_elements": 1}),
    "one Inf at the very end": (planted(WEIGHT, -1, math.inf), {"finite"}, {"inf_elements": 1}),
    "-Inf at the very beginning": (planted(WEIGHT, 0, -math.inf), {"finite"}, {"inf_elements": 1}),
    "minus zero": (planted(WEIGHT, 7, -0.0), set(), {"zero_elements": 1, "nan_elements": 0}),
    "a subnormal": (planted(WEIGHT, 7, 1e-42), set(), {"zero_elements": 0}),
    "a huge value": (planted(WEIGHT, 7, 3e38), {"magnitude"}, {"over_limit_elements": 1}),
    "exactly the limit": (planted(WEIGHT, 7, 1e6), set(), {"over_limit_elements": 0}),
    "beyond the limit, negative": (planted(WEIGHT, 7, -1e6 - 0.0625), {"magnitude"}, {"over_limit_elements": 1}),
    "NaN in bfloat16": (planted(WEIGHT, 7, math.nan, torch.bfloat16), {"finite"}, {"nan_elements": 1}),
    "huge in bfloat16": (planted(WEIGHT, -1, -1e30, torch.bfloat16), {"magnitude"}, {"over_limit_elements": 1}),
    "Inf in float16": (planted(WEIGHT, 7, math.inf, torch.float16), {"finite"}, {"inf_elements": 1}),
    "NaN in float64": (planted(WEIGHT, -1, math.nan, torch.float64), {"finite"}, {"nan_elements": 1}),
    "NaN in 8 bits": (planted(WEIGHT, 7, math.nan, torch.float8_e4m3fn), {"finite"}, {"nan_elements": 1}),
    "codes of 8 bits": ({**healthy(), MOMENT: torch.arange(256).to(torch.uint8)}, set(), {"zero_elements": 1}),
    "an empty tensor": ({**healthy(), "nothing.weight": torch.empty(0, 4)}, set(), {"nan_elements": 0}),
    "a weight that is all zero": ({**healthy(), WEIGHT: torch.zeros(6, 8)}, {"dead"}, {"zero_elements": 48}),
    "all minus zero": ({**healthy(), WEIGHT: -torch.zeros(6, 8)}, {"dead"}, {"zero_elements": 48}),
    "all NaN": ({**healthy(), WEIGHT: torch.full((6, 8), math.nan)}, {"finite"}, {"nan_elements": 48}),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "checks", "counts"), NUMBERS.values(), ids=NUMBERS)
def test_numbers(write, tensors, checks, counts):
    report = verify(str(write(tensors)))
    assert failed(report) == checks
    found = report.to_json()
    assert {name: found[name] for name in counts} == counts
    assert found["elements"] == sum(value.numel() for value in tensors.values())
    for check in checks:
        (named,) = report.check(check).tensors
        assert named.removeprefix("model.") in tensors


# --- bytes: what happens to files


def data_file(place: Path) -> Path:
    if place.is_file():
        return place
    return next(path for path in sorted(place.iterdir()) if path.suffix in (".safetensors", ".distcp"))


def verdict_of(place: Path) -> str:
    """The verdict, or that it was refused; anything else but these two is a fault of ours."""
    try:
        return verify(str(place)).verdict
    except CheckpointError:
        return "refused"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
def test_cut_short_anywhere(write, share):
    path = data_file(place := write(healthy()))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert verdict_of(place) in ("UNSAFE", "refused")


def test_longer_than_it_should_be(write, tmp_path):
    path = data_file(place := write(healthy()))
    with path.open("ab") as file:
        file.write(b"more" * 8)
    report = verdict_of(place)
    if path.suffix == ".distcp":  # the index says which bytes of it count
        assert report == "SAFE"
    else:
        assert report in ("UNSAFE", "refused")


def test_gone(write):
    place = write(healthy())
    data_file(place).unlink()
    assert verdict_of(place) in ("UNSAFE", "refused")


@pytest.mark.parametrize("kind", ["torch", "giblet"])
def test_a_bit_flipped_anywhere_is_found_or_changes_nothing(tmp_path, kind):
    """In the bytes of a tensor it is always found. A few bytes of a zip file's headers mean nothing to anybody."""
    path = data_file(place := WRITERS[kind](tmp_path, healthy()))
    data = path.read_bytes()
    before = verify(str(place))
    inside = set()
    for value in healthy().values():
        for raw in (value.numpy().tobytes(), value[:3].numpy().tobytes()):
            at = data.find(raw)
            inside |= set(range(at, at + len(raw))) if at >= 0 else set()
    assert len(inside) > 200
    for at in [*range(5, len(data), max(1, len(data) // 24)), *sorted(inside)[::100]]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        try:
            report = verify(str(place))
        except CheckpointError:
            continue
        if kind == "giblet" or at in inside:
            assert report.verdict == "UNSAFE", at
        elif report.verdict != "UNSAFE":
            assert report.statistics == before.statistics, at


# --- archives: what a zip file can be besides


def rewritten(path: Path, change: Callable[[zipfile.ZipFile, zipfile.ZipFile], None]) -> Path:
    data = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(data) as old, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile says that a name comes twice, which is meant
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
            change(old, new)
    return path


def member(old: zipfile.ZipFile, end: str) -> str:
    return next(name for name in old.namelist() if name.endswith(end))


ARCHIVES: dict[str, tuple[Callable[[zipfile.ZipFile, zipfile.ZipFile], None], str]] = {
    "a second data.pkl of the same name": (
        lambda old, new: new.writestr(member(old, "data.pkl"), old.read(member(old, "data.pkl"))), "two members of one",
    ),
    "a tensor's bytes twice": (lambda old, new: new.writestr(member(old, "data/0"), bytes(192)), "two members of one"),
    "another data.pkl elsewhere": (lambda old, new: new.writestr("other/data.pkl", b"N."), "has 2 data.pkl"),
    "a compressed storage": (
        lambda old, new: new.writestr("legacy/data/99", bytes(5000), zipfile.ZIP_DEFLATED), "compressed",
    ),
    "names that lead out of it": (
        lambda old, new: (new.writestr("../../etc/passwd", b"x"), new.writestr("/etc/shadow", b"x")), "",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), ARCHIVES.values(), ids=ARCHIVES)
def test_archives(tmp_path, change, words):
    """Refused, or read as torch reads it; nothing is ever unpacked to a disk."""
    path = rewritten(write_torch(tmp_path, healthy()), change)
    if words:
        with pytest.raises(CheckpointError, match=words):
            verify(str(path))
    else:
        assert verify(str(path)).verdict == "SAFE"
    assert [item.name for item in tmp_path.iterdir()] == ["legacy.pt"]


def test_a_byte_order_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path):
    path = write_torch(tmp_path, healthy())
    data = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(data) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            large = name.endswith("byteorder")
            new.writestr(name, bytes(5_000_000) if large else old.read(name), zipfile.ZIP_DEFLATED if large else None)
    with pytest.raises(CheckpointError, match="byteorder has 5,000,000 bytes"):
        verify(str(path))


def test_a_pickle_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_source, "MAX_PICKLE_BYTES", 100)
    with pytest.raises(CheckpointError, match="at most 100 are read"):
        verify(str(write_torch(tmp_path, healthy())))


def test_zip64(tmp_path):
    path = write_torch(tmp_path, healthy())
    data = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(data) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            with new.open(name, "w", force_zip64=True) as file:
                file.write(old.read(name))
    report = verify(str(path))
    assert report.verdict == "SAFE"
    assert report.statistics[WEIGHT].elements == 48


# --- what a legacy file says of its training


def test_what_is_there_to_go_on_from(tmp_path):
    report = verify(str(write_torch(tmp_path, healthy())))
    said = "epoch 3, step 12, best validation loss 0.5, with optimizer, with schedule, with history"
    assert report.check("consistent").detail == said
    assert report.to_json()["state"]["has_optimizer"] is True
    report = verify(str(write_torch(tmp_path, healthy(), optimizer=None, scheduler_state_dict=None)))
    assert "without optimizer, without schedule, with history" in report.check("consistent").detail
    assert report.to_json()["state"]["has_optimizer"] is False


@pytest.mark.parametrize("more", [{"best_val_loss": math.nan}, {"val_history": [0.5, math.inf]}], ids=["best", "curve"])
def test_a_history_that_is_not_finite_warns(tmp_path, more):
    report = verify(str(write_torch(tmp_path, healthy(), **more)))
    assert report.verdict == "SAFE WITH WARNINGS"
    assert next(iter(more)) in report.check("consistent").detail
