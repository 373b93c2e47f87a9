"""A whole checkpoint is SAFE; each kind of damage makes it UNSAFE and names what is at fault."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest
import torch
from rich.console import Console

from giblet.cli import main
from giblet.errors import CheckpointError
from giblet.storage import LocalStorage, MemoryStorage
from giblet.telemetry.metrics import Metrics
from giblet.verify import record, render, verify
from giblet.verify.announce import tell_metrics
from giblet.verify.report import Report
from tests.support.weights import STEP, Written, small_config, trained_tensors, training_state, write_checkpoint

CONFIG = small_config()
TENSORS = trained_tensors(CONFIG)
WEIGHT = "model.encoder.layer5.0.weight"
MOMENT = "optimizer.exp_avg.encoder.layer5.0.weight"


def written(storage, tensors=None, config=CONFIG, **state) -> Written:
    return write_checkpoint(storage, TENSORS if tensors is None else tensors, training_state(config, **state))


def judged(written: Written, **options) -> Report:
    return verify(written.url, storage=written.storage, **options)


def changed(name: str, change: Callable[[torch.Tensor], None]) -> dict[str, torch.Tensor]:
    tensor = TENSORS[name].clone()
    change(tensor)
    return {**TENSORS, name: tensor}


def failed(report: Report) -> set[str]:
    return {check.name for check in report.checks if check.status == "failed"}


@pytest.fixture(params=["folder", "memory"])
def storage(request, tmp_path):
    return LocalStorage(tmp_path / "store") if request.param == "folder" else MemoryStorage()


def test_a_healthy_checkpoint_is_safe_and_counted_exactly(storage):
    report = judged(written(storage), restore=True)
    assert report.verdict == "SAFE WITH WARNINGS"  # no held-out data here; all else passed
    assert {check.name: check.status for check in report.checks} == {
        "complete": "passed", "structure": "passed", "finite": "passed", "magnitude": "passed", "dead": "passed",
        "consistent": "passed", "restores": "warning", "scores": "skipped",
    }  # fmt: skip
    assert judged(written(storage)).verdict == "SAFE"
    row = report.to_json()
    assert row["tensors"] == len(TENSORS)
    assert row["elements"] == sum(value.numel() for value in TENSORS.values())
    assert row["bytes"] == sum(o.size_bytes for o in written(storage).manifest.objects)
    assert row["zero_elements"] == sum(int((value == 0).sum()) for value in TENSORS.values())
    assert set(row["zero_tensors"]) == {name for name, value in TENSORS.items() if not value.any()}
    assert row["step"] == STEP
    assert row["groups"]["model"]["tensors"] == 162
    for name, value in TENSORS.items():
        assert row["statistics"][name]["mean"] == pytest.approx(value.double().mean().item(), rel=1e-4, abs=1e-9)
        assert row["statistics"][name]["std"] == pytest.approx(
            value.double().std(correction=0).item(), rel=1e-4, abs=1e-9
        )
        assert row["statistics"][name]["absmax"] == value.double().abs().max().item()
    assert json.loads(json.dumps(row, allow_nan=False)) == row


@pytest.mark.parametrize("layer", ["batch", "layer"])
@pytest.mark.parametrize("objective", ["regress", "classify"])
def test_other_models_are_safe_too(objective, layer):
    config = small_config(audio_objective=objective, norm=layer)
    report = judged(written(MemoryStorage(), trained_tensors(config), config))
    assert report.verdict == "SAFE", report.checks


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def test_a_flipped_byte_names_its_tensor(storage):
    checkpoint = written(storage)
    chunk = checkpoint.manifest.tensors[WEIGHT].chunks[1]
    data = storage.get(checkpoint.ref.prefix + chunk.key)
    checkpoint.replace(chunk.key, flip(data, chunk.start + 5))
    report = judged(checkpoint)
    assert (report.verdict, report.exit_code) == ("UNSAFE", 1)
    assert report.check("complete").tensors == (WEIGHT,)
    assert chunk.key in report.check("complete").detail


def test_a_flipped_byte_of_a_header_is_seen(storage):
    checkpoint = written(storage)
    key = checkpoint.object()
    checkpoint.replace(key, flip(storage.get(checkpoint.ref.prefix + key), 20))
    report = judged(checkpoint)
    assert failed(report) == {"complete"}
    assert key in report.check("complete").detail


def test_a_missing_shard(storage):
    checkpoint = written(storage)
    storage.delete(checkpoint.ref.prefix + checkpoint.object(1))
    report = judged(checkpoint)
    assert failed(report) == {"complete"}
    assert "rank-00001.safetensors: missing" in report.check("complete").detail
    assert WEIGHT in report.check("complete").tensors


@pytest.mark.parametrize("cut", [1, 1000, 20_000])
def test_a_truncated_shard(storage, cut):
    checkpoint = written(storage)
    key = checkpoint.object()
    checkpoint.replace(key, storage.get(checkpoint.ref.prefix + key)[:-cut])
    report = judged(checkpoint)
    assert "complete" in failed(report)
    assert f"{key}: " in report.check("complete").detail
    assert report.check("complete").tensors


def test_a_longer_shard(storage):
    checkpoint = written(storage)
    key = checkpoint.object()
    checkpoint.replace(key, storage.get(checkpoint.ref.prefix + key) + b"more")
    assert failed(judged(checkpoint)) == {"complete"}


@pytest.mark.parametrize("name", [WEIGHT, MOMENT, "model.encoder.layer5.1.running_var"])
@pytest.mark.parametrize(
    ("value", "check", "count"),
    [
        (float("nan"), "finite", "nan_elements"),
        (float("-inf"), "finite", "inf_elements"),
        (-2.5e6, "magnitude", "over_limit_elements"),
    ],
)
def test_bad_numbers_with_valid_checksums_are_named(name, value, check, count):
    if check == "magnitude" and name.endswith("running_var"):
        value = value**2  # a variance is held to the limit's square

    def plant(tensor):
        tensor.view(-1)[3] = value
        tensor.view(-1)[-1] = value

    report = judged(written(MemoryStorage(), changed(name, plant)))
    assert failed(report) == {check}
    assert report.check(check).tensors == (name,)
    assert report.to_json()[count] == 2
    assert report.exit_code == 1


@pytest.mark.parametrize("name", ["model.encoder.audio_encoder.bn1.running_var", "optimizer.exp_avg_sq." + WEIGHT[6:]])
def test_a_variance_may_be_as_large_as_the_limits_square(name):
    """Codes go up to 1023 unscaled: the variance of a sum of them passes a million in a sound network."""
    report = judged(written(MemoryStorage(), changed(name, lambda tensor: tensor.fill_(1.65e6))))
    assert "magnitude" not in failed(report)
    assert report.to_json()["over_limit_elements"] == 0


def test_the_limit_is_the_configurations():
    config = small_config().model_copy(update={"verify": CONFIG.verify.model_copy(update={"magnitude_limit": 1e-3})})
    assert "magnitude" in failed(judged(written(MemoryStorage()), config=config))


def test_a_zeroed_weight_is_dead_and_explained_zeros_are_not():
    report = judged(written(MemoryStorage(), changed(WEIGHT, torch.Tensor.zero_)))
    assert failed(report) == {"dead"}
    assert report.check("dead").tensors == (WEIGHT,)
    explained = {"model.encoder.layer7_bottleneck.1.bias", "model.decoder.layer8.0.bias"}
    assert explained <= set(report.zero_tensors)


def test_optimizer_state_that_never_moved_warns():
    report = judged(written(MemoryStorage(), changed(MOMENT, torch.Tensor.zero_)))
    assert report.verdict == "SAFE WITH WARNINGS"
    assert report.check("dead").tensors == (MOMENT,)


def test_a_checkpoint_of_step_0_may_have_everything_that_starts_at_zero():
    model = {n: v.clone() for n, v in TENSORS.items()}
    for name in model:
        if name.startswith("optimizer.") or name.endswith(("running_mean", "num_batches_tracked")):
            model[name].zero_()
        if name.startswith("model.decoder.") and name.endswith(".bias"):
            model[name].zero_()
    checkpoint = write_checkpoint(MemoryStorage(), model, training_state(CONFIG, 0), step=0)
    changes = {"schedule": {**training_state(CONFIG, 0)["schedule"], "learning_rate": 1e-6}, "best": None}
    checkpoint = write_checkpoint(checkpoint.storage, model, training_state(CONFIG, 0, **changes), step=0)
    assert judged(checkpoint).verdict == "SAFE", judged(checkpoint).checks


@pytest.mark.parametrize("name", [WEIGHT, MOMENT, "optimizer.step.encoder.layer5.0.weight"])
def test_a_missing_tensor(name):
    report = judged(written(MemoryStorage(), {n: v for n, v in TENSORS.items() if n != name}))
    assert failed(report) == {"structure"}
    assert name.removeprefix("model.") in report.check("structure").tensors[0]
    assert "is missing" in report.check("structure").detail


def test_a_renamed_tensor():
    tensors = {(f"{n}s" if n == WEIGHT else n): v for n, v in TENSORS.items()}
    report = judged(written(MemoryStorage(), tensors))
    assert failed(report) == {"structure"}
    assert f"{WEIGHT}s" in report.check("structure").tensors
    assert "is not in the model" in report.check("structure").detail


def test_an_unknown_extra_tensor():
    report = judged(written(MemoryStorage(), {**TENSORS, "secret": torch.ones(3)}))
    assert report.check("structure").tensors == ("secret",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.to(torch.bfloat16), "is bfloat16, the model's is float32"),
        (lambda v: v.t().contiguous(), "has shape"),
        (lambda v: v[:-1].clone(), "has shape"),
    ],
)
def test_a_tensor_of_another_type_or_shape(change, words):
    name = "model.encoder.layer6.0.weight" if words.startswith("is") else "model.encoder.video_encoder.fc2.weight"
    report = judged(written(MemoryStorage(), {**TENSORS, name: change(TENSORS[name])}))
    assert failed(report) == {"structure"}
    assert report.check("structure").tensors == (name,)
    assert words in report.check("structure").detail


def test_another_configurations_model():
    report = judged(written(MemoryStorage()), config=small_config(bottleneck=9))
    assert failed(report) == {"structure"}


def test_a_tensor_with_overlapping_chunks():
    """The manifest's own check counts bytes only: the second chunk is moved onto the first."""
    checkpoint = written(MemoryStorage())
    tensor = checkpoint.manifest.tensors[WEIGHT]
    first, second = tensor.chunks
    moved = dataclasses.replace(second, offset=(1, 0))
    tensors = {**checkpoint.manifest.tensors, WEIGHT: tensor.model_copy(update={"chunks": (first, moved)})}
    checkpoint.rewrite_manifest(tensors=tensors)
    report = judged(checkpoint)
    assert report.check("complete").tensors == (WEIGHT,)
    assert "overlap" in report.check("complete").detail


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"step": 11}, "training state in it of step 11"),
        ({"epoch": 2}, "epoch 2"),
        ({"samples_consumed": 95}, "95 samples consumed"),
        ({"best": {"step": 16, "epoch": 4, "score": 0.8}}, "best validation is of step 16"),
        ({"best": {"step": 12, "epoch": 3, "score": 0.123}}, "best score 0.123"),
        ({"samples_consumed": None}, "lacks samples_consumed"),
        ({"schedule": {"learning_rate": 1e-4, "total_steps": 100, "steps_per_epoch": 4}}, "learning rate 0.0001"),
        ({"history": {"validation": {"step": [4.0, 8.0], "loss": [0.9, 0.8, 0.8]}}}, "differ in length"),
    ],
)
def test_a_state_that_contradicts_itself(changes, words):
    checkpoint = write_checkpoint(MemoryStorage(), TENSORS, {**training_state(CONFIG), **changes})
    report = judged(checkpoint)
    assert failed(report) == {"consistent"}
    assert words in report.check("consistent").detail


def test_an_optimizer_of_another_step_is_named():
    name = "optimizer.step.decoder.layer9.0.weight"
    report = judged(written(MemoryStorage(), {**TENSORS, name: torch.tensor(11.0)}))
    assert failed(report) == {"consistent"}
    assert report.check("consistent").tensors == (name,)


def test_a_checkpoint_in_the_folder_of_another_step():
    checkpoint = written(MemoryStorage())
    checkpoint.rewrite_manifest(step=13, state=training_state(CONFIG, 13))
    assert failed(judged(checkpoint)) == {"consistent"}


def test_a_damaged_manifest_is_unsafe_and_none_is_an_error(storage):
    checkpoint = written(storage)
    checkpoint.replace("MANIFEST.json", flip(storage.get(checkpoint.ref.manifest_key), 400))
    report = judged(checkpoint)
    assert (report.verdict, failed(report)) == ("UNSAFE", {"complete"})
    json.dumps(report.to_json())
    storage.delete(checkpoint.ref.manifest_key)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        judged(checkpoint)


@pytest.mark.parametrize("end", ["", "/", "/MANIFEST.json"])
def test_addresses_of_one_checkpoint(tmp_path, end):
    checkpoint = written(LocalStorage(tmp_path))
    assert verify(checkpoint.url + end).url == checkpoint.url


def test_a_runs_address_is_its_newest_commit(tmp_path):
    storage = LocalStorage(tmp_path)
    written(storage)
    newest = write_checkpoint(storage, trained_tensors(CONFIG, 16), training_state(CONFIG, 16), step=16)
    torn = write_checkpoint(storage, TENSORS, training_state(CONFIG, 20), step=20)
    storage.delete(torn.ref.manifest_key)
    for address in (f"{tmp_path}/runs/movie", f"{tmp_path}/runs/movie/", str(tmp_path)):
        assert verify(address).step == 16
    assert verify(f"{tmp_path}/runs/movie").url == newest.url
    assert verify(f"{tmp_path}/runs/movie/checkpoints/step-00000012").step == 12


def test_a_copied_checkpoint_outside_of_a_run(tmp_path):
    checkpoint = written(MemoryStorage())
    for info in checkpoint.storage.list(checkpoint.ref.prefix):
        path = tmp_path / "copy" / info.key.rpartition("/")[2]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(checkpoint.storage.get(info.key))
    report = verify(str(tmp_path / "copy"))
    assert report.verdict == "SAFE", report.checks
    with pytest.raises(CheckpointError, match="no place for its report"):
        record(report, MemoryStorage())


@pytest.mark.parametrize("address", ["nowhere", "nowhere/runs/movie"])
def test_nothing_there_is_an_error_of_its_own(tmp_path, address):
    with pytest.raises(CheckpointError) as caught:
        verify(str(tmp_path / address))
    assert caught.value.exit_code == 66


def test_the_table_names_the_offender_even_on_a_narrow_terminal():
    report = judged(written(MemoryStorage(), changed(WEIGHT, lambda t: t.view(-1)[:7].fill_(float("nan")))))
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    render(report, console)
    console.file.close()
    text = console.export_text()
    assert WEIGHT in text
    assert "UNSAFE" in text
    assert "7 NaN" in text


def test_metrics_say_what_the_report_says():
    metrics = Metrics("movie")
    tell_metrics(
        metrics, judged(written(MemoryStorage(), changed(WEIGHT, lambda t: t.view(-1)[:7].fill_(float("inf")))))
    )

    def value(name: str) -> float | None:
        return metrics.registry.get_sample_value(f"giblet_{name}", {"run": "movie"})

    assert value("verify_verdict") == 0
    assert value("verify_inf_elements") == 7
    assert value("verify_tensors") == len(TENSORS)
    tell_metrics(metrics, judged(written(MemoryStorage())))
    assert value("verify_verdict") == 2
    assert value("verify_bytes_total") > 0


def test_how_it_is_read_and_judged_is_not_what_a_checkpoint_should_be(tmp_path, capsys):
    checkpoint = written(LocalStorage(tmp_path))

    def checks(*words: str) -> list[dict[str, object]]:
        capsys.readouterr()
        main(["verify", checkpoint.url, "--json", *words])
        return json.loads(capsys.readouterr().out)["checks"]

    alone = checks()
    assert all(check["status"] != "failed" for check in alone)
    assert checks("--set", "checkpoint.max_attempts=3") == alone
    assert checks("--set", "verify.poll_seconds=3") == alone
    assert checks("--set", "verify.restore=false") == alone
    judged = {check["name"]: check["status"] for check in checks("--set", "verify.magnitude_limit=1e-6")}
    assert judged == {check["name"]: check["status"] for check in alone} | {"magnitude": "failed"}
    assert [c["status"] for c in checks("--set", "verify.restore=true") if c["name"] == "restores"] != ["skipped"]
    assert checks("--set", "model.bottleneck=9") != alone
