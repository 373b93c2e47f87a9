"""Files of other programs: plain safetensors, torch's zip files, DCP folders; and what is refused without being run."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from giblet.errors import CheckpointError
from giblet.verify import unpickle, verify
from giblet.verify.report import Report
from tests.support.weights import STEP, legacy_file, small_config, trained_tensors

CONFIG = small_config()
TENSORS = trained_tensors(CONFIG)
WEIGHTS = {name.removeprefix("model."): value for name, value in TENSORS.items() if name.startswith("model.")}
WEIGHT = "encoder.layer5.0.weight"
ZEROS = {name for name, value in WEIGHTS.items() if not value.any()}


def planted() -> dict[str, torch.Tensor]:
    weight = WEIGHTS[WEIGHT].clone()
    weight[0, :3] = torch.tensor([float("nan"), float("inf"), 3e6])
    return {**WEIGHTS, WEIGHT: weight}


def write_safetensors(path: Path, weights: dict[str, torch.Tensor]) -> str:
    save_file({name: value.contiguous() for name, value in weights.items()}, path / "weights.safetensors")
    return str(path / "weights.safetensors")


def write_torch(path: Path, weights: dict[str, torch.Tensor]) -> str:
    legacy_file(path / "checkpoint_epoch_1.pt", {f"model.{name}": value for name, value in weights.items()})
    return str(path / "checkpoint_epoch_1.pt")


def write_dcp(path: Path, weights: dict[str, torch.Tensor]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it saves in one process, which is meant
        dcp.save({"model": dict(weights), "step": STEP}, checkpoint_id=str(path / "dcp"), no_dist=True)
    return str(path / "dcp")


WRITERS = {"safetensors": write_safetensors, "torch": write_torch, "dcp": write_dcp}
PREFIX = {"safetensors": "", "torch": "", "dcp": "model."}


@pytest.fixture(params=list(WRITERS))
def kind(request):
    return request.param


def failed(report: Report) -> set[str]:
    return {check.name for check in report.checks if check.status == "failed"}


def test_a_healthy_file_is_safe_and_its_zeros_are_named(tmp_path, kind):
    report = verify(WRITERS[kind](tmp_path, WEIGHTS))
    assert (report.verdict, report.kind) == ("SAFE", kind)
    assert report.groups["model"].tensors == 162
    assert report.groups["model"].elements == sum(value.numel() for value in WEIGHTS.values())
    assert {name.removeprefix(PREFIX[kind]) for name in report.groups["model"].zero_tensors} == ZEROS


def test_bad_numbers_are_counted_and_named(tmp_path, kind):
    report = verify(WRITERS[kind](tmp_path, planted()))
    row = report.to_json()
    assert (row["nan_elements"], row["inf_elements"], row["over_limit_elements"]) == (1, 1, 1)
    assert failed(report) == {"finite", "magnitude"}
    assert report.check("finite").tensors == (PREFIX[kind] + WEIGHT,)


def test_the_configurations_model_is_compared_and_restored(tmp_path, kind):
    report = verify(WRITERS[kind](tmp_path, WEIGHTS), config=CONFIG, restore=True)
    assert report.check("structure").status == "passed"
    assert "weights load" in report.check("restores").detail
    renamed = {("other" if name == WEIGHT else name): value for name, value in WEIGHTS.items()}
    report = verify(WRITERS[kind](tmp_path, renamed), config=CONFIG)
    assert failed(report) == {"structure"}
    assert WEIGHT in report.check("structure").detail


def test_restoring_gives_the_same_outputs(tmp_path, kind):
    from giblet.models.build import build_model
    from giblet.verify.opening import open_source
    from giblet.verify.restoring import empty_model, load_weights

    restored, original = empty_model(CONFIG, None, None), build_model(CONFIG)
    assert load_weights(open_source(WRITERS[kind](tmp_path, WEIGHTS)), restored) == ""
    original.load_state_dict(WEIGHTS)
    inputs = (torch.rand(3, 2, 4, 6, 3), torch.randint(0, 1024, (3, 2, 5)), torch.randn(3, 7))
    for name, value in original.eval()(*inputs).items():
        assert torch.equal(restored.eval()(*inputs)[name], value), name


def test_a_flipped_byte_in_a_torch_file_fails_its_checksum(tmp_path):
    path = Path(write_torch(tmp_path, WEIGHTS))
    data = path.read_bytes()
    at = data.index(WEIGHTS[WEIGHT].numpy().tobytes()) + 9
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    report = verify(str(path))
    assert failed(report) == {"complete"}
    assert "CRC-32 " in report.check("complete").detail


@pytest.mark.parametrize("cut", [10, 5_000])
def test_a_file_cut_short_is_unsafe(tmp_path, kind, cut):
    path = Path(WRITERS[kind](tmp_path, WEIGHTS))
    file = next(path.glob("*.distcp")) if path.is_dir() else path
    file.write_bytes(file.read_bytes()[:-cut])
    report = verify(str(path))
    assert failed(report) >= {"complete"}
    assert report.exit_code == 1


def test_a_safetensors_header_cut_short_is_unsafe(tmp_path):
    path = Path(write_safetensors(tmp_path, WEIGHTS))
    path.write_bytes(path.read_bytes()[:900])
    assert failed(verify(str(path))) == {"complete"}


def test_a_dcp_file_that_is_gone_is_unsafe(tmp_path):
    path = Path(write_dcp(tmp_path, WEIGHTS))
    next(path.glob("*.distcp")).unlink()
    report = verify(str(path))
    assert failed(report) == {"complete"}
    assert ".distcp: missing" in report.check("complete").detail


def test_a_legacy_file_says_what_it_holds(tmp_path):
    row = verify(write_torch(tmp_path, WEIGHTS)).to_json()
    assert row["state"]["epoch"] == 1
    assert row["state"]["best_val_loss"] == 0.5
    assert row["step"] == STEP
    assert {"optimizer_state_dict", "scheduler_state_dict", "train_history"} <= set(row["state"]["contents"])


def test_bfloat16_weights_and_8_bit_optimizer_state(tmp_path):
    weights = {name: value.to(torch.bfloat16) if value.ndim else value for name, value in WEIGHTS.items()}
    state = {0: {"state1": torch.randint(0, 256, (1000,)).to(torch.uint8), "absmax1": torch.rand(4), "step": STEP}}
    legacy_file(
        tmp_path / "best_checkpoint.pt", {f"model.{n}": v for n, v in weights.items()},
        optimizer_state_dict={"state": state, "param_groups": [{"lr": 1e-4, "params": [0]}]},
    )  # fmt: skip
    report = verify(str(tmp_path / "best_checkpoint.pt"), config=CONFIG)
    assert report.verdict == "SAFE"
    assert "another precision" in report.check("structure").detail
    assert report.statistics[WEIGHT].absmax == weights[WEIGHT].float().abs().max().item()
    assert report.groups["optimizer"].elements == 1004


def test_shared_and_strided_storages(tmp_path):
    base = torch.arange(24, dtype=torch.float32)
    tree = {
        "whole": base, "tied": base, "slice": base[4:8], "transposed": base.view(4, 6).t(), "empty": torch.empty(0, 3),
        "expanded": torch.full((1,), 2.0).expand(50), "parameter": torch.nn.Parameter(base[:3]),
    }  # fmt: skip
    torch.save(tree, tmp_path / "views.pt")
    report = verify(str(tmp_path / "views.pt"))
    assert report.statistics["whole"].elements == report.statistics["tied"].elements == 24
    assert report.statistics["slice"].mean == 5.5
    assert report.statistics["transposed"].zero == 1
    assert report.statistics["parameter"].elements == 3
    assert any("expanded" in note for note in report.notes)
    assert report.bytes_read == 24 * 4 + 4


class Exploit:
    """What a malicious pickle looks like."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        import os

        return (os.system, (f"touch {self.target}",))


def zip_with(path: Path, data: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", b"\0" * 16)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "was-run"
    zip_with(tmp_path / "evil.pt", pickle.dumps({"model": Exploit(mark)}, protocol=2))
    with pytest.raises(CheckpointError, match=r"names (posix|os)\.system.*nothing of it was run") as caught:
        verify(str(tmp_path / "evil.pt"))
    assert caught.value.exit_code == 66
    assert not mark.exists()
    pickle.loads(pickle.dumps(Exploit(mark)))
    assert mark.exists(), "the pickle would have run: the test is real"


def test_a_malicious_dcp_metadata_is_refused_and_not_run(tmp_path):
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").write_bytes(pickle.dumps(Exploit(tmp_path / "was-run")))
    with pytest.raises(CheckpointError, match="nothing of it was run"):
        verify(str(tmp_path / "dcp"))
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_bare_pickle_is_refused_without_being_opened(tmp_path, protocol):
    for name in ("bare.pt", "bare.bin", "bare"):
        (tmp_path / name).write_bytes(pickle.dumps(Exploit(tmp_path / "was-run"), protocol=protocol))
        with pytest.raises(CheckpointError) as caught:
            verify(str(tmp_path / name))
        assert caught.value.exit_code == 66
    assert not (tmp_path / "was-run").exists()


def test_torchs_old_format_is_refused(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="bare pickle"):
        verify(str(tmp_path / "old.pt"))


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


@pytest.mark.parametrize(
    "data",
    [
        opcodes(b"cbuiltins\neval\n", b"(U\x041+1 tR"),
        opcodes(b"ctorch\nload\n"),
        opcodes(b"cgiblet.verify.unpickle\nloads\n"),
        opcodes(b"ctorch._utils\n_rebuild_tensor_v2\n", b"}(U\x0c__defaults__)ub"),
        opcodes(b"ccollections\nOrderedDict\n", b"N}(U\x01xK\x01u\x86b"),
        opcodes(b"\x82\x01"),
        opcodes(b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f"),
        opcodes(b"(" * 10),
        b"\x80\x02" + b"]" + b"q\x00(h\x00h\x00e" * 3 + b".",
        b"",
        b"garbage",
    ],
    ids=["eval", "torch.load", "ourselves", "patch a function", "patch a class", "extension", "huge", "marks", "loop",
         "empty", "garbage"],
)  # fmt: skip
def test_hostile_pickles_end_in_one_clear_error(tmp_path, data):
    zip_with(tmp_path / "hostile.pt", data)
    with pytest.raises(CheckpointError) as caught:
        verify(str(tmp_path / "hostile.pt"))
    assert "hostile.pt" in str(caught.value)


def test_a_tree_that_is_small_but_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpickle, "MAX_LEAVES", 20_000)
    tree: list[object] = [0]
    for _ in range(40):
        tree = [tree, tree]
    zip_with(tmp_path / "laughs.pt", pickle.dumps({"a": tree}, protocol=2))
    with pytest.raises(CheckpointError, match="holds more than"):
        verify(str(tmp_path / "laughs.pt"))


def test_compressed_members_are_refused(tmp_path):
    source = Path(write_torch(tmp_path, WEIGHTS))
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match="compressed"):
        verify(str(tmp_path / "small.pt"))


def test_plain_values_of_a_state_dict_are_read(tmp_path):
    tree = {
        "state_dict": OrderedDict(w=torch.ones(2)), "history": [np.float64(0.25)], "device": torch.device("cpu"),
        "size": torch.Size([1, 2]), "dtype": torch.float16, "set": {1, 2}, "loss": np.float32(0.5),
    }  # fmt: skip
    torch.save(tree, tmp_path / "plain.pt")
    report = verify(str(tmp_path / "plain.pt"))
    assert report.state["loss"] == 0.5
    assert list(report.statistics) == ["w"]


@pytest.mark.parametrize(
    "header",
    [
        b"[]", b"{", b'{"a": 1}', b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}', b"[" * 3000,
    ],
)  # fmt: skip
def test_a_file_that_is_not_safetensors(tmp_path, header):
    (tmp_path / "bad.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
        verify(str(tmp_path / "bad.safetensors"))


def test_unaligned_safetensors(tmp_path):
    """The format does not promise aligned data."""
    header = (
        b'{"a":{"dtype":"F64","shape":[3],"data_offsets":[1,25]},"b":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}}'
    )
    data = b"\x01" + np.array([1.0, np.nan, -4.0]).tobytes()
    (tmp_path / "odd.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    report = verify(str(tmp_path / "odd.safetensors"))
    assert (report.statistics["a"].nan, report.statistics["a"].absmax) == (1, 4.0)


def test_archives_in_archives_are_not_followed(tmp_path):
    inner = io.BytesIO()
    torch.save({"a": torch.ones(1)}, inner)
    zip_with(tmp_path / "nested.pt", pickle.dumps({"x": inner.getvalue()}, protocol=2))
    with pytest.raises(CheckpointError):
        verify(str(tmp_path / "nested.pt"))
