"""Reading a configuration: overrides, refusals with every fault at once, what may change on resume."""

from __future__ import annotations

from pathlib import Path

import pytest

from giblet.config import GibletConfig, config_differences, load_config, load_config_data
from giblet.config.check import check_file, idle_share, world_size_faults
from giblet.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_configuration_loads_and_fits_its_machines(path: Path) -> None:
    config, _notes = check_file(path)
    assert config == load_config(path)


def test_production_is_what_the_lab_runs() -> None:
    config = load_config(ROOT / "configs/prod.yaml")
    assert config.run.name == "giblet_production"
    assert (config.training.epochs, config.training.patience_epochs) == (500, 50)
    assert (config.checkpoint.save_every_epochs, config.training.validate_every_epochs) == (10, 1)
    assert (config.data.video.frame_skip, config.training.processes) == (4, 8)
    assert config.data.audio.codebooks == config.model.audio_codebooks == 8


def test_the_config_key_and_the_bare_file_read_the_same(tmp_path: Path) -> None:
    bare, wrapped = tmp_path / "bare.yaml", tmp_path / "wrapped.yaml"
    bare.write_text("training: {epochs: 3}\n")
    wrapped.write_text("image: {tag: x}\nconfig:\n  training: {epochs: 3}\n")
    assert load_config(bare) == load_config(wrapped)
    assert load_config(bare).training.epochs == 3


@pytest.mark.parametrize("text", ["", "config:\n", "config: {}\n", "image: {tag: x}\nconfig:\n"])
def test_empty_files_mean_the_defaults(tmp_path: Path, text: str) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text(text)
    assert load_config(path) == GibletConfig()


def test_overrides_are_yaml_and_win() -> None:
    config = load_config(
        None, ["training.epochs=3", "config.run.name=other", "data.subjects=['01', '02']", "data.bids=null"]
    )
    assert config.training.epochs == 3
    assert config.run.name == "other"
    assert config.data.bids is None
    assert config.data.subjects == ("01", "02")


@pytest.mark.parametrize("override", ["training.epochs", "=3", "training..epochs=3", "run.name.x=3"])
def test_a_malformed_override_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=r"--set|run\.name"):
        load_config_data({"run": {"name": "a"}}, [override])


def test_every_fault_is_reported_at_once_with_key_value_and_what_is_allowed() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config_data(
            {
                "data": {"segmnt_trs": 4, "audio": {"bandwidth_kbps": 5}, "bold": {"shift_trs": 3}},
                "training": {"epochs": "many", "precision": "fp8"},
            }
        )
    message = str(caught.value)
    assert "5 faults" in message
    assert "data.segmnt_trs: unknown key; did you mean segment_trs?" in message
    assert "data.audio.bandwidth_kbps: 5" in message
    assert "1.5, 3, 6, 12, 24" in message
    assert "training.epochs: 'many'" in message
    assert "'bf16' or 'fp32'" in message
    assert "counted twice" in message, "rules between keys are checked although other keys are bad"


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["data.bold.shift_trs=3"], "counted twice"),
        (["training.global_batch_samples=3", "training.micro_batch_samples=2"], "no multiple"),
        (["data.segment_trs=1"], "at least 8"),
        (["training.minimum_learning_rate=1"], "above training.learning_rate"),
        (["model.bold_weight=0", "model.video_weight=0", "model.audio_weight=0", "model.text_weight=0"], "nothing to"),
        (["checkpoint.save_every_epochs=0"], "nothing would be saved"),
        (["checkpoint.url=gs://bucket"], "s3://bucket/prefix"),
        (["run.name=Bad Name"], "run.name"),
        (["data.split.gap_seconds=10"], "30"),
    ],
)
def test_combinations_known_to_fail_are_refused(overrides: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_config(None, overrides)


@pytest.mark.parametrize(
    ("text", "reason"), [("a: [", "not valid YAML"), ("- 1\n", "not a mapping"), ("config: 3\n", "not a mapping")]
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        load_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.yaml")


def test_resume_allows_some_changes_and_names_the_others() -> None:
    saved = GibletConfig()
    harmless = load_config(None, ["training.epochs=9", "telemetry.metrics_port=0", "checkpoint.keep_last=9"])
    assert config_differences(saved, harmless) == {}
    harmful = load_config(None, ["training.learning_rate=0.5", "model.bottleneck=7", "training.epochs=9"])
    assert config_differences(saved, harmful) == {
        "model.bottleneck": (2048, 7),
        "training.learning_rate": (1e-4, 0.5),
    }


def test_a_rank_needs_a_micro_batch_and_may_stand_idle_for_a_part() -> None:
    config = load_config(None, ["training.global_batch_samples=12", "training.micro_batch_samples=2"])
    assert [size for size in range(1, 9) if not world_size_faults(config, size)] == [1, 2, 3, 4, 5, 6]
    assert "7 ranks want one each" in world_size_faults(config, 7)[0]
    assert [idle_share(config, size) for size in (1, 2, 3, 6)] == [0, 0, 0, 0]
    assert idle_share(config, 4) == pytest.approx(2 / 8)
    assert idle_share(config, 5) == pytest.approx(4 / 10)


def test_check_reads_the_workers_too(tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(
        "workers: {replicas: 3, min: 1, max: 9, gpusPerWorker: 1}\nconfig: {training: {global_batch_samples: 8}}\n"
    )
    with pytest.raises(ConfigError, match="9 ranks want one each"):
        check_file(path)
    path.write_text("workers: {replicas: 5, min: 1, max: 2, nprocPerNode: 1, gpu: 1}\nconfig: {}\n")
    with pytest.raises(ConfigError) as caught:
        check_file(path)
    assert "put them in order" in str(caught.value)
    assert "workers.nprocPerNode: refused: " in str(caught.value)
    assert "workers.gpu: unknown key" in str(caught.value)
