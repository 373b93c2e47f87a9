"""Verification of checkpoints that training itself wrote, in a folder and on a real S3 server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from giblet.checkpoint.layout import CheckpointRef
from giblet.checkpoint.manifest import Manifest
from giblet.checkpoint.resume import verified_ref
from giblet.data.prepared import PreparedDataset
from giblet.data.transfer import publish
from giblet.errors import StorageDeniedError, StorageUnavailableError
from giblet.storage import LocalStorage, Storage
from giblet.storage.embedded import EmbeddedServer
from giblet.training import train
from giblet.verify import record, verify
from giblet.verify.report import Report
from tests.support.prepared import make_prepared
from tests.support.s3 import dead_endpoint, hasty_storage
from tests.support.training import small_config

pytestmark = pytest.mark.s3
MEMORY_LIMIT_BYTES = 600e6


@dataclass
class Trained:
    storage: Storage
    dataset: PreparedDataset

    @property
    def url(self) -> str:
        return f"{self.storage.url}/runs/small"

    def newest(self) -> CheckpointRef:
        found = (CheckpointRef.of_manifest_key(info.key) for info in self.storage.list("runs/small/checkpoints/"))
        return max(ref for ref in found if ref is not None)

    def manifest(self) -> Manifest:
        return Manifest.parse(self.storage.get(self.newest().manifest_key))

    def judge(self, **options: object) -> Report:
        return verify(self.url, storage=self.storage, **options)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(tmp_path_factory.mktemp("dataset") / "prepared")


@pytest.fixture(scope="module", params=["folder", "s3"])
def trained(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    s3_server: EmbeddedServer,
    dataset: PreparedDataset,
) -> Iterator[Trained]:
    with pytest.MonkeyPatch.context() as patch:
        storage: Storage
        if request.param == "s3":
            for name, value in s3_server.environment().items():
                patch.setenv(name, value)
            settings = s3_server.config().model_dump() | {"url": "s3://giblet/verify", "save_every_epochs": 1}
            storage = s3_server.storage("giblet", "verify")
        else:
            folder = tmp_path_factory.mktemp("runs")
            settings = {"url": str(folder), "save_every_epochs": 1}
            storage = LocalStorage(folder)
        train(small_config(checkpoint=settings), dataset_path=dataset.path)
        yield Trained(storage, dataset)


def test_what_training_wrote_is_safe_in_every_respect(trained: Trained) -> None:
    report = trained.judge(restore=True, dataset=trained.dataset.path)
    assert [check for check in report.checks if check.status != "passed"] == []
    assert report.verdict == "SAFE"
    assert report.to_json()["bytes"] == trained.manifest().size_bytes
    recorded = trained.manifest().state["validation"]
    for name, value in report.scores.items():
        assert value == pytest.approx(recorded[name], rel=1e-4), name  # float32, summed in another order
    ref = record(report, trained.storage)
    assert ref == trained.newest()
    assert verified_ref(trained.storage, "small") == ref
    assert json.loads(trained.storage.get(ref.report_key))["verdict"] == "SAFE"


def test_a_damaged_byte_and_a_missing_shard(trained: Trained) -> None:
    name = "model.encoder.layer5.0.weight"
    chunk = trained.manifest().tensors[name].chunks[0]
    key = trained.newest().prefix + chunk.key
    data = trained.storage.get(key)
    try:
        trained.storage.put(key, data[: chunk.start] + bytes([data[chunk.start] ^ 255]) + data[chunk.start + 1 :])
        report = trained.judge()
        assert report.exit_code == 1
        assert report.check("complete").tensors == (name,)
        trained.storage.delete(key)
        report = trained.judge()
        assert "missing" in report.check("complete").detail
        trained.storage.put(key, data[:-9])
        assert trained.judge().verdict == "UNSAFE"
    finally:
        trained.storage.put(key, data)
    assert trained.judge().verdict == "SAFE"


def test_a_recorded_score_that_is_not_its_own_fails(trained: Trained) -> None:
    ref, manifest = trained.newest(), trained.manifest()
    original = trained.storage.get(ref.manifest_key)
    validation = {**manifest.state["validation"], "bold": manifest.state["validation"]["bold"] * 1.01}
    forged = manifest.model_copy(update={"state": {**manifest.state, "validation": validation}})
    try:
        trained.storage.put(ref.manifest_key, forged.dump())
        report = trained.judge(restore=True, dataset=trained.dataset.path)
        assert [check.name for check in report.checks if check.status == "failed"] == ["scores"]
        assert "bold" in report.check("scores").detail
    finally:
        trained.storage.put(ref.manifest_key, original)


def test_a_recorded_correlation_that_is_not_its_own_fails(trained: Trained) -> None:
    ref, manifest = trained.newest(), trained.manifest()
    original = trained.storage.get(ref.manifest_key)
    recorded = manifest.state["validation"]
    validation = recorded | {"bold_correlation": recorded["bold_correlation"] + 0.01}
    forged = manifest.model_copy(update={"state": {**manifest.state, "validation": validation}})
    try:
        trained.storage.put(ref.manifest_key, forged.dump())
        check = trained.judge(restore=True, dataset=trained.dataset.path).check("scores")
        assert (check.status, "bold_correlation" in check.detail) == ("failed", True)
    finally:
        trained.storage.put(ref.manifest_key, original)


def test_a_published_dataset_is_fetched_to_score_on(trained: Trained, tmp_path: Path) -> None:
    config = small_config(data={"segment_trs": 8, "cache_dir": str(tmp_path / "cache")})
    report = trained.judge(restore=True, config=config)
    assert report.check("scores").status == "skipped"
    assert "nor published in" in report.check("scores").detail
    assert report.verdict == "SAFE WITH WARNINGS"
    publish(trained.dataset, trained.storage)
    report = trained.judge(restore=True, config=config)
    assert (report.check("scores").status, report.verdict) == ("passed", "SAFE")
    assert (tmp_path / "cache" / trained.dataset.manifest.content_hash).is_dir()
    (tmp_path / "a-file").write_bytes(b"")
    report = trained.judge(
        restore=True, config=small_config(data={"segment_trs": 8, "cache_dir": str(tmp_path / "a-file")})
    )
    assert "cannot be fetched to data.cache_dir" in report.check("scores").detail


def test_another_dataset_is_not_scored_on(trained: Trained, tmp_path: Path) -> None:
    other = make_prepared(tmp_path / "other", seed=5)
    report = trained.judge(restore=True, dataset=other.path)
    assert report.check("scores").status == "skipped"
    assert "it was trained on" in report.check("scores").detail


def test_storage_that_is_away_or_refuses_is_no_verdict(s3_server: EmbeddedServer) -> None:
    with dead_endpoint() as address:
        away = hasty_storage(s3_server, "giblet", endpoint_url=address)
        with pytest.raises(StorageUnavailableError) as caught:
            verify("s3://giblet/runs/small", storage=away)
        assert caught.value.exit_code == 129
    with pytest.raises(StorageDeniedError) as denied:
        verify("s3://no-such-bucket/runs/small", storage=hasty_storage(s3_server, "no-such-bucket"))
    assert denied.value.exit_code == 78


PEAK = """
import json, re, sys
from pathlib import Path
from giblet.verify import verify
report = verify(sys.argv[1])
peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
print(json.dumps({"peak": peak, "bytes": report.bytes_read}))
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A sparse file of 1 GB: it takes no disk, and every byte of it is read. torch itself takes most of the limit."""
    elements = 250_000_000
    header = json.dumps({"a": {"dtype": "F32", "shape": [elements], "data_offsets": [0, 4 * elements]}}).encode()
    with (tmp_path / "large.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 4 * elements)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "large.safetensors")],
        capture_output=True, text=True, check=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["bytes"] == 4 * elements + len(header) + 8
    assert found["peak"] < MEMORY_LIMIT_BYTES
