"""Checkpoints of a real small run as other programs take them, and a legacy file as the beginning of a run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from giblet.checkpoint.opened import open_checkpoint
from giblet.cli import main
from giblet.config import GibletConfig
from giblet.data.hrf import hrf_kernel
from giblet.data.prepared import PreparedDataset
from giblet.errors import CheckpointError, RunConflictError
from giblet.models import Dimensions, build_model
from giblet.training import train
from giblet.training.legacy import export_legacy, import_legacy
from giblet.training.optimizer import build_optimizer
from tests.support.prepared import make_prepared
from tests.support.training import small_config

KEYS = [
    "epoch", "global_step", "model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "best_val_loss",
    "config", "train_history", "val_history",
]  # fmt: skip


def config_of(url: Path, name: str, **training: object) -> GibletConfig:
    return small_config(
        run={"name": name}, training={"epochs": 2, **training}, checkpoint={"url": str(url), "save_every_epochs": 1}
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_prepared(tmp_path_factory.mktemp("data") / "d")


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """A run's folder, and its tensors by name."""
    url = tmp_path_factory.mktemp("runs")
    train(config_of(url, "first"), dataset_path=dataset.path)
    newest = max(url.glob("runs/first/checkpoints/*/*/rank-00000.safetensors"))
    return url, load_file(newest)


@pytest.fixture(scope="module")
def legacy(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("legacy") / "first.pt"
    export_legacy(open_checkpoint(f"{trained[0]}/runs/first"), path)
    return path


def fresh_model(dataset: PreparedDataset, config: GibletConfig) -> torch.nn.Module:
    kernel = hrf_kernel(config, dataset.manifest.tr_seconds)
    return build_model(config, Dimensions.of(dataset.manifest.dimensions), hrf_kernel=kernel)


def test_a_safetensors_file_has_the_weights_under_their_own_names(trained, tmp_path, capsys):
    url, tensors = trained
    assert main(["export", f"{url}/runs/first", str(tmp_path / "w.safetensors"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = load_file(tmp_path / "w.safetensors")
    wanted = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    assert found.keys() == wanted.keys()
    assert all(found[name].dtype == wanted[name].dtype and torch.equal(found[name], wanted[name]) for name in wanted)
    assert told["tensors"] == len(wanted)
    assert told["size_bytes"] == (tmp_path / "w.safetensors").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_everything_is_every_tensor(trained, tmp_path):
    url, tensors = trained
    assert main(["export", f"{url}/runs/first", str(tmp_path / "all.safetensors"), "--everything"]) == 0
    found = load_file(tmp_path / "all.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_damaged_checkpoint_is_not_exported(trained, tmp_path, capsys):
    url, _ = trained
    copy = tmp_path / "copy"
    source = max(url.glob("runs/first/checkpoints/*/*"))
    target = copy / source.relative_to(url)
    target.mkdir(parents=True)
    for file in source.iterdir():
        content = bytearray(file.read_bytes())
        if file.suffix == ".safetensors":
            content[-1] ^= 1
        (target / file.name).write_bytes(content)
    out = tmp_path / "out.safetensors"
    assert main(["export", f"{copy}/runs/first", str(out), "--everything"]) == 66
    assert "CRC-32C differs" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_a_legacy_file_is_what_torch_reads_and_the_judge_accepts(trained, legacy, dataset, capsys):
    saved = torch.load(legacy, weights_only=True)
    assert list(saved) == KEYS
    config = config_of(trained[0], "first")
    model = fresh_model(dataset, config)
    assert list(saved["model_state_dict"]) == list(model.state_dict())
    model.load_state_dict(saved["model_state_dict"])
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained[1][f"model.{name}"]), name
    assert (saved["epoch"], saved["global_step"]) == (2, saved["scheduler_state_dict"]["last_epoch"])
    assert len(saved["train_history"]["loss"]) == 2
    assert main(["verify", str(legacy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"].startswith("SAFE")


def test_its_optimizer_state_goes_into_torch_s_own_adamw(trained, legacy, dataset):
    saved = torch.load(legacy, weights_only=True)
    config = config_of(trained[0], "first")
    model = fresh_model(dataset, config)
    optimizer = build_optimizer(model, config.training)
    optimizer.load_state_dict(saved["optimizer_state_dict"])
    for name, parameter in model.named_parameters():
        for kind in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(optimizer.state[parameter][kind], trained[1][f"optimizer.{kind}.{name}"]), (kind, name)


def test_an_imported_run_starts_from_those_weights_and_trains(trained, legacy, dataset, tmp_path, capsys):
    config = config_of(tmp_path, "second")
    file = tmp_path / "config.yaml"
    file.write_text(config.model_dump_json())
    arguments = ["--config", str(file), "--set", f"data.prepared={dataset.path}"]
    assert main(["import", str(legacy), *arguments]) == 0
    opened = open_checkpoint(f"{tmp_path}/runs/second")
    assert opened.manifest.step == 0
    assert opened.manifest.state["imported"]["file"] == "first.pt"
    first = load_file(next(tmp_path.glob("runs/second/checkpoints/*/*/*.safetensors")))
    for name, value in trained[1].items():
        wanted = torch.zeros_like(value) if name.startswith("optimizer.") else value
        assert torch.equal(first[name], wanted), name
    assert main(["train", *arguments]) == 0
    before = trained_losses(trained[0], "first")
    after = trained_losses(tmp_path, "second")
    assert after[0] < before[0], "training did not start from the imported weights"
    capsys.readouterr()
    assert main(["runs", "show", "second", "--ledger", *arguments[:2]]) == 0
    assert "PROVEN" in capsys.readouterr().out
    with pytest.raises(RunConflictError, match="has checkpoints already"):
        import_legacy(legacy, config, dataset)


def trained_losses(url: Path, run: str) -> list[float]:
    return open_checkpoint(f"{url}/runs/{run}").manifest.state["history"]["train"]["loss"]


class Evil:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("how", ["bare pickle", "zip"])
def test_what_could_run_a_program_is_refused_and_never_run(how, dataset, tmp_path, capsys):
    file, proof = tmp_path / "evil.pt", tmp_path / "it-ran"
    tree = {"model_state_dict": {"a": torch.ones(1)}, "evil": Evil(proof)}
    if how == "zip":
        torch.save(tree, file)
    else:
        file.write_bytes(pickle.dumps(tree))
    assert main(["import", str(file), "--set", f"checkpoint.url={tmp_path}/runs"]) == 66
    error = capsys.readouterr().err
    assert ("bare pickle" in error) == (how == "bare pickle")
    assert not proof.exists()
    assert not (tmp_path / "runs").exists()


def spoil(legacy: Path, path: Path, change) -> Path:
    saved = torch.load(legacy, weights_only=True)
    change(saved["model_state_dict"])
    torch.save(saved, path)
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("decoder.layer13_text.bias"), "it has no decoder.layer13_text.bias"),
        (lambda w: w.update(extra=torch.ones(1)), "the model has no extra"),
        (lambda w: w.update({"decoder.layer13_text.bias": torch.ones(2)}), r"layer13_text.bias is \[2\] there"),
        (lambda w: w["decoder.layer13_text.bias"].fill_(float("nan")), "decoder.layer13_text.bias has NaN"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name_and_nothing_is_written(change, said, legacy, dataset, tmp_path):
    file = spoil(legacy, tmp_path / "spoilt.pt", change)
    with pytest.raises(CheckpointError, match=said):
        import_legacy(file, config_of(tmp_path / "out", "spoilt"), dataset)
    assert not list(tmp_path.glob("out/runs/spoilt/checkpoints/*"))


def test_bfloat16_weights_become_float32_and_a_module_prefix_goes(legacy, dataset, tmp_path):
    saved = torch.load(legacy, weights_only=True)["model_state_dict"]
    file = tmp_path / "half.pt"
    half = {f"module.{k}": v.bfloat16() if v.is_floating_point() else v for k, v in saved.items()}
    torch.save({"model_state_dict": half}, file)
    import_legacy(file, config_of(tmp_path, "half"), dataset)
    found = load_file(next(tmp_path.glob("runs/half/checkpoints/*/*/*.safetensors")))
    for name, value in saved.items():
        assert found[f"model.{name}"].dtype == value.dtype
        wanted = value.bfloat16().to(value.dtype) if value.is_floating_point() else value
        assert torch.equal(found[f"model.{name}"], wanted), name
